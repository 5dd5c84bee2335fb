"""Leases that are lost, executors that are away, and the end of a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from stoker.action import Outcome
from stoker.errors import Draining, FailedPrecondition, Unavailable
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.scheduling_pb2 import WaitingForExecutor
from stoker.resources import Capacity
from stoker.scheduler.leasing import Lease
from stoker.scheduler.matching import Offer
from stoker.scheduler.operation import Operation
from stoker.scheduler.queue import Stage
from stoker.scheduler.scheduler import Scheduler, open_scheduler
from stoker.scheduler.settings import SchedulerSettings

from .actions import make_action

CAPACITY = Capacity.of_executor(slots=2, cpus=2, memory_bytes=2**30, default_memory_bytes=None)
EXECUTORS = {name: Offer({}, CAPACITY) for name in ("one", "two")}
DONE = Outcome(result=reapi.ActionResult())
STARTED = reapi.ExecutedActionMetadata(worker="one")


@asynccontextmanager
async def opened(**settings: float) -> AsyncIterator[Scheduler]:
    async with open_scheduler(EXECUTORS, SchedulerSettings(**settings)) as scheduler:  # type: ignore[arg-type] # floats for the counts too
        yield scheduler


def submit(scheduler: Scheduler, name: str, *executors: str) -> Operation:
    return scheduler.submit(make_action(name), priority=0, executors=executors or [*EXECUTORS])


def note_of(operation: Operation) -> WaitingForExecutor | None:
    """Why it waits, as its client is told."""
    for packed in operation.metadata.auxiliary_metadata:
        note = WaitingForExecutor()
        if packed.Unpack(note):
            return note
    return None


def stage_of(operation: Operation) -> Stage:
    return operation.stage


def error_of(operation: Operation) -> Exception | None:
    """The error that it ended with; None where it has not ended."""
    return operation.outcome.error if operation.outcome else None


class Slot:
    """A slot that keeps what it is given until it is let go, whatever becomes of the lease."""

    def __init__(self, scheduler: Scheduler, executor: str) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._let_go = trio.Event()
        self.lease: Lease | None = None
        self.gone = trio.Event()

    async def run(self, task_status: trio.TaskStatus[Lease]) -> None:
        async with self._scheduler.lease(self._executor) as lease:
            task_status.started(lease)
            await self._let_go.wait()
        self.gone.set()

    async def let_go(self) -> None:
        self._let_go.set()
        await self.gone.wait()


async def test_a_lease_that_is_not_renewed_is_handed_out_again(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:  # SCH-05
    async with opened() as scheduler:
        operation = submit(scheduler, "a")
        slow = Slot(scheduler, "one")
        lost: Lease = await nursery.start(slow.run)
        lost.started(STARTED)
        assert lost.renew(10)
        await trio.sleep(9)
        assert lost.renew(10)
        await trio.sleep(9.5)
        assert stage_of(operation) is Stage.EXECUTING
        begun = trio.current_time()
        async with scheduler.lease("two") as lease:
            assert trio.current_time() - begun == pytest.approx(0.5)
            assert stage_of(operation) is Stage.QUEUED  # OPS-14
            assert lost.scope.cancel_called
            # Whatever the one that lost it says is not heard.
            lost.started(STARTED)
            assert stage_of(operation) is Stage.QUEUED
            assert not lost.renew(10)
            assert not lost.complete(Outcome(error=Unavailable("too late")))
            assert error_of(operation) is None
            # It may still run there: what it has is taken until the slot lets go of it.
            assert scheduler.free("one").millicpus == 1000
            await slow.let_go()
            assert scheduler.free("one") == CAPACITY.total
            assert lease.complete(DONE)
            assert not lease.complete(Outcome(error=Unavailable("twice")))
        assert operation.outcome is DONE
        assert {state.name: state.lost for state in scheduler.executors()} == {"one": 1, "two": 0}
        assert scheduler.free("two") == CAPACITY.total


async def test_the_one_that_lost_it_may_let_go_later_than_the_next(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:  # SCH-05
    async with opened() as scheduler:
        operation = submit(scheduler, "a")
        slow = Slot(scheduler, "one")
        (await nursery.start(slow.run)).renew(1)
        async with scheduler.lease("one") as lease:
            lease.complete(DONE)
        again = submit(scheduler, "a")
        await slow.let_go()
        assert (operation.outcome, again.stage) == (DONE, Stage.QUEUED)
        async with scheduler.lease("two") as lease:
            lease.complete(DONE)
        assert again.outcome is DONE
        assert scheduler.free("one") == scheduler.free("two") == CAPACITY.total


async def test_leases_that_expire_again_and_again_are_told(
    autojump_clock: trio.testing.MockClock,
) -> None:  # OPS-14, SCH-05
    async with opened() as scheduler:
        operation = submit(scheduler, "a")
        for _ in range(3):
            async with scheduler.lease("one") as lease:
                lease.renew(1)
                with lease.scope:
                    await trio.sleep_forever()
        assert isinstance(error_of(operation), Unavailable)
        assert "lost 3 times by its executors: one, one, one" in str(error_of(operation))


async def test_a_slot_that_goes_before_it_begins_is_no_attempt(nursery: trio.Nursery) -> None:
    async with opened() as scheduler:
        scheduler.detach("one", "has gone for a moment")
        operation = submit(scheduler, "a", "one")
        for _ in range(5):
            async with trio.open_nursery() as slots:
                slots.start_soon(Slot(scheduler, "one").run, trio.TASK_STATUS_IGNORED)
                await trio.testing.wait_all_tasks_blocked()
                slots.cancel_scope.cancel()
                scheduler.attach("one")
            scheduler.detach("one", "has gone again")
        scheduler.attach("one")
        assert operation.outcome is None
        async with scheduler.lease("one") as lease:
            lease.complete(DONE)
        assert operation.outcome is DONE


async def test_others_take_what_an_executor_that_is_away_could() -> None:  # SCH-06
    async with opened() as scheduler:
        scheduler.detach("one", "is away")
        operation = submit(scheduler, "a")
        assert note_of(operation) is None
        async with trio.open_nursery() as nursery:
            idle = Slot(scheduler, "one")
            nursery.start_soon(idle.run, trio.TASK_STATUS_IGNORED)
            await trio.testing.wait_all_tasks_blocked()
            assert stage_of(operation) is Stage.QUEUED
            async with scheduler.lease("two") as lease:
                lease.complete(DONE)
            assert operation.outcome is DONE
            nursery.cancel_scope.cancel()


async def test_a_client_is_told_that_no_executor_is_there(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:  # EXE-14
    async with opened(wait_for_executor_seconds=60) as scheduler:
        before = submit(scheduler, "a", "one")
        seen = before.version
        scheduler.detach("one", "is being repaired")
        after, twin = submit(scheduler, "b", "one"), submit(scheduler, "a", "one")
        assert before.version > seen
        for operation in (before, after, twin):
            note = note_of(operation)
            assert note
            assert "executor 'one' is being repaired" in note.reason
            assert [*note.executors] == ["one"]
            assert note.until.ToNanoseconds() - note.since.ToNanoseconds() == 60 * 10**9
        await trio.sleep(59)
        scheduler.attach("one")
        for operation in (before, after, twin):
            assert (note_of(operation), operation.stage) == (None, Stage.QUEUED)
        await trio.sleep(59)
        assert before.outcome is after.outcome is None
        for _ in range(2):
            async with scheduler.lease("one") as lease:
                lease.complete(DONE)
        assert before.outcome is after.outcome is twin.outcome is DONE


async def test_the_wait_for_an_executor_is_bounded(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:  # EXE-14
    async with opened(wait_for_executor_seconds=60) as scheduler:
        scheduler.detach("one", "is drained")
        first = submit(scheduler, "a", "one")
        await trio.sleep(30)
        second = submit(scheduler, "b", "one")
        other = submit(scheduler, "c", "one", "two")
        await trio.sleep(29)
        assert error_of(first) is None
        await trio.sleep(2)
        assert isinstance(error_of(first), FailedPrecondition)
        assert "waited 60 s" in str(error_of(first))
        assert "executor 'one' is drained" in str(error_of(first))
        assert error_of(second) is None
        # It counts from the moment in which the last one went.
        scheduler.detach("two", "has gone")
        await trio.sleep(30)
        assert isinstance(error_of(second), FailedPrecondition)
        assert error_of(other) is None
        await trio.sleep(31)
        assert "executor 'one' is drained; executor 'two' has gone" in str(error_of(other))
        assert scheduler.queued == 0


async def test_what_runs_on_an_executor_that_goes_may_end(nursery: trio.Nursery) -> None:  # SCH-06
    async with opened() as scheduler:
        operation, waits = submit(scheduler, "a", "one"), submit(scheduler, "b", "one")
        async with scheduler.lease("one") as lease:
            scheduler.detach("one", "is drained")
            [state, _] = scheduler.executors()
            assert (state.away, state.busy_slots) == ("is drained", 1)
            lease.complete(DONE)
        assert (operation.outcome, waits.outcome) == (DONE, None)
        async with trio.open_nursery() as slots:
            slots.start_soon(Slot(scheduler, "one").run, trio.TASK_STATUS_IGNORED)
            await trio.testing.wait_all_tasks_blocked()
            [state, _] = scheduler.executors()
            assert (state.busy_slots, state.free_slots) == (0, 1)
            scheduler.attach("one")
            [state, _] = scheduler.executors()
            assert (state.away, state.busy_slots, state.free_slots) == (None, 1, 0)
            slots.cancel_scope.cancel()


async def test_a_loss_on_an_executor_that_has_gone_is_told_as_a_wait() -> None:  # EXE-14
    async with opened() as scheduler:
        operation = submit(scheduler, "a", "one")
        async with scheduler.lease("one") as lease:
            lease.started(STARTED)
            scheduler.detach("one", "is drained")
            assert note_of(operation) is None
        assert stage_of(operation) is Stage.QUEUED
        note = note_of(operation)
        assert note
        assert "is drained" in note.reason


async def test_a_server_that_stops_ends_what_runs_and_hands_back_the_rest(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:  # SCH-06
    async with opened() as scheduler:
        quick, slow, waits = (submit(scheduler, name, "one") for name in ("quick", "slow", "waits"))
        ends = Slot(scheduler, "one")
        lease: Lease = await nursery.start(ends.run)
        too_long: Lease = await nursery.start(Slot(scheduler, "one").run)
        too_long.started(STARTED)
        told: list[Draining] = []

        async def follow(operation: Operation) -> None:
            try:
                await operation.wait_completed()
            except Draining as error:
                told.append(error)

        async with trio.open_nursery() as clients:
            for operation in (quick, slow, waits):
                clients.start_soon(follow, operation)
            await trio.testing.wait_all_tasks_blocked()
            begun = trio.current_time()
            clients.start_soon(scheduler.drain, 20)
            await trio.sleep(1)
            for attempt in (submit, lambda s, n: s.join(make_action(n), priority=0)):
                with pytest.raises(Draining) as info:
                    attempt(scheduler, "quick")
                assert 19 <= info.value.retry_after_seconds <= 21
            assert lease.complete(DONE)
            await ends.let_go()
            nursery.start_soon(Slot(scheduler, "one").run, trio.TASK_STATUS_IGNORED)
        assert trio.current_time() - begun == pytest.approx(20)
        assert quick.outcome is DONE
        assert too_long.scope.cancel_called
        assert not too_long.complete(DONE)
        # Both wait, and the last attempt was none: so it is in the journal.
        assert (slow.stage, waits.stage, scheduler.queued) == (Stage.QUEUED, Stage.QUEUED, 2)
        assert too_long.assignment.task.attempts == 0
        assert [error.retry_after_seconds > 0 for error in told] == [True, True]
        with pytest.raises(Draining):  # so is who asks only now
            await waits.wait_change(waits.version)
        nursery.cancel_scope.cancel()


async def test_who_has_no_more_patience_gets_all_back_at_once(nursery: trio.Nursery) -> None:
    async with opened() as scheduler:
        operation = submit(scheduler, "a")
        lease: Lease = await nursery.start(Slot(scheduler, "one").run)
        with trio.CancelScope() as patience:
            nursery.start_soon(scheduler.drain, 1000)
            await trio.testing.wait_all_tasks_blocked()
            patience.cancel()
            await scheduler.drain(1000)
        assert patience.cancelled_caught
        assert lease.scope.cancel_called
        assert (operation.stage, scheduler.executing) == (Stage.QUEUED, 0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seconds", [1e300, 1e12])
async def test_the_wait_for_an_executor_may_be_without_bound(seconds: float) -> None:  # EXE-14
    async with opened(wait_for_executor_seconds=seconds) as scheduler:
        operation = submit(scheduler, "a", "one")
        scheduler.detach("one", "is away")
        note = note_of(operation)
        assert note is not None
        assert not note.HasField("until")
        assert "is away" in note.reason


async def test_no_executor_can_put_off_the_end_of_a_server(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:  # SCH-06
    async with opened() as scheduler:
        submit(scheduler, "a")
        slot = Slot(scheduler, "one")
        lease: Lease = await nursery.start(slot.run)
        begun = trio.current_time()
        nursery.start_soon(scheduler.drain, 5)
        await trio.sleep(1)
        assert lease.renew(1000)
        with trio.move_on_after(100):
            while not lease.scope.cancel_called:
                await trio.sleep(0.5)
        assert trio.current_time() - begun == pytest.approx(5, abs=0.5)
        await slot.let_go()


async def test_who_waits_for_another_executor_hears_nothing_of_one_that_goes() -> None:  # EXE-14
    async with opened() as scheduler:
        operation = submit(scheduler, "a", "one")
        scheduler.detach("one", "is away")
        version = operation.version
        scheduler.detach("two", "is away")
        assert operation.version == version


async def test_a_server_without_work_stops_at_once() -> None:
    async with opened() as scheduler:
        submit(scheduler, "a")
        with trio.fail_after(5):
            await scheduler.drain(1000)


async def test_what_is_on_its_way_to_a_slot_counts_as_running(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:  # SCH-06
    async with opened() as scheduler:
        nursery.start_soon(Slot(scheduler, "one").run, trio.TASK_STATUS_IGNORED)
        await trio.testing.wait_all_tasks_blocked()
        operation = submit(scheduler, "a")
        with trio.fail_after(6):
            await scheduler.drain(5)
        assert (operation.stage, scheduler.executing) == (Stage.QUEUED, 0)
        nursery.cancel_scope.cancel()


async def test_what_is_handed_back_is_not_abandoned(
    autojump_clock: trio.testing.MockClock,
) -> None:  # SCH-06, OPS-08
    async with opened(abandoned_after_seconds=1) as scheduler:
        operation = submit(scheduler, "a")
        with scheduler.watching(operation):
            pass
        await scheduler.drain(5)
        await trio.sleep(2)
        assert operation.outcome is None, "its client may come back to the next server"
