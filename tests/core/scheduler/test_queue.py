"""The queue alone: it is pure, so that a naive model can say what it must do."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stoker.action import LoadedAction
from stoker.digest import SHA256
from stoker.errors import FailedPrecondition, Overloaded
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.queue import Queue, Stage, Task

EXECUTORS = {"linux": {"OSFamily": ("linux",)}, "any": {"OSFamily": ("*",)}}


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


def test_a_free_slot_is_handed_the_action_at_once() -> None:
    queue = make_queue()
    assert queue.offer("linux") is None
    task, executor = queue.add(make_action("a"), 0, EXECUTORS)
    assert (executor, task.stage, queue.executing, queue.queued) == ("linux", Stage.EXECUTING, 1, 0)


def test_order_is_priority_then_arrival() -> None:  # EXE-17
    queue = make_queue()
    tasks = [queue.add(make_action(str(i)), p, EXECUTORS)[0] for i, p in enumerate((5, 0, 5, -3))]
    order = [queue.offer("any") for _ in tasks]
    assert order == [tasks[3], tasks[1], tasks[0], tasks[2]]


def test_twins_share_one_task_and_the_more_urgent_lifts_it() -> None:  # EXE-21, EXE-22
    queue = make_queue()
    first, _ = queue.add(make_action("first"), 0, EXECUTORS)
    shared, _ = queue.add(make_action("twin"), 9, EXECUTORS)
    again, _ = queue.add(make_action("twin"), -9, EXECUTORS)
    assert again is shared
    assert [queue.offer("any"), queue.offer("any"), queue.offer("any")] == [shared, first, None]


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
    assert queue.offer("linux") is task


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
    assert queue.offer("linux") is lost
    assert queue.requeue(lost) is None
    assert queue.offer("any") is lost
    assert lost.attempts == 2


def test_urgency_outlives_a_requeue() -> None:  # EXE-22, OPS-14
    queue = make_queue()
    shared, _ = queue.add(make_action("twin"), 5, EXECUTORS)
    assert queue.offer("any") is shared
    queue.add(make_action("first"), 0, EXECUTORS)
    queue.add(make_action("twin"), -5, EXECUTORS)
    queue.requeue(shared)
    assert queue.offer("any") is shared


class QueueModel(RuleBasedStateMachine):
    """Any sequence of calls, against lists that are searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = make_queue(max_queued=8)
        self.waiting: list[Task] = []
        self.running: list[Task] = []
        self.free = dict.fromkeys(EXECUTORS, 0)

    def can_run(self, task: Task, executor: str) -> bool:
        return executor == "any" or "windows" not in task.action.platform.get("OSFamily", ())

    @rule(
        name=st.sampled_from("abcdefghijklmnop"),
        priority=st.integers(-2, 2),
        system=st.sampled_from(["linux", "windows", None]),
        cacheable=st.booleans(),
    )
    def add(self, name: str, priority: int, system: str | None, cacheable: bool) -> None:
        platform = {"OSFamily": (system,)} if system else {}
        action = make_action(f"{name}{system}", platform, cacheable=cacheable)
        known = {t for t in self.waiting + self.running if t.action.digest == action.digest}
        twins = {t for t in known if t.action.cacheable}
        free = [e for e, count in self.free.items() if count]
        try:
            task, executor = self.queue.add(action, priority, EXECUTORS)
        except Overloaded:
            assert len(self.waiting) >= 8  # more, after a requeue
            return
        if cacheable and twins:
            assert twins == {task}
            assert executor is None
            return
        if executor is None:
            assert not any(self.can_run(task, e) for e in free)
            self.waiting.append(task)
        else:
            assert executor in free
            assert self.can_run(task, executor)
            self.free[executor] -= 1
            self.running.append(task)

    @rule(executor=st.sampled_from(["linux", "any"]))
    def offer(self, executor: str) -> None:
        fitting = [task for task in self.waiting if self.can_run(task, executor)]
        expected = min(fitting, key=lambda t: (t.priority, t.sequence), default=None)
        assert self.queue.offer(executor) is expected
        if expected:
            self.waiting.remove(expected)
            self.running.append(expected)
        else:
            self.free[executor] += 1

    @precondition(lambda self: any(self.free.values()))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        executor = data.draw(st.sampled_from([e for e, count in self.free.items() if count]))
        self.queue.withdraw(executor)
        self.free[executor] -= 1

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.running + self.waiting))
        self.queue.complete(task)
        self.queue.complete(task)
        (self.running if task in self.running else self.waiting).remove(task)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.running))
        executor = self.queue.requeue(task)
        if executor:
            self.free[executor] -= 1
            assert self.can_run(task, executor)
        else:
            self.running.remove(task)
            self.waiting.append(task)

    @invariant()
    def counts_agree(self) -> None:
        assert (self.queue.queued, self.queue.executing) == (len(self.waiting), len(self.running))
        assert all(task.stage is Stage.QUEUED for task in self.waiting)
        assert all(count >= 0 for count in self.free.values())


QueueModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestQueueModel = QueueModel.TestCase
