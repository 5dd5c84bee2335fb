"""How much is taken in, and when those that are turned away are told to come again (EXE-25)."""

from __future__ import annotations

import gc
import time
from collections import Counter
from dataclasses import replace

import pytest
import trio
import trio.testing

from stoker.action import LoadedAction
from stoker.errors import Overloaded
from stoker.scheduler.admission import MAX_DELAY_SECONDS, MIN_DELAY_SECONDS, Bound, Limit
from stoker.scheduler.journal import Journal
from stoker.scheduler.losses import Loss, key_of
from stoker.scheduler.operation import Operation
from stoker.scheduler.scheduler import Scheduler, open_scheduler
from stoker.scheduler.settings import SchedulerSettings
from stoker.scheduler.task import Stage, Task

from .test_scheduler import EXECUTORS, Executor, ended, make_action


def opened_limit(total: int, each: int) -> Limit:
    return Limit("are queued", "max_queued", total, lambda _: each, 0)


def filled(limit: int, *, left_every: float, until: float) -> Bound:
    """A bound that is full again each time something has left."""
    bound = Bound(limit, 0)
    bound.count = limit
    times = int(until / left_every)
    for i in range(1, times + 1):
        bound.count += 1
        bound.leave(i * left_every)
    return bound


@pytest.mark.parametrize("left_every", [0.25, 2.0, 10.0])
def test_the_delay_is_what_the_next_place_takes(left_every: float) -> None:
    bound = filled(5, left_every=left_every, until=left_every * 200)
    now = left_every * 200
    assert bound.promise(now) == pytest.approx(left_every)


def test_the_refused_come_back_no_faster_than_places_become_free() -> None:
    bound = filled(5, left_every=0.5, until=100)
    assert [bound.promise(100) for _ in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    # Whose time has come has had its chance: the next one does not wait for it too.
    for i in range(20):
        bound.count += 1
        bound.leave(100.5 + i / 2)
    assert bound.promise(110) == pytest.approx(0.5, rel=0.1)


def test_a_queue_that_does_not_move_tells_so_within_bounds() -> None:
    bound = Bound(5, 0)
    bound.count = 5
    assert bound.promise(0) == MIN_DELAY_SECONDS
    assert bound.promise(10) == pytest.approx(10)
    assert bound.promise(10**6) == MAX_DELAY_SECONDS
    assert [bound.promise(10**6) for _ in range(10)] == [MAX_DELAY_SECONDS] * 10
    stalled = filled(5, left_every=0.01, until=10)
    assert stalled.promise(10) == MIN_DELAY_SECONDS
    assert stalled.promise(640) > 5


def test_limits_are_told_with_figure_and_way_out() -> None:
    limit = opened_limit(3, 2)
    for who in ("alice", "alice", "bob"):
        limit.check(who, 0)
        limit.enter(who, 0)
    with pytest.raises(Overloaded) as info:
        limit.check("bob", 5)
    assert str(info.value) == (
        "3 are queued already, as many as `max_queued` in [scheduler] allows: try again in 5.0 s, "
        "ask for less at once, or have the server allow more"
    )
    assert info.value.retry_after_seconds == pytest.approx(5)
    limit.leave("bob", 5)
    limit.check("bob", 5)
    with pytest.raises(Overloaded) as info:
        limit.check("alice", 5)
    assert str(info.value).startswith(
        "2 are queued of client 'alice' already, as many as `max_queued_per_principal` in"
    )
    for _ in range(2):
        limit.leave("alice", 6)
    assert (limit.count, limit.clients) == (0, 0)


def test_what_one_client_may_have_unless_it_is_set() -> None:
    limits = SchedulerSettings(max_queued=5, max_in_flight=7, max_streams_per_principal=2).limits(0)

    def most(limit: Limit, principal: str) -> int:
        for count in range(100):
            try:
                limit.check(principal, 0)
            except Overloaded:
                return count
            limit.enter(principal, 0)
        raise AssertionError("there is no limit")

    assert [most(limit, "alice") for limit in limits] == [2, 3, 2]
    assert [most(limits.queued, name) for name in ("bob", "carol")] == [2, 1]
    assert most(SchedulerSettings(max_queued=5).limits(0).queued, "") == 5


def submit(
    scheduler: Scheduler, name: str, principal: str = "", *, cacheable: bool = True
) -> Operation:
    action = replace(make_action(name, cacheable=cacheable), principal=principal)
    return scheduler.submit(action, priority=0, executors=EXECUTORS)


def alive() -> Counter[str]:
    gc.collect()
    kinds = (LoadedAction, Operation, Task, Overloaded)
    return Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, kinds))


LIMITS = [
    (SchedulerSettings(max_queued=3), "max_queued"),
    (SchedulerSettings(max_queued_per_principal=3), "max_queued_per_principal"),
    (SchedulerSettings(max_in_flight=3), "max_in_flight"),
    (SchedulerSettings(max_in_flight_per_principal=3), "max_in_flight_per_principal"),
]


@pytest.mark.parametrize(("settings", "name"), LIMITS)
async def test_what_is_refused_leaves_nothing(
    settings: SchedulerSettings, name: str, nursery: trio.Nursery
) -> None:  # EXE-25
    executor = Executor()
    async with open_scheduler(EXECUTORS, settings) as scheduler:
        accepted = [submit(scheduler, str(i)) for i in range(3)]
        before = alive()
        for i in range(50):
            with pytest.raises(Overloaded, match=f"`{name}` in"):
                submit(scheduler, f"more {i}", cacheable=i % 2 == 0)
        assert alive() == before
        assert scheduler.operations_after(0) == accepted
        assert scheduler.queued == 3
        # All that was counted is given back: as many find room again.
        executor.release.set()
        executor.start(nursery, scheduler, slots=2)
        for operation in accepted:
            await ended(operation)
        for operation in [submit(scheduler, f"later {i}") for i in range(3)]:
            await ended(operation)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("settings", "name"), LIMITS)
async def test_what_is_cancelled_makes_room(settings: SchedulerSettings, name: str) -> None:
    async with open_scheduler(EXECUTORS, settings) as scheduler:
        for _ in range(3):
            operations = [submit(scheduler, str(i)) for i in range(3)]
            with pytest.raises(Overloaded, match=f"`{name}` in"):
                submit(scheduler, "one too many")
            for operation in operations:
                scheduler.cancel(operation)
        assert scheduler.queued == 0


async def test_twins_in_flight_are_bounded_too(nursery: trio.Nursery) -> None:  # EXE-21, EXE-25
    async with open_scheduler(EXECUTORS, SchedulerSettings(max_in_flight=5)) as scheduler:
        for _ in range(5):
            submit(scheduler, "a")
        with pytest.raises(Overloaded):
            scheduler.join(make_action("a"), priority=0)
        nursery.cancel_scope.cancel()


async def test_a_client_at_its_limit_keeps_nobody_else_out() -> None:
    settings = SchedulerSettings(max_queued=4)
    async with open_scheduler(EXECUTORS, settings) as scheduler:
        for i in range(2):
            submit(scheduler, f"alice's {i}", "alice")
        with pytest.raises(Overloaded, match="client 'alice'"):
            submit(scheduler, "alice's last", "alice")
        # A share in a run that is there already takes no place in the queue.
        submit(scheduler, "alice's 0", "alice")
        submit(scheduler, "bob's", "bob")
        assert scheduler.queued == 3


async def test_calls_that_wait_are_bounded() -> None:  # EXE-25
    settings = SchedulerSettings(max_streams=2)
    async with open_scheduler(EXECUTORS, settings) as scheduler:

        def refusal(principal: str) -> str:
            with pytest.raises(Overloaded) as info, scheduler.waiting(principal):
                raise AssertionError("there were too many")
            return str(info.value)

        with scheduler.waiting("alice"):
            assert "1 calls wait for operations of client 'alice' already" in refusal("alice")
            with scheduler.waiting("bob"):
                assert "`max_streams` in [scheduler]" in refusal("carol")
        with scheduler.waiting("alice"):
            pass


async def test_what_an_executor_has_takes_no_place_in_the_queue(nursery: trio.Nursery) -> None:
    settings = SchedulerSettings(max_queued=0, max_queued_per_principal=1)
    executor = Executor()
    async with open_scheduler(EXECUTORS, settings) as scheduler:
        executor.start(nursery, scheduler, slots=3)
        await trio.testing.wait_all_tasks_blocked()
        # The slots have not run since: as far as anybody was told, all of these are queued.
        operations = [submit(scheduler, str(i), "alice") for i in range(3)]
        assert {operation.stage for operation in operations} == {Stage.QUEUED}
        with pytest.raises(Overloaded, match="0 actions are queued already"):
            submit(scheduler, "one too many", "alice")
        executor.release.set()
        for operation in operations:
            await ended(operation)
        nursery.cancel_scope.cancel()


async def test_what_an_executor_takes_makes_room_at_once(nursery: trio.Nursery) -> None:
    settings = SchedulerSettings(max_queued_per_principal=1)
    executor = Executor()
    async with open_scheduler(EXECUTORS, settings) as scheduler:
        submit(scheduler, "first")
        with pytest.raises(Overloaded, match="`max_queued_per_principal` in"):
            submit(scheduler, "second")
        executor.start(nursery, scheduler)
        await trio.testing.wait_all_tasks_blocked()
        # The first runs, and will do so for a while.
        second = submit(scheduler, "second")
        executor.release.set()
        await ended(second)
        nursery.cancel_scope.cancel()


async def test_what_is_kept_back_is_queued_too() -> None:  # EXE-25, SCH-10
    settings = SchedulerSettings(max_queued=2, max_server_losses=2)
    journal = Journal(settings.bounds)
    for name in "abcd":
        loss = Loss(time.time_ns(), time.time_ns(), "one", with_server=True)
        journal.losses.note(key_of(make_action(name)), loss)
    async with open_scheduler(EXECUTORS, settings, journal) as scheduler:
        for name in "ab":
            scheduler.submit(make_action(name), priority=0, executors=EXECUTORS)
        for name in "cd":
            with pytest.raises(Overloaded, match="`max_queued`"):
                scheduler.submit(make_action(name), priority=0, executors=EXECUTORS)
