"""The queue alone: it is pure, so that a naive model can say what it must do."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stoker.action import LoadedAction
from stoker.digest import SHA256
from stoker.errors import FailedPrecondition, InvalidRequest, Overloaded
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Capacity
from stoker.scheduler.matching import Offer
from stoker.scheduler.queue import Assignment, Queue, Stage, Task

GIB = 1024**3
SMALL = Capacity.of_executor(slots=4, cpus=4, memory_bytes=4 * GIB, default_memory_bytes=None)
LARGE = Capacity.of_executor(slots=8, cpus=8, memory_bytes=16 * GIB, default_memory_bytes=GIB)
EXECUTORS = {
    "linux": Offer({"OSFamily": ("linux",)}, SMALL),
    "any": Offer({"OSFamily": ("*",)}, LARGE),
}


def make_action(
    name: str, platform: Mapping[str, tuple[str, ...]] | None = None, *, cacheable: bool = True
) -> LoadedAction:
    return LoadedAction(
        namespace="",
        digest=SHA256.digest(name.encode()),
        action=reapi.Action(do_not_cache=not cacheable),
        command=reapi.Command(arguments=["true"]),
        input_root=SHA256.empty,
        platform=platform or {},
        timeout_seconds=None,
    )


def make_queue(max_queued: int = 100) -> Queue:
    return Queue(EXECUTORS, max_queued=max_queued)


def add(queue: Queue, name: str, priority: int = 0, **platform: str) -> Task:
    """The task of an action that asks by these properties."""
    asked = {key: (value,) for key, value in platform.items()}
    return queue.add(make_action(name, asked), priority, EXECUTORS)[0]


def offer(queue: Queue, executor: str) -> Task | None:
    """The task for a slot of `executor`."""
    assignments = queue.offer(executor)
    assert len(assignments) <= 1
    assert all(name == executor for _, name in assignments)
    return assignments[0].task if assignments else None


def end(queue: Queue, task: Task) -> list[Assignment]:
    """`task` ends, its executor lets go of it, and offers its slot again."""
    executor = task.executor
    assert executor is not None
    return [*queue.complete(task), *queue.release(task), *queue.offer(executor)]


def test_a_free_slot_is_handed_the_action_at_once() -> None:
    queue = make_queue()
    assert queue.offer("linux") == []
    task, assignments = queue.add(make_action("a"), 0, EXECUTORS)
    assert assignments == [(task, "linux")]
    assert (task.stage, queue.executing, queue.queued) == (Stage.EXECUTING, 1, 0)


def test_order_is_priority_then_arrival() -> None:  # EXE-17
    queue = make_queue()
    tasks = [queue.add(make_action(str(i)), p, EXECUTORS)[0] for i, p in enumerate((5, 0, 5, -3))]
    order = [offer(queue, "any") for _ in tasks]
    assert order == [tasks[3], tasks[1], tasks[0], tasks[2]]


def test_twins_share_one_task_and_the_more_urgent_lifts_it() -> None:  # EXE-21, EXE-22
    queue = make_queue()
    first, _ = queue.add(make_action("first"), 0, EXECUTORS)
    shared, _ = queue.add(make_action("twin"), 9, EXECUTORS)
    again, _ = queue.add(make_action("twin"), -9, EXECUTORS)
    assert again is shared
    assert [offer(queue, "any"), offer(queue, "any"), offer(queue, "any")] == [shared, first, None]


def test_uncacheable_twins_run_apart() -> None:  # EXE-20
    queue = make_queue()
    one, _ = queue.add(make_action("a", cacheable=False), 0, EXECUTORS)
    two, _ = queue.add(make_action("a", cacheable=False), 0, EXECUTORS)
    assert one is not two


def test_what_nobody_offers_is_refused_with_the_difference() -> None:  # EXE-13
    queue = make_queue()
    with pytest.raises(FailedPrecondition, match=r"'linux': wants OSFamily=windows, offers linux"):
        queue.add(make_action("a", {"OSFamily": ("windows",)}), 0, ["linux"])
    with pytest.raises(FailedPrecondition, match="wants Pool=big, does not have that property"):
        queue.add(make_action("a", {"Pool": ("big",)}), 0, EXECUTORS)


def test_worker_keys_do_not_route() -> None:
    queue = make_queue()
    task, _ = queue.add(make_action("a", {"persistentWorkerKey": ("k",)}), 0, EXECUTORS)
    assert offer(queue, "linux") is task


def test_a_full_queue_refuses_and_stays_as_it_was() -> None:  # EXE-25
    queue = make_queue(max_queued=1)
    queue.add(make_action("a"), 0, EXECUTORS)
    with pytest.raises(Overloaded):
        queue.add(make_action("b"), 0, EXECUTORS)
    assert queue.queued == 1
    queue.add(make_action("a"), 0, EXECUTORS)


def test_a_requeued_task_keeps_its_place() -> None:  # OPS-14
    queue = make_queue()
    lost, _ = queue.add(make_action("lost"), 0, EXECUTORS)
    queue.add(make_action("later"), 0, EXECUTORS)
    assert offer(queue, "linux") is lost
    assert queue.requeue(lost) == []
    assert offer(queue, "any") is lost
    assert lost.attempts == 2


def test_urgency_outlives_a_requeue() -> None:  # EXE-22, OPS-14
    queue = make_queue()
    shared, _ = queue.add(make_action("twin"), 5, EXECUTORS)
    assert offer(queue, "any") is shared
    queue.add(make_action("first"), 0, EXECUTORS)
    queue.add(make_action("twin"), -5, EXECUTORS)
    queue.requeue(shared)
    assert offer(queue, "any") is shared


def test_an_action_waits_for_processors_and_memory() -> None:  # SCH-01, SCH-04
    queue = make_queue()
    for _ in range(4):
        queue.offer("linux")
    most = add(queue, "most", cpus="3")
    waits = add(queue, "waits", cpus="1500m")
    assert (most.executor, waits.executor) == ("linux", None)
    assert end(queue, most) == [(waits, "linux")]
    hungry = add(queue, "hungry", memory="3GiB")
    assert hungry.executor == "linux"
    assert add(queue, "hungrier", memory="2GiB").executor is None
    assert queue.free("linux") == (1500, GIB)


def test_what_ends_makes_room_for_several() -> None:  # SCH-04
    queue = make_queue()
    for _ in range(4):
        queue.offer("linux")
    whole = add(queue, "whole", cpus="4")
    small = [add(queue, f"small {i}", cpus="1") for i in range(3)]
    assert end(queue, whole) == [(task, "linux") for task in small]


def test_a_cancelled_task_keeps_its_share_until_nothing_is_left_of_it() -> None:  # SCH-04
    queue = make_queue()
    queue.offer("linux")
    queue.offer("linux")
    whole = add(queue, "whole", cpus="4")
    waits = add(queue, "waits", cpus="4")
    assert queue.complete(whole) == []
    assert queue.release(whole) == [(waits, "linux")]


def test_more_than_there_is_anywhere_is_refused_with_the_difference() -> None:  # EXE-13, SCH-01
    queue = make_queue()
    with pytest.raises(FailedPrecondition, match=r"'linux': wants 64 cpus, has 4\. .*has 8"):
        add(queue, "a", cpus="64")
    with pytest.raises(FailedPrecondition, match="wants 17179869185 bytes of memory, has 171"):
        add(queue, "a", memory="17179869185")
    assert add(queue, "a", cpus="8").kind.eligible == {"any"}


def test_what_is_no_amount_is_refused_by_name() -> None:  # EXE-13
    queue = make_queue()
    with pytest.raises(InvalidRequest, match="memory='much': expected a number of bytes"):
        add(queue, "a", memory="much")
    assert queue.queued == 0


def test_a_large_action_is_not_starved_by_small_ones() -> None:  # SCH-04
    queue = make_queue()
    for _ in range(4):
        queue.offer("linux")
    running = [add(queue, f"early {i}", OSFamily="linux") for i in range(3)]
    large = queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"])[0]
    late = [
        queue.add(make_action(f"late {i}", {"OSFamily": ("linux",)}), 0, ["linux"])[0]
        for i in range(50)
    ]
    started = [task for early in running for task, _ in end(queue, early)]
    assert started == [large]
    assert not any(task.executor for task in late)


def test_one_executor_is_saved_and_others_go_on() -> None:  # SCH-04
    queue = make_queue()
    for executor in ("linux", "any") * 4:
        queue.offer(executor)
    early = [add(queue, f"early {i}") for i in range(2)]
    assert {task.executor for task in early} == {"linux", "any"}
    large = queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"])[0]
    late = [add(queue, f"late {i}") for i in range(3)]
    assert [task.executor for task in late] == ["any", "any", "any"]
    on_linux = next(task for task in early if task.executor == "linux")
    assert end(queue, on_linux) == [(large, "linux")]


def test_more_urgent_ones_pass_even_a_saved_executor() -> None:  # EXE-17, SCH-02
    queue = make_queue()
    queue.offer("linux")
    queue.offer("linux")
    add(queue, "early")
    large = queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"])[0]
    urgent = add(queue, "urgent", -1)
    assert (large.executor, urgent.executor) == (None, "linux")


def test_the_executor_that_is_saved_stays_the_same() -> None:  # SCH-04
    queue = Queue({"a": Offer({}, SMALL), "b": Offer({}, SMALL)}, max_queued=100)
    for executor in ("a", "b") * 4:
        queue.offer(executor)
    for name in ("early 1", "early 2"):
        queue.add(make_action(name), 0, ["a", "b"])
    large = queue.add(make_action("large", {"cpus": ("4",)}), 0, ["a", "b"])[0]
    saved = large.saving
    other = {"a": "b", "b": "a"}[str(saved)]
    queue.add(make_action("urgent"), -1, [str(saved)])
    late = queue.add(make_action("late"), 0, ["a", "b"])[0]
    assert (large.saving, late.executor) == (saved, other)


def test_a_large_one_that_goes_makes_way() -> None:
    queue = make_queue()
    queue.offer("linux")
    queue.offer("linux")
    add(queue, "early")
    large = queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"])[0]
    late = add(queue, "late")
    assert queue.complete(large) == [(late, "linux")]


def test_a_lifted_twin_begins_if_it_has_room_now() -> None:  # EXE-22
    queue = make_queue()
    queue.offer("linux")
    queue.offer("linux")
    add(queue, "early")
    queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"])
    twin = add(queue, "twin")
    assert queue.add(make_action("twin"), -1, EXECUTORS) == (twin, [(twin, "linux")])


def test_the_bound_counts_only_what_has_to_wait() -> None:  # EXE-25
    queue = make_queue(max_queued=1)
    queue.offer("linux")
    queue.offer("linux")
    early = add(queue, "early")
    queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"])
    with pytest.raises(Overloaded):
        add(queue, "behind")
    assert add(queue, "urgent", -1).executor == early.executor


class QueueModel(RuleBasedStateMachine):
    """Any sequence of calls, against lists that are searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = make_queue(max_queued=8)
        self.waiting: list[Task] = []
        self.running: list[Task] = []
        self.ending: list[Task] = []
        self.slots = dict.fromkeys(EXECUTORS, 0)

    def can_run(self, task: Task, executor: str) -> bool:
        return executor == "any" or "windows" not in task.action.platform.get("OSFamily", ())

    def has_room(self, task: Task, executor: str) -> bool:
        share = EXECUTORS[executor].capacity.share(task.kind.request)
        free = self.queue.free(executor)
        fits = share.millicpus <= free.millicpus and share.memory_bytes <= free.memory_bytes
        return fits and self.can_run(task, executor) and self.slots[executor] > 0

    def apply(self, assignments: list[Assignment]) -> None:
        for task, executor in assignments:
            assert self.can_run(task, executor)
            assert task.executor == executor
            self.slots[executor] -= 1
            self.waiting.remove(task)
            self.running.append(task)

    @rule(
        name=st.sampled_from("abcdefghijklmnop"),
        priority=st.integers(-2, 2),
        system=st.sampled_from(["linux", "windows", None]),
        cpus=st.sampled_from(["4", "2.5", "100m", None]),
        memory=st.sampled_from(["4GiB", "1GiB", None]),
        cacheable=st.booleans(),
    )
    def add(
        self,
        name: str,
        priority: int,
        system: str | None,
        cpus: str | None,
        memory: str | None,
        cacheable: bool,
    ) -> None:
        asked = {"OSFamily": system, "cpus": cpus, "memory": memory}
        platform = {key: (value,) for key, value in asked.items() if value}
        action = make_action(f"{name}{system}{cpus}{memory}", platform, cacheable=cacheable)
        known = {t for t in self.waiting + self.running if t.action.digest == action.digest}
        twins = {t for t in known if t.action.cacheable}
        try:
            task, assignments = self.queue.add(action, priority, EXECUTORS)
        except Overloaded:
            assert len(self.waiting) >= 8  # more, after a requeue
            return
        if cacheable and twins:
            assert twins == {task}
        else:
            self.waiting.append(task)
        self.apply(assignments)

    @rule(executor=st.sampled_from(["linux", "any"]))
    def offer(self, executor: str) -> None:
        self.slots[executor] += 1
        self.apply(self.queue.offer(executor))

    @precondition(lambda self: any(self.slots.values()))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        executor = data.draw(st.sampled_from([e for e, count in self.slots.items() if count]))
        self.queue.withdraw(executor)
        self.slots[executor] -= 1

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.running + self.waiting))
        if task in self.running:
            self.running.remove(task)
            self.ending.append(task)
        else:
            self.waiting.remove(task)
        self.apply(self.queue.complete(task))
        assert self.queue.complete(task) == []

    @precondition(lambda self: self.ending)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.ending))
        self.ending.remove(task)
        self.apply(self.queue.release(task))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.running))
        self.running.remove(task)
        self.waiting.append(task)
        self.apply(self.queue.requeue(task))

    @invariant()
    def counts_agree(self) -> None:
        assert (self.queue.queued, self.queue.executing) == (len(self.waiting), len(self.running))
        assert all(task.stage is Stage.QUEUED for task in self.waiting)
        assert all(count >= 0 for count in self.slots.values())

    @invariant()
    def what_runs_and_what_is_free_are_the_whole(self) -> None:  # SCH-04
        for name, offer in EXECUTORS.items():
            held = [t for t in self.running + self.ending if t.executor == name]
            shares = [offer.capacity.share(task.kind.request) for task in held]
            free = self.queue.free(name)
            assert min(free) >= 0
            assert free.millicpus + sum(s.millicpus for s in shares) == offer.capacity.total[0]
            assert (
                free.memory_bytes + sum(s.memory_bytes for s in shares) == offer.capacity.total[1]
            )

    @invariant()
    def the_first_waits_for_want_of_room_only(self) -> None:
        soonest = min(self.waiting, key=lambda t: t.rank, default=None)
        if soonest:
            assert not any(self.has_room(soonest, executor) for executor in EXECUTORS)

    @invariant()
    def only_an_executor_that_is_saved_passes_one_over(self) -> None:
        saved = {t.saving for t in self.waiting}
        for task in self.waiting:
            assert {e for e in EXECUTORS if self.has_room(task, e)} <= saved

    def teardown(self) -> None:
        """Everything ends: then everything is free."""
        while self.waiting:
            self.apply(self.queue.complete(self.waiting.pop()))
        for task in self.running:
            assert self.queue.complete(task) == []
        for task in self.running + self.ending:
            assert self.queue.release(task) == []
        for name, offer in EXECUTORS.items():
            assert self.queue.free(name) == offer.capacity.total
        assert (self.queue.queued, self.queue.executing) == (0, 0)


QueueModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestQueueModel = QueueModel.TestCase
