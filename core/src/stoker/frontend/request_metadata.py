"""Who asks, and on behalf of what: REAPI's RequestMetadata header."""

from __future__ import annotations

import structlog
from google.protobuf.message import DecodeError

from stoker.protos.remote_execution_pb2 import RequestMetadata
from stoker.rpc import ServerCall

HEADER = "build.bazel.remote.execution.v2.requestmetadata-bin"

log = structlog.get_logger(__name__)


def request_metadata(call: ServerCall) -> RequestMetadata:
    """What the client says of itself. A header that is absent or garbage says nothing (GEN-11)."""
    value = call.metadata.get(HEADER)
    if not isinstance(value, bytes):
        return RequestMetadata()
    try:
        return RequestMetadata.FromString(value)
    except DecodeError:
        log.debug("garbage in request metadata", peer=call.peer)
        return RequestMetadata()
