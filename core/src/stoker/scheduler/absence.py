"""What clients are told while none of the executors that could run an action is there (EXE-14)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stoker.errors import FailedPrecondition
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.scheduling_pb2 import WaitingForExecutor

_FOR_GOOD_SECONDS = 100 * 365 * 86400
"""Who may wait for longer is told of no end, for which a Timestamp may have no figure."""


def waiting_note(
    executors: Collection[str], reasons: Mapping[str, str], *, since_ns: int, seconds: float
) -> WaitingForExecutor:
    """What an action waits for, for so long at most, that could run on `executors`; `reasons` say
    why each is away."""
    note = WaitingForExecutor(
        reason=f"no executor that could run it is there: {_sentence(executors, reasons)}",
        executors=sorted(executors),
    )
    note.since.FromNanoseconds(since_ns)
    if seconds < _FOR_GOOD_SECONDS:
        note.until.FromNanoseconds(since_ns + round(seconds * 1e9))
    return note


def none_came(
    executors: Collection[str], reasons: Mapping[str, str], seconds: float
) -> FailedPrecondition:
    """The end of the wait."""
    return FailedPrecondition(
        f"the action waited {seconds:g} s, as long as it may, for an executor that could run it: "
        f"{_sentence(executors, reasons)}"
    )


def _sentence(executors: Collection[str], reasons: Mapping[str, str]) -> str:
    return "; ".join(
        f"executor {name!r} {reasons.get(name, 'is away')}" for name in sorted(executors)
    )


def with_note(
    metadata: reapi.ExecutedActionMetadata | None, note: WaitingForExecutor | None
) -> reapi.ExecutedActionMetadata:
    """A copy of `metadata` with `note` in place of any before it."""
    kept = reapi.ExecutedActionMetadata()
    if metadata is not None:
        kept.CopyFrom(metadata)
    others = [a for a in kept.auxiliary_metadata if not a.Is(WaitingForExecutor.DESCRIPTOR)]
    del kept.auxiliary_metadata[:]
    kept.auxiliary_metadata.extend(others)
    if note is not None:
        kept.auxiliary_metadata.add().Pack(note)
    return kept
