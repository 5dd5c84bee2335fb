"""Who filed an action result: stamped on what is filed, read by those who look after the cache."""

from __future__ import annotations

import time

from stoker import __version__
from stoker.action import LoadedAction
from stoker.frontend.request_metadata import request_metadata
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.provenance_pb2 import Provenance
from stoker.rpc import ServerCall

_TYPE_NAME = Provenance.DESCRIPTOR.full_name


def provenance_of_client(call: ServerCall) -> Provenance:
    """That of a result that a client sends."""
    provenance = _provenance(request_metadata(call))
    provenance.peer, provenance.principal = call.peer, call.principal
    return provenance


def provenance_of_executor(action: LoadedAction, executor: str) -> Provenance:
    """That of a result that `executor` made, for the client that asked first."""
    provenance = _provenance(action.metadata)
    provenance.executor, provenance.principal = executor, action.principal
    return provenance


def stamp(result: reapi.ActionResult, provenance: Provenance) -> None:
    """Put `provenance` into `result`, in place of any that it claims to have (ACU-12)."""
    entries = result.execution_metadata.auxiliary_metadata
    kept = [entry for entry in entries if entry.TypeName() != _TYPE_NAME]
    del entries[:]
    entries.extend(kept)
    entries.add().Pack(provenance)


def read_provenance(result: reapi.ActionResult) -> Provenance | None:
    """The provenance of a filed result; None where it was filed before there was any."""
    provenance = Provenance()
    for entry in result.execution_metadata.auxiliary_metadata:
        if entry.Unpack(provenance):
            return provenance
    return None


def _provenance(metadata: reapi.RequestMetadata) -> Provenance:
    provenance = Provenance(
        tool_name=metadata.tool_details.tool_name,
        tool_version=metadata.tool_details.tool_version,
        tool_invocation_id=metadata.tool_invocation_id,
        correlated_invocations_id=metadata.correlated_invocations_id,
        server_version=__version__,
    )
    provenance.written_at.FromNanoseconds(time.time_ns())
    return provenance
