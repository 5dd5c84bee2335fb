"""The queue alone: it is pure, so that a naive model can say what it must do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from stoker.action import LoadedAction
from stoker.digest import BLAKE3, SHA256
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
    return queue.add(make_action(name, asked), priority, EXECUTORS, now=0)[0]


def offer(queue: Queue, executor: str) -> Task | None:
    """The task for a slot of `executor`."""
    assignments = queue.offer(executor, now=0)
    assert len(assignments) <= 1
    assert all(name == executor for _, name in assignments)
    return assignments[0].task if assignments else None


def end(queue: Queue, task: Task) -> list[Assignment]:
    """`task` ends, its executor lets go of it, and offers its slot again."""
    held = task.held
    assert held is not None
    return [
        *queue.complete(task, now=0),
        *queue.release(held, now=0),
        *queue.offer(held.executor, now=0),
    ]


def test_a_free_slot_is_handed_the_action_at_once() -> None:
    queue = make_queue()
    assert queue.offer("linux", now=0) == []
    task, assignments = queue.add(make_action("a"), 0, EXECUTORS, now=0)
    assert assignments == [(task, "linux")]
    assert (task.stage, queue.executing, queue.queued) == (Stage.EXECUTING, 1, 0)


def test_order_is_priority_then_arrival() -> None:  # EXE-17
    queue = make_queue()
    tasks = [
        queue.add(make_action(str(i)), p, EXECUTORS, now=0)[0] for i, p in enumerate((5, 0, 5, -3))
    ]
    order = [offer(queue, "any") for _ in tasks]
    assert order == [tasks[3], tasks[1], tasks[0], tasks[2]]


def test_twins_share_one_task_and_the_more_urgent_lifts_it() -> None:  # EXE-21, EXE-22
    queue = make_queue()
    first, _ = queue.add(make_action("first"), 0, EXECUTORS, now=0)
    shared, _ = queue.add(make_action("twin"), 9, EXECUTORS, now=0)
    again, _ = queue.add(make_action("twin"), -9, EXECUTORS, now=0)
    assert again is shared
    assert [offer(queue, "any"), offer(queue, "any"), offer(queue, "any")] == [shared, first, None]


def test_twins_are_of_one_instance_and_one_digest_function() -> None:  # EXE-22
    queue = make_queue()
    action = make_action("a")
    elsewhere = replace(action, namespace="other")
    otherwise = replace(action, digest=action.digest._replace(function=BLAKE3))
    tasks = {queue.add(each, 0, EXECUTORS, now=0)[0] for each in (action, elsewhere, otherwise)}
    assert len(tasks) == 3
    assert queue.add(replace(action, principal="bob"), 0, EXECUTORS, now=0)[0] in tasks


def test_uncacheable_twins_run_apart() -> None:  # EXE-20
    queue = make_queue()
    one, _ = queue.add(make_action("a", cacheable=False), 0, EXECUTORS, now=0)
    two, _ = queue.add(make_action("a", cacheable=False), 0, EXECUTORS, now=0)
    assert one is not two


def test_what_nobody_offers_is_refused_with_the_difference() -> None:  # EXE-13
    queue = make_queue()
    with pytest.raises(FailedPrecondition, match=r"'linux': wants OSFamily=windows, offers linux"):
        queue.add(make_action("a", {"OSFamily": ("windows",)}), 0, ["linux"], now=0)
    with pytest.raises(FailedPrecondition, match="wants Pool=big, does not have that property"):
        queue.add(make_action("a", {"Pool": ("big",)}), 0, EXECUTORS, now=0)


def test_worker_keys_do_not_route() -> None:
    queue = make_queue()
    task, _ = queue.add(make_action("a", {"persistentWorkerKey": ("k",)}), 0, EXECUTORS, now=0)
    assert offer(queue, "linux") is task


def test_a_full_queue_refuses_and_stays_as_it_was() -> None:  # EXE-25
    queue = make_queue(max_queued=1)
    queue.add(make_action("a"), 0, EXECUTORS, now=0)
    with pytest.raises(Overloaded):
        queue.add(make_action("b"), 0, EXECUTORS, now=0)
    assert queue.queued == 1
    queue.add(make_action("a"), 0, EXECUTORS, now=0)


def test_a_requeued_task_keeps_its_place() -> None:  # OPS-14
    queue = make_queue()
    lost, _ = queue.add(make_action("lost"), 0, EXECUTORS, now=0)
    queue.add(make_action("later"), 0, EXECUTORS, now=0)
    assert offer(queue, "linux") is lost
    assert queue.requeue(lost, now=0) == []
    assert offer(queue, "any") is lost
    assert lost.attempts == 2


def test_urgency_outlives_a_requeue() -> None:  # EXE-22, OPS-14
    queue = make_queue()
    shared, _ = queue.add(make_action("twin"), 5, EXECUTORS, now=0)
    assert offer(queue, "any") is shared
    queue.add(make_action("first"), 0, EXECUTORS, now=0)
    queue.add(make_action("twin"), -5, EXECUTORS, now=0)
    queue.requeue(shared, now=0)
    assert offer(queue, "any") is shared


def test_an_action_waits_for_processors_and_memory() -> None:  # SCH-01, SCH-04
    queue = make_queue()
    for _ in range(4):
        queue.offer("linux", now=0)
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
        queue.offer("linux", now=0)
    whole = add(queue, "whole", cpus="4")
    small = [add(queue, f"small {i}", cpus="1") for i in range(3)]
    assert end(queue, whole) == [(task, "linux") for task in small]


def test_a_cancelled_task_keeps_its_share_until_nothing_is_left_of_it() -> None:  # SCH-04
    queue = make_queue()
    queue.offer("linux", now=0)
    queue.offer("linux", now=0)
    whole = add(queue, "whole", cpus="4")
    waits = add(queue, "waits", cpus="4")
    assert queue.complete(whole, now=0) == []
    assert whole.held is not None
    assert queue.release(whole.held, now=0) == [(waits, "linux")]


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
        queue.offer("linux", now=0)
    running = [add(queue, f"early {i}", OSFamily="linux") for i in range(3)]
    large = queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"], now=0)[0]
    late = [
        queue.add(make_action(f"late {i}", {"OSFamily": ("linux",)}), 0, ["linux"], now=0)[0]
        for i in range(50)
    ]
    started = [task for early in running for task, _ in end(queue, early)]
    assert started == [large]
    assert not any(task.executor for task in late)


def test_one_executor_is_saved_and_others_go_on() -> None:  # SCH-04
    queue = make_queue()
    for executor in ("linux", "any") * 4:
        queue.offer(executor, now=0)
    early = [add(queue, f"early {i}") for i in range(2)]
    assert {task.executor for task in early} == {"linux", "any"}
    large = queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"], now=0)[0]
    late = [add(queue, f"late {i}") for i in range(3)]
    assert [task.executor for task in late] == ["any", "any", "any"]
    on_linux = next(task for task in early if task.executor == "linux")
    assert end(queue, on_linux) == [(large, "linux")]


def test_more_urgent_ones_pass_even_a_saved_executor() -> None:  # EXE-17, SCH-02
    queue = make_queue()
    queue.offer("linux", now=0)
    queue.offer("linux", now=0)
    add(queue, "early")
    large = queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"], now=0)[0]
    urgent = add(queue, "urgent", -1)
    assert (large.executor, urgent.executor) == (None, "linux")


def test_the_executor_that_is_saved_stays_the_same() -> None:  # SCH-04
    queue = Queue({"a": Offer({}, SMALL), "b": Offer({}, SMALL)}, max_queued=100)
    for executor in ("a", "b") * 4:
        queue.offer(executor, now=0)
    for name in ("early 1", "early 2"):
        queue.add(make_action(name), 0, ["a", "b"], now=0)
    large = queue.add(make_action("large", {"cpus": ("4",)}), 0, ["a", "b"], now=0)[0]
    saved = large.saving
    other = {"a": "b", "b": "a"}[str(saved)]
    queue.add(make_action("urgent"), -1, [str(saved)], now=0)
    late = queue.add(make_action("late"), 0, ["a", "b"], now=0)[0]
    assert (large.saving, late.executor) == (saved, other)


def test_a_large_one_that_goes_makes_way() -> None:
    queue = make_queue()
    queue.offer("linux", now=0)
    queue.offer("linux", now=0)
    add(queue, "early")
    large = queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"], now=0)[0]
    late = add(queue, "late")
    assert queue.complete(large, now=0) == [(late, "linux")]


def test_a_lifted_twin_begins_if_it_has_room_now() -> None:  # EXE-22
    queue = make_queue()
    queue.offer("linux", now=0)
    queue.offer("linux", now=0)
    add(queue, "early")
    queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"], now=0)
    twin = add(queue, "twin")
    assert queue.add(make_action("twin"), -1, EXECUTORS, now=0) == (twin, [(twin, "linux")])


def test_the_bound_counts_only_what_has_to_wait() -> None:  # EXE-25
    queue = make_queue(max_queued=1)
    queue.offer("linux", now=0)
    queue.offer("linux", now=0)
    early = add(queue, "early")
    queue.add(make_action("large", {"cpus": ("4",)}), 0, ["linux"], now=0)
    with pytest.raises(Overloaded):
        add(queue, "behind")
    assert add(queue, "urgent", -1).executor == early.executor


def test_clients_of_one_instance_are_tenants_of_their_own() -> None:  # SCH-03
    queue = Queue({"linux": EXECUTORS["linux"]}, max_queued=100)
    for name, principal in (("a1", "alice"), ("a2", "alice"), ("a3", "alice"), ("b1", "bob")):
        action = replace(make_action(name, {"cpus": ("0.1",)}), principal=principal)
        queue.add(action, 0 if principal == "alice" else 9, ["linux"], now=0)
    begun = [offer(queue, "linux") for _ in range(4)]
    # What each holds counts, and alice's priorities are no concern of bob's.
    assert [task and task.action.principal for task in begun] == ["alice", "bob", "alice", "alice"]
