"""Executors that are warm for an action get it, where they have room (SCH-09)."""

from __future__ import annotations

from itertools import count

from stoker.action import LoadedAction
from stoker.digest import SHA256
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Capacity
from stoker.scheduler.matching import Offer
from stoker.scheduler.queue import Queue, Task

CAPACITY = Capacity.of_executor(slots=2, cpus=2, memory_bytes=2**30, default_memory_bytes=None)
EXECUTORS = {name: Offer({}, CAPACITY) for name in ("a", "b", "c")}
NUMBERS = count()


def add(
    queue: Queue, key: str = "", mnemonic: str = "", inputs: bytes = b"", output: str = ""
) -> Task:
    action = LoadedAction(
        namespace="",
        digest=SHA256.digest(str(next(NUMBERS)).encode()),
        action=reapi.Action(),
        command=reapi.Command(arguments=["true"], output_paths=[output] if output else []),
        input_root=SHA256.digest(inputs),
        platform={"persistentWorkerKey": (key,)} if key else {},
        timeout_seconds=None,
        mnemonic=mnemonic,
    )
    return queue.add(action, 0, EXECUTORS, now=0)[0]


def make_queue(slots: int = 2) -> Queue:
    queue = Queue(EXECUTORS, max_queued=100)
    for executor in EXECUTORS:
        for _ in range(slots):
            queue.offer(executor, now=0)
    return queue


def end(queue: Queue, task: Task) -> None:
    held = task.held
    assert held is not None
    queue.complete(task, now=0)
    queue.release(held, now=0)
    queue.offer(held.executor, now=0)


def test_a_tool_goes_where_it_has_run_and_no_idle_slot_is_left_for_that() -> None:  # SCH-09
    queue = make_queue()
    executors = [add(queue, "javac").executor for _ in range(5)]
    assert executors == ["a", "a", "b", "b", "c"]
    # All are warm now: then the one that was given work least recently.
    assert add(queue, "scalac").executor == "c"


def test_keys_and_mnemonics_are_told_apart() -> None:
    queue = make_queue()
    assert add(queue, "k", "Javac").executor == "a"
    assert add(queue, "k", "Scala").executor == "b"
    assert add(queue, "other", "Javac").executor == "c"
    assert add(queue, "k", "Scala").executor == "b"


def test_one_goes_where_its_input_root_was() -> None:
    queue = make_queue()
    assert add(queue, inputs=b"these").executor == "a"
    assert add(queue, inputs=b"those").executor == "b"
    assert add(queue, inputs=b"these").executor == "a"


def test_an_edited_action_goes_where_its_input_root_is_near() -> None:  # SCH-09
    queue = make_queue()
    assert add(queue, inputs=b"a1", output="a.o").executor == "a"
    assert add(queue, inputs=b"b1", output="b.o").executor == "b"
    assert add(queue, inputs=b"a2", output="a.o").executor == "a"
    # The very same inputs are nearer than those of an earlier version.
    assert add(queue, inputs=b"b1", output="a.o").executor == "b"
    # Both have no room left.
    assert add(queue, inputs=b"a3", output="a.o").executor == "c"


def test_without_a_worker_or_inputs_all_get_the_same() -> None:
    queue = make_queue()
    executors = [add(queue, mnemonic="CppCompile").executor for _ in range(6)]
    assert executors == ["a", "b", "c", "a", "b", "c"]


def test_nothing_waits_for_a_warm_executor() -> None:  # SCH-09
    queue = make_queue(slots=1)
    warm = add(queue, "javac")
    others = [add(queue), add(queue)]
    waits = add(queue, "javac")
    assert not waits.tried
    end(queue, others[1])
    assert (warm.tried, waits.tried) == (["a"], others[1].tried)
