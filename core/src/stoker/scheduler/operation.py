"""One client's interest in an action: what REAPI calls an operation."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import trio
from google.protobuf.timestamp_pb2 import Timestamp

from stoker.action import NOTHING_INLINED, UNKNOWN_ANSWER, CacheAnswer, Inlined, Outcome
from stoker.digest import Digest
from stoker.errors import Draining
from stoker.log_streams.names import StreamNames
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.queue import Stage


def operation_name(namespace: str) -> str:
    """A new name. It cannot be guessed, so that knowing it is the right to wait for it (OPS-02)."""
    prefix = f"{namespace}/" if namespace else ""
    return f"{prefix}operations/{secrets.token_hex(16)}"


@dataclass(eq=False, slots=True, kw_only=True)
class Operation:
    """An accepted Execute request. Several may share one task.

    Only the scheduler changes it, between awaits; others read it and wait for a change.
    """

    name: str
    number: int
    """Later ones have a greater one, and no two the same."""
    namespace: str
    principal: str = ""
    """Whose it is: nobody else is to know that there is such an operation (SEC-06)."""
    action_digest: Digest
    """What it runs. The action itself is the task's: an operation outlives it."""
    mnemonic: str = ""
    target: str = ""
    invocation: str = ""
    inlined: Inlined = NOTHING_INLINED
    """What its client wants to have in the result."""
    cache: CacheAnswer = UNKNOWN_ANSWER
    """What the action cache said of it, for the records."""
    stage: Stage = Stage.QUEUED
    outcome: Outcome | None = None
    """Set exactly when the stage is COMPLETED."""
    queued_nanoseconds: int = 0
    """When it was accepted, since the epoch; 0 where it had ended by then."""
    run: reapi.ExecutedActionMetadata | None = None
    """What is known of its run so far. Shared with other operations, so never changed."""
    waits: bool = False
    """Whether it counts among those that wait for an executor: until one has it, that is."""
    streams: StreamNames | None = None
    """Where what the run prints can be read, from its start on; those of an attempt that was lost
    are another's, and no more told."""
    watchers: int = 0
    """How many streams wait for the end of it."""
    departures: int = 0
    """How often the last of them has gone."""
    version: int = 0
    """Grows with every change."""
    handed_back: Draining | None = None
    """Set when the server stops before it has ended: whoever waits for it is told so."""
    # Most wait with thousands of others, and are looked at by nobody.
    _changed: trio.Event | None = None
    _completed: trio.Event | None = None

    @property
    def metadata(self) -> reapi.ExecutedActionMetadata:
        """What is known so far, as a message of its own (OPS-15)."""
        metadata = reapi.ExecutedActionMetadata()
        if self.run is not None:
            metadata.CopyFrom(self.run)
        if self.queued_nanoseconds:
            metadata.queued_timestamp.FromNanoseconds(self.queued_nanoseconds)
        return metadata

    @property
    def executor(self) -> str:
        """Who runs it, or ran it last; empty where nobody has yet, or has told."""
        result = self.outcome and self.outcome.result
        known = result.execution_metadata if result else self.run
        return known.worker if known is not None else ""

    def announce(self) -> None:
        """Wake whoever waits for a change."""
        self.version += 1
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        if self._completed is not None and self.stage is Stage.COMPLETED:
            self._completed.set()

    async def wait_change(self, seen: int) -> None:
        """Wait until `version` differs from `seen`. Changes in quick succession are one.

        Raises Draining, here and below, where this server will not see its end.
        """
        while self.version == seen and not self.handed_back:
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()
        self._check_kept()

    async def wait_completed(self) -> None:
        """Wait until the stage is COMPLETED."""
        if self.stage is not Stage.COMPLETED and not self.handed_back:
            if self._completed is None:
                self._completed = trio.Event()
            await self._completed.wait()
        self._check_kept()

    def hand_back(self, reason: Draining) -> None:
        """This server will not see its end: whoever waits for it, or will, is told `reason`."""
        self.handed_back = reason
        for event in (self._changed, self._completed):
            if event is not None:
                event.set()

    def _check_kept(self) -> None:
        if self.handed_back and self.stage is not Stage.COMPLETED:
            raise self.handed_back.again()


def timestamp(nanoseconds: int) -> Timestamp:
    """A time of day, for REAPI's metadata."""
    stamp = Timestamp()
    stamp.FromNanoseconds(nanoseconds)
    return stamp
