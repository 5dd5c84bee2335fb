"""What a stream is told while nothing happens, in virtual time (OPS-07)."""

from __future__ import annotations

from itertools import pairwise

import trio
import trio.testing
from google.longrunning import operations_pb2

from stoker.action import Outcome
from stoker.digest import SHA256
from stoker.frontend.execution import tell_changes
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.operation import Operation
from stoker.scheduler.task import Stage

from .executing import metadata_of

LONGEST_SECONDS = 60


class Reader:
    """Notes what it is told, and when."""

    def __init__(self, seconds_each: float = 0) -> None:
        self.told: list[tuple[float, int]] = []
        self._seconds_each = seconds_each

    async def send(self, message: operations_pb2.Operation) -> None:
        await trio.sleep(self._seconds_each)
        self.told.append((trio.current_time(), metadata_of(message).stage))


def queued() -> Operation:
    return Operation(name="operations/1", number=1, namespace="", action_digest=SHA256.digest(b"a"))


def move(operation: Operation, stage: Stage) -> None:
    operation.stage = stage
    if stage is Stage.COMPLETED:
        operation.outcome = Outcome(result=reapi.ActionResult())
    operation.announce()


async def test_something_is_told_every_minute(
    autojump_clock: trio.testing.MockClock,
) -> None:  # OPS-07
    operation, reader = queued(), Reader()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell_changes, operation, reader.send)
        await trio.sleep(3600)
        move(operation, Stage.EXECUTING)
        await trio.sleep(3600)
        move(operation, Stage.COMPLETED)
    ended = trio.current_time()
    times = [began, *(time for time, _ in reader.told), ended]
    assert max(b - a for a, b in pairwise(times)) <= LONGEST_SECONDS
    # Not more often than is of use, and each change at once.
    assert len(reader.told) <= 7200 / 25
    stages = [stage for _, stage in reader.told]
    assert stages == sorted(stages)
    [executing] = [t for t, s in reader.told if s == reapi.ExecutionStage.EXECUTING][:1]
    assert executing - (began + 3600) <= 1
    assert ended - began == 7200  # nothing after the end kept it


async def test_a_slow_reader_is_told_the_latest_and_holds_nobody_up(
    autojump_clock: trio.testing.MockClock,
) -> None:  # OPS-03, OPS-23
    operation, slow = queued(), Reader(seconds_each=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell_changes, operation, slow.send)
        for stage in (Stage.EXECUTING, Stage.QUEUED) * 10:
            await trio.sleep(5)
            move(operation, stage)
        move(operation, Stage.EXECUTING)
        await trio.sleep(1000)
        move(operation, Stage.COMPLETED)
    assert [stage for _, stage in slow.told[:2]] == [
        reapi.ExecutionStage.QUEUED,
        reapi.ExecutionStage.EXECUTING,
    ]
    assert reapi.ExecutionStage.COMPLETED not in [stage for _, stage in slow.told]
