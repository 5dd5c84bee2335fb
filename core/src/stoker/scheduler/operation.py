"""One client's interest in an action: what REAPI calls an operation."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

import trio
from google.protobuf.timestamp_pb2 import Timestamp

from stoker.action import LoadedAction, Outcome
from stoker.digest import Digest
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
    namespace: str
    action_digest: Digest
    """What it runs. The action itself is the task's: an operation outlives it."""
    stage: Stage = Stage.QUEUED
    outcome: Outcome | None = None
    """Set exactly when the stage is COMPLETED."""
    metadata: reapi.ExecutedActionMetadata = field(default_factory=reapi.ExecutedActionMetadata)
    """What is known of the run so far (OPS-15)."""
    watchers: int = 0
    """How many streams wait for the end of it."""
    departures: int = 0
    """How often the last of them has gone."""
    version: int = 0
    """Grows with every change."""
    _changed: trio.Event = field(default_factory=trio.Event)
    _completed: trio.Event = field(default_factory=trio.Event)

    def announce(self) -> None:
        """Wake whoever waits for a change."""
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()
        if self.stage is Stage.COMPLETED:
            self._completed.set()

    async def wait_change(self, seen: int) -> None:
        """Wait until `version` differs from `seen`. Changes in quick succession are one."""
        while self.version == seen:
            await self._changed.wait()

    async def wait_completed(self) -> None:
        """Wait until the stage is COMPLETED."""
        await self._completed.wait()


def new_operation(action: LoadedAction) -> Operation:
    """An operation for `action`, accepted now."""
    operation = Operation(
        name=operation_name(action.namespace),
        namespace=action.namespace,
        action_digest=action.digest,
    )
    operation.metadata.queued_timestamp.CopyFrom(now())
    return operation


def now() -> Timestamp:
    """The time of day, for REAPI's metadata."""
    stamp = Timestamp()
    stamp.FromNanoseconds(time.time_ns())
    return stamp
