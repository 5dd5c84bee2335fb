"""What handing out one action costs the scheduler's queue, by how many are queued.

In the figures: an action is accepted, begins when another ends, and ends in its turn, so that as
many stay queued. They are of 50 invocations, three priorities and three sizes, and half of them
are cacheable. Not in the figures: making the actions, and all that is around the queue.
"""

from __future__ import annotations

import gc
import math
from collections import deque
from itertools import count
from time import process_time

import trio

from bench.measurement import Cost, Pair, Row, in_turns
from stoker.action import LoadedAction
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Capacity
from stoker.scheduler.matching import Offer
from stoker.scheduler.queue import Assignment, Policy, Queue

SLOTS = 64
INVOCATIONS = 50
SIZES = ("500m", "1", "2")
GIB = 1024**3
CAPACITY = Capacity.of_executor(
    slots=SLOTS, cpus=SLOTS, memory_bytes=SLOTS * GIB, default_memory_bytes=None
)
EXECUTORS = {name: Offer({}, CAPACITY) for name in ("one", "two")}

MESSAGES = (reapi.Action(), reapi.Action(do_not_cache=True))
COMMAND = reapi.Command(arguments=["true"])
METADATA = [reapi.RequestMetadata(tool_invocation_id=str(i)) for i in range(INVOCATIONS)]


def measure(*, quick: bool) -> list[Row]:
    """The row of a queue a hundred times as long."""
    few, many = (100, 1_000) if quick else (1_000, 100_000)
    return trio.run(_measure, few, many, 200 if quick else 4_000, 2 if quick else 5)


async def _measure(few: int, many: int, operations: int, rounds: int) -> list[Row]:
    queues = _Load(many), _Load(few)
    # What stays is no garbage; looking at it again and again is what a long-lived server avoids.
    gc.collect()

    async def cost(load: _Load) -> Cost:
        return load.run(operations)

    pair = Pair(*await in_turns(rounds, lambda: cost(queues[0]), lambda: cost(queues[1])))
    return [
        pair.cpu_row(
            f"queue: action in and out, {many:,} queued",
            f"the same with {few:,} queued",
            unit="µs CPU",
            per_second=1e6 / operations,
            at_most=1.5,
        )
    ]


class _Load:
    """A queue that always holds as many."""

    def __init__(self, depth: int) -> None:
        self._queue = Queue(EXECUTORS, max_queued=depth * 2, policy=Policy(math.inf))
        self._numbers = count()
        self._running: deque[Assignment] = deque()
        for executor in EXECUTORS:
            for _ in range(SLOTS):
                self._queue.offer(executor, now=0)
        while self._queue.queued < depth:
            self._add(self._action())

    def run(self, operations: int) -> Cost:
        """What `operations` actions cost, each in and out."""
        actions = [self._action() for _ in range(operations)]
        start = process_time()
        for action in actions:
            self._add(action)
            self._end(self._running.popleft())
        seconds = process_time() - start
        return Cost(seconds, seconds)

    def _action(self) -> LoadedAction:
        number = next(self._numbers)
        return LoadedAction(
            namespace="",
            digest=Digest(f"{number:064x}", 1, SHA256),
            action=MESSAGES[number % 2],
            command=COMMAND,
            input_root=SHA256.empty,
            platform={"cpus": (SIZES[number % len(SIZES)],)},
            timeout_seconds=None,
            metadata=METADATA[number * 7 % INVOCATIONS],
        )

    def _add(self, action: LoadedAction) -> None:
        priority = int(action.digest.hash[-4:], 16) % 3
        self._note(self._queue.add(action, priority, EXECUTORS, now=0)[1])

    def _end(self, ended: Assignment) -> None:
        self._note(self._queue.complete(ended.task, now=0))
        self._note(self._queue.release(ended, now=0))
        self._note(self._queue.offer(ended.executor, now=0))

    def _note(self, assignments: list[Assignment]) -> None:
        self._running.extend(assignments)
