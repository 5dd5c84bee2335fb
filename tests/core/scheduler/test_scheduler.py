"""The scheduler on trio: operations, leases, cancellation, abandonment."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.testing

from stoker.action import LoadedAction, Outcome
from stoker.digest import SHA256
from stoker.errors import Cancelled, InternalError, OperationNotFound, Unavailable
from stoker.log_streams.names import StreamNames
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Capacity
from stoker.scheduler.journal_rows import Kept, Request
from stoker.scheduler.matching import Offer
from stoker.scheduler.operation import Operation
from stoker.scheduler.queue import Stage
from stoker.scheduler.scheduler import Scheduler, open_scheduler
from stoker.scheduler.settings import SchedulerSettings
from stoker.scheduler.slots import FileResult, Run, serve_slot
from stoker.scheduler.suspects import Waiting

CAPACITY = Capacity.of_executor(slots=4, cpus=4, memory_bytes=2**30, default_memory_bytes=None)
EXECUTORS = {"one": Offer({"OSFamily": ("linux",)}, CAPACITY)}


def make_action(name: str, *, cacheable: bool = True, cpus: str = "1") -> LoadedAction:
    return LoadedAction(
        namespace="team",
        digest=SHA256.digest(name.encode()),
        action=reapi.Action(do_not_cache=not cacheable),
        command=reapi.Command(arguments=["true"]),
        input_root=SHA256.empty,
        platform={"cpus": (cpus,)},
        timeout_seconds=None,
    )


def opened(**settings: float) -> AbstractAsyncContextManager[Scheduler]:
    return open_scheduler(EXECUTORS, SchedulerSettings(**settings))  # type: ignore[arg-type] # floats for the counts too


def submit(
    scheduler: Scheduler, name: str, *, cacheable: bool = True, cpus: str = "1"
) -> Operation:
    action = make_action(name, cacheable=cacheable, cpus=cpus)
    return scheduler.submit(action, priority=0, executors=EXECUTORS)


async def ended(operation: Operation) -> Outcome:
    while operation.outcome is None:
        await operation.wait_change(operation.version)
    return operation.outcome


class Executor:
    """Runs actions as it is told, and remembers what it was given and what was filed."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.ran: list[str] = []
        self.filed: list[str] = []
        self.release = trio.Event()
        self.outcome: Callable[[], Outcome] = lambda: Outcome(result=reapi.ActionResult())

    async def run(
        self, action: LoadedAction, started: Callable[[reapi.ExecutedActionMetadata], None]
    ) -> Outcome:
        started(reapi.ExecutedActionMetadata(worker="one"))
        self.ran.append(action.digest.hash)
        self.running.add(action.digest.hash)
        try:
            await self.release.wait()
        finally:
            self.running.remove(action.digest.hash)
        return self.outcome()

    async def file_result(self, action: LoadedAction, _: reapi.ActionResult) -> None:
        self.filed.append(action.digest.hash)

    def start(self, nursery: trio.Nursery, scheduler: Scheduler, slots: int = 1) -> None:
        run: Run = self.run
        file_result: FileResult = self.file_result
        for _ in range(slots):
            nursery.start_soon(serve_slot, scheduler, "one", run, file_result)


async def test_an_action_runs_and_is_filed_before_anybody_hears(nursery: trio.Nursery) -> None:
    executor = Executor()
    async with opened() as scheduler:
        operation = submit(scheduler, "a")
        assert operation.outcome is None
        assert operation.metadata.HasField("queued_timestamp")
        executor.start(nursery, scheduler)
        await trio.testing.wait_all_tasks_blocked()
        assert operation.stage is Stage.EXECUTING
        assert operation.metadata.worker == "one"  # OPS-15
        executor.release.set()
        outcome = await ended(operation)
        assert executor.filed == [operation.action_digest.hash]  # RUN-33
        assert outcome.result is not None
        assert outcome.result.execution_metadata.HasField("queued_timestamp")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("outcome", "cacheable"),
    [
        (Outcome(result=reapi.ActionResult(), error=Unavailable("lost")), True),  # RUN-24
        (Outcome(result=reapi.ActionResult(), reusable=False), True),  # RUN-23
        (Outcome(result=reapi.ActionResult()), False),  # EXE-20
    ],
)
async def test_what_must_not_be_served_again_is_not_filed(
    nursery: trio.Nursery, outcome: Outcome, cacheable: bool
) -> None:
    executor = Executor()
    executor.outcome = lambda: outcome
    executor.release.set()
    async with opened() as scheduler:
        executor.start(nursery, scheduler)
        await ended(submit(scheduler, "a", cacheable=cacheable))
        assert executor.filed == []
        nursery.cancel_scope.cancel()


async def test_twins_share_a_run_and_one_may_go(nursery: trio.Nursery) -> None:  # EXE-21
    executor = Executor()
    async with opened() as scheduler:
        executor.start(nursery, scheduler, slots=2)
        one, two = submit(scheduler, "a"), submit(scheduler, "a")
        assert one.name != two.name
        await trio.testing.wait_all_tasks_blocked()
        assert len(executor.running) == 1
        scheduler.cancel(one)
        await trio.testing.wait_all_tasks_blocked()
        assert len(executor.running) == 1
        executor.release.set()
        assert (await ended(two)).error is None
        assert isinstance((await ended(one)).error, Cancelled)
        assert len(executor.ran) == 1
        nursery.cancel_scope.cancel()


async def test_a_late_twin_knows_at_once_how_far_it_is(nursery: trio.Nursery) -> None:
    executor = Executor()
    async with opened() as scheduler:
        executor.start(nursery, scheduler)
        submit(scheduler, "a")
        await trio.testing.wait_all_tasks_blocked()
        late = submit(scheduler, "a")
        assert (late.stage, late.metadata.worker) == (Stage.EXECUTING, "one")
        nursery.cancel_scope.cancel()


async def test_cancelling_the_last_operation_stops_the_run(nursery: trio.Nursery) -> None:  # OPS-18
    executor = Executor()
    async with opened() as scheduler:
        executor.start(nursery, scheduler)
        operation = submit(scheduler, "a")
        await trio.testing.wait_all_tasks_blocked()
        scheduler.cancel(operation)
        scheduler.cancel(operation)
        await trio.testing.wait_all_tasks_blocked()
        assert not executor.running
        assert (scheduler.queued, scheduler.executing) == (0, 0)
        executor.release.set()
        assert (await ended(submit(scheduler, "a"))).error is None  # the slot serves on
        nursery.cancel_scope.cancel()


async def test_what_nobody_waits_for_is_stopped_after_a_while(nursery: trio.Nursery) -> None:
    executor = Executor()
    async with opened(abandoned_after_seconds=0.0) as scheduler:
        executor.start(nursery, scheduler)
        operation = submit(scheduler, "a")
        with scheduler.watching(operation):
            with scheduler.watching(operation):
                await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert executor.running
        assert isinstance((await ended(operation)).error, Cancelled)  # OPS-08
        nursery.cancel_scope.cancel()


async def test_a_watcher_who_returns_in_time_keeps_the_run_alive(nursery: trio.Nursery) -> None:
    async with opened(abandoned_after_seconds=0.05) as scheduler:
        operation = submit(scheduler, "a")
        with scheduler.watching(operation):
            pass
        with scheduler.watching(operation):
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert operation.outcome is None
        nursery.cancel_scope.cancel()


async def test_a_lost_lease_is_tried_again_and_then_told() -> None:  # OPS-14
    async with opened() as scheduler:
        operation = submit(scheduler, "a")
        stages = []
        for _ in range(3):
            async with scheduler.lease("one") as lease:
                lease.started(reapi.ExecutedActionMetadata(worker="one"))
            stages.append(operation.stage)
        assert stages == [Stage.QUEUED, Stage.QUEUED, Stage.COMPLETED]
        error = (await ended(operation)).error
        assert isinstance(error, Unavailable)
        assert str(error).endswith("lost 3 times by its executors: one, one, one")


async def test_streams_are_those_of_one_attempt() -> None:  # OPS-14, OPS-16
    first, second = StreamNames("a", "b"), StreamNames("c", "d")
    async with opened() as scheduler:
        operation = submit(scheduler, "a")
        async with scheduler.lease("one") as lease:
            lease.started(reapi.ExecutedActionMetadata(worker="one"), first)
            twin = submit(scheduler, "a")
            told = [operation.streams, twin.streams]
        told += [operation.streams, twin.streams]
        async with scheduler.lease("one") as lease:
            lease.started(reapi.ExecutedActionMetadata(worker="one"), second)
            lease.complete(Outcome(result=reapi.ActionResult()))
        told += [operation.streams, twin.streams]
        assert told == [first, first, None, None, second, second]


async def test_a_consumed_property_is_shared_out() -> None:  # SCH-01, SCH-04
    offers = {"one": Offer({"gpus": ("2",)}, CAPACITY)}
    settings = SchedulerSettings(properties={"gpus": "consumed"})
    async with open_scheduler(offers, settings) as scheduler, trio.open_nursery() as nursery:
        begun: list[str] = []

        async def hold(release: trio.Event) -> None:
            async with scheduler.lease("one") as lease:
                begun.append(lease.action.target)
                await release.wait()
                lease.complete(Outcome(result=reapi.ActionResult()))

        releases = [trio.Event() for _ in range(3)]
        for release in releases:
            nursery.start_soon(hold, release)
        for gpus in ("1.5", "1", "0.5"):
            platform = {"gpus": (gpus,)}
            action = replace(make_action(gpus), platform=platform, target=gpus)
            scheduler.submit(action, priority=0, executors=offers)
        await trio.testing.wait_all_tasks_blocked()
        assert begun == ["1.5"]  # what is left is saved for the second
        for release in releases:
            release.set()
    assert sorted(begun) == ["0.5", "1", "1.5"]


async def test_a_bug_in_the_executor_costs_one_action(nursery: trio.Nursery) -> None:  # GEN-27
    executor = Executor()
    executor.outcome = lambda: 1 // 0  # type: ignore[assignment,return-value] # it raises
    executor.release.set()
    async with opened() as scheduler:
        executor.start(nursery, scheduler)
        outcome = await ended(submit(scheduler, "a"))
        assert isinstance(outcome.error, InternalError)
        assert "division" not in str(outcome.error)
        executor.outcome = lambda: Outcome(result=reapi.ActionResult())
        assert (await ended(submit(scheduler, "b"))).error is None
        nursery.cancel_scope.cancel()


async def test_a_bug_beside_a_cancellation_costs_one_action(nursery: trio.Nursery) -> None:
    executor = Executor()

    async def run(
        action: LoadedAction, started: Callable[[reapi.ExecutedActionMetadata], None]
    ) -> Outcome:
        if action.mnemonic == "sound":
            return Outcome(result=reapi.ActionResult())
        try:
            return await executor.run(action, started)
        except trio.Cancelled as cancelled:
            raise BaseExceptionGroup("both", [cancelled, ValueError("a bug")]) from None

    async with opened() as scheduler:
        nursery.start_soon(serve_slot, scheduler, "one", run, executor.file_result)
        operation = submit(scheduler, "a")
        await trio.testing.wait_all_tasks_blocked()
        scheduler.cancel(operation)
        await trio.testing.wait_all_tasks_blocked()
        sound = replace(make_action("b"), mnemonic="sound")
        assert (await ended(scheduler.submit(sound, priority=0, executors=EXECUTORS))).error is None
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [OSError("disk"), KeyError("bug"), Unavailable("away")])
async def test_a_cache_that_fails_costs_nobody_a_result(
    nursery: trio.Nursery, error: Exception
) -> None:
    executor = Executor()
    executor.release.set()

    async def fail(_: LoadedAction, __: reapi.ActionResult) -> None:
        raise error

    async with opened() as scheduler:
        nursery.start_soon(serve_slot, scheduler, "one", executor.run, fail)
        for name in "ab":
            assert (await ended(submit(scheduler, name))).error is None
        nursery.cancel_scope.cancel()


async def test_it_is_known_which_actions_have_just_ended(nursery: trio.Nursery) -> None:  # EXE-21
    executor = Executor()
    executor.release.set()
    async with opened() as scheduler:
        before = scheduler.end_count
        action = make_action("a")
        assert scheduler.join(action, priority=0) is None
        operation = submit(scheduler, "a")
        assert scheduler.join(action, priority=0) is not None
        executor.start(nursery, scheduler)
        await ended(operation)
        assert scheduler.join(action, priority=0) is None
        assert scheduler.ended_since(action, before)
        assert not scheduler.ended_since(action, scheduler.end_count)
        assert not scheduler.ended_since(make_action("b"), before)
        nursery.cancel_scope.cancel()


async def test_ended_operations_are_kept_up_to_a_bound(nursery: trio.Nursery) -> None:  # OPS-13
    async with opened(max_retained_bytes=4096) as scheduler:
        action = make_action("a")
        done = [scheduler.submit_completed(action, Outcome(cached=True)) for _ in range(4)]
        assert scheduler.find(done[-1].name, "") is done[-1]  # OPS-09
        assert scheduler.operations_after(0) == done[-2:]
        assert scheduler.operations_after(done[-2].number) == done[-1:]
        with pytest.raises(OperationNotFound):
            scheduler.find(done[0].name, "")
        nursery.cancel_scope.cancel()


async def test_ended_operations_are_kept_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:  # OPS-13
    async with opened(retention_seconds=100) as scheduler:
        operation = scheduler.submit_completed(make_action("a"), Outcome(cached=True))
        await trio.sleep(99)
        assert scheduler.find(operation.name, "") is operation
        await trio.sleep(2)
        with pytest.raises(OperationNotFound):
            scheduler.find(operation.name, "")


async def test_names_carry_the_instance_and_cannot_be_guessed() -> None:  # OPS-02
    async with opened() as scheduler:
        names = {submit(scheduler, "a").name for _ in range(100)}
        assert len(names) == 100
        assert all(name.startswith("team/operations/") and len(name) >= 48 for name in names)


async def test_no_slot_and_no_action_is_lost_in_a_storm_of_cancels(
    nursery: trio.Nursery,
) -> None:
    rng = random.Random(7)
    executor = Executor()
    executor.release.set()

    async def flaky(
        action: LoadedAction, started: Callable[[reapi.ExecutedActionMetadata], None]
    ) -> Outcome:
        for _ in range(rng.randrange(4)):
            await trio.lowlevel.checkpoint()
        return await executor.run(action, started)

    async def slot(scheduler: Scheduler) -> None:
        for _ in range(40):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(serve_slot, scheduler, "one", flaky, executor.file_result)
                    for _ in range(rng.randrange(12)):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

    async def client(scheduler: Scheduler, number: int) -> None:
        for _ in range(rng.randrange(10)):
            await trio.lowlevel.checkpoint()
        operation = submit(
            scheduler, f"a{number % 20}", cacheable=number % 3 != 0, cpus=f"{number % 4 + 1}"
        )
        if number % 2:
            scheduler.cancel(operation)
        else:
            await ended(operation)

    async with opened() as scheduler:
        async with trio.open_nursery() as clients:
            for number in range(120):
                clients.start_soon(client, scheduler, number)
            async with trio.open_nursery() as slots:
                for _ in range(3):
                    slots.start_soon(partial(slot, scheduler))
            executor.start(nursery, scheduler, slots=2)
        await trio.testing.wait_all_tasks_blocked()
        assert (scheduler.queued, scheduler.executing) == (0, 0)
        assert scheduler.free("one") == CAPACITY.total  # SCH-04
        nursery.cancel_scope.cancel()


async def test_what_is_cancelled_keeps_its_processors_until_it_has_ended(
    nursery: trio.Nursery,
) -> None:  # SCH-04
    cleaned = trio.Event()
    executor = Executor()

    async def slow_to_end(
        action: LoadedAction, started: Callable[[reapi.ExecutedActionMetadata], None]
    ) -> Outcome:
        try:
            return await executor.run(action, started)
        finally:
            with trio.CancelScope(shield=True):
                await cleaned.wait()

    async with opened() as scheduler:
        for _ in range(2):
            nursery.start_soon(serve_slot, scheduler, "one", slow_to_end, executor.file_result)
        whole = submit(scheduler, "whole", cpus="4")
        await trio.testing.wait_all_tasks_blocked()
        waits = submit(scheduler, "waits", cpus="4")
        scheduler.cancel(whole)
        await trio.testing.wait_all_tasks_blocked()
        assert (waits.stage, len(executor.ran)) == (Stage.QUEUED, 1)
        cleaned.set()
        executor.release.set()
        assert (await ended(waits)).error is None
        nursery.cancel_scope.cancel()


async def test_what_is_cancelled_on_its_way_to_a_slot_gives_all_back(
    nursery: trio.Nursery,
) -> None:  # SCH-04
    executor = Executor()
    async with opened() as scheduler:
        executor.start(nursery, scheduler)
        await trio.testing.wait_all_tasks_blocked()
        operation = submit(scheduler, "a", cpus="4")
        assert scheduler.free("one").millicpus == 0
        scheduler.cancel(operation)
        await trio.testing.wait_all_tasks_blocked()
        assert executor.ran == []
        assert scheduler.free("one") == CAPACITY.total
        nursery.cancel_scope.cancel()


async def test_a_slow_watcher_sees_the_latest_and_the_end() -> None:  # OPS-23
    async with opened() as scheduler:
        operation = submit(scheduler, "a")
        seen = operation.version
        async with scheduler.lease("one") as lease:
            for number in range(1000):
                lease.started(reapi.ExecutedActionMetadata(worker=f"{number}"))
            await operation.wait_change(seen)
            assert (operation.stage, operation.metadata.worker) == (Stage.EXECUTING, "999")
            seen = operation.version
            lease.complete(Outcome(result=reapi.ActionResult()))
        await operation.wait_change(seen)
        assert operation.stage is Stage.COMPLETED


async def test_a_result_that_is_being_filed_is_not_shared_with_who_wants_a_fresh_one(
    nursery: trio.Nursery,
) -> None:  # EXE-19
    filing, filed = trio.Event(), trio.Event()

    async def run(
        _action: LoadedAction, started: Callable[[reapi.ExecutedActionMetadata], None]
    ) -> Outcome:
        started(reapi.ExecutedActionMetadata(worker="one"))
        return Outcome(result=reapi.ActionResult())

    async def file_result(_action: LoadedAction, _: reapi.ActionResult) -> None:
        filing.set()
        await filed.wait()

    waited: list[Stage] = []

    async def wait_filed() -> None:
        await scheduler.wait_filed(make_action("a"))
        waited.append(first.stage)

    async with opened() as scheduler:
        await scheduler.wait_filed(make_action("a"))
        first = submit(scheduler, "a")
        await scheduler.wait_filed(make_action("a"))  # it is joined: nobody can see its result
        nursery.start_soon(serve_slot, scheduler, "one", run, file_result)
        await filing.wait()
        async with trio.open_nursery() as waiters:
            waiters.start_soon(wait_filed)
            await trio.testing.wait_all_tasks_blocked()
            assert waited == []
            filed.set()
        assert waited == [Stage.COMPLETED]
        nursery.cancel_scope.cancel()


async def test_what_is_never_looked_up_is_not_kept(nursery: trio.Nursery) -> None:
    executor = Executor()
    executor.release.set()
    async with opened() as scheduler:
        executor.start(nursery, scheduler)
        # The slot has the last one still.
        for name in ("secret", "last"):
            await submit(scheduler, name, cacheable=False).wait_completed()
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        digest = make_action("secret").digest
        held = [each for each in gc.get_objects() if isinstance(each, LoadedAction)]
        assert [each for each in held if each.digest == digest] == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("max_queued", [0, 1, 9])
async def test_more_than_may_be_queued_is_let_in_in_its_order(
    nursery: trio.Nursery, max_queued: int
) -> None:  # SCH-07
    executor, names = Executor(), "abcde"
    executor.release.set()
    async with opened(max_queued=max_queued) as scheduler:
        actions = [make_action(name) for name in names]
        request = Request(0, skip_cache_lookup=False, metadata=reapi.RequestMetadata())
        operations = [
            Operation(name=name, number=i, namespace="team", action_digest=action.digest)
            for i, (name, action) in enumerate(zip(names, actions, strict=True))
        ]
        scheduler.restore([Kept(operation, request, 0) for operation in operations])
        for operation, action in zip(operations, actions, strict=True):
            scheduler.resume(Waiting(operation, action, 0, EXECUTORS))
        executor.start(nursery, scheduler)
        await trio.testing.wait_all_tasks_blocked()
        assert executor.ran == [action.digest.hash for action in actions]
        nursery.cancel_scope.cancel()


async def test_a_run_does_not_grow_with_those_who_come_and_go() -> None:
    async with opened() as scheduler:
        first = submit(scheduler, "a")
        for _ in range(3000):
            scheduler.cancel(submit(scheduler, "a"))
        record = scheduler.run_of(first)
        assert record is not None
        assert record.sharers[0].name == first.name
        assert len(record.sharers) <= 1000


FAVOURED = ("Link", "Javac", "Test")


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        (SchedulerSettings(), "d a b c e"),
        (SchedulerSettings(high_priority_mnemonics=FAVOURED), "d b c e a"),
        # Overdue at once: after three that came later, it is the turn of the first.
        (SchedulerSettings(ageing_seconds=0, high_priority_mnemonics=FAVOURED), "d b c a e"),
    ],
)
async def test_order_is_as_it_is_set(
    nursery: trio.Nursery, settings: SchedulerSettings, order: str
) -> None:  # SCH-02
    executor = Executor()
    executor.release.set()
    mnemonics = dict(zip("bce", FAVOURED, strict=True))
    async with open_scheduler(EXECUTORS, settings) as scheduler:
        operations = {}
        for name in "abcde":
            action = replace(make_action(name), mnemonic=mnemonics.get(name, ""))
            priority = -1 if name == "d" else 0
            operation = scheduler.submit(action, priority=priority, executors=EXECUTORS)
            operations[operation.action_digest.hash] = name, operation
        executor.start(nursery, scheduler)
        for _, operation in operations.values():
            await ended(operation)
        assert " ".join(operations[hash_][0] for hash_ in executor.ran) == order
        nursery.cancel_scope.cancel()
