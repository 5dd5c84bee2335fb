"""Stoker's front door, scheduler and slots, with executors that do nothing: what waits is measured.

Actions begin as slots are free, and end as many at a time as it is told to. It prints its address.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from stoker.action import LoadedAction, Outcome
from stoker.frontend.cas import CasService
from stoker.frontend.execution import ExecutionService
from stoker.frontend.instances import Instance, Instances
from stoker.frontend.operations import OperationsService
from stoker.frontend.status import translate
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Capacity
from stoker.rpc import Server, ServerCall, Service, tune_allocator, unary_unary
from stoker.scheduler.matching import Offer
from stoker.scheduler.scheduler import Scheduler, open_scheduler
from stoker.scheduler.settings import SchedulerSettings
from stoker.scheduler.slots import serve_slot
from stoker.storage.completeness import CompleteActionCache
from stoker.storage.memory import MemoryActionCache, MemoryBlobStore

EXECUTOR, SLOTS = "idle", 64
CAPACITY = Capacity.of_executor(
    slots=SLOTS, cpus=SLOTS, memory_bytes=SLOTS << 30, default_memory_bytes=None
)
SETTINGS = SchedulerSettings(
    max_queued=10**6, max_in_flight=10**6, max_streams=10**6, abandoned_after_seconds=10**6
)


class Bench:
    """What a measurement asks for, in bytes of digits."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._permits = trio.Semaphore(0)
        self._most, self._few = 0, trio.Event()

    def service(self) -> Service:
        return Service(
            "bench.Queue",
            {
                "End": unary_unary(self.end, bytes, bytes),
                "AwaitQueued": unary_unary(self.await_queued, bytes, bytes),
                "Queued": unary_unary(self.queued, bytes, bytes),
                "Resident": unary_unary(self.resident, bytes, bytes),
            },
        )

    async def end(self, request: bytes, _call: ServerCall) -> bytes:
        """Let as many actions end."""
        for _ in range(int(request)):
            self._permits.release()
        return b""

    async def queued(self, _request: bytes, _call: ServerCall) -> bytes:
        """How many wait."""
        return b"%d" % self._scheduler.queued

    async def await_queued(self, request: bytes, _call: ServerCall) -> bytes:
        """Wait until no more wait than so many."""
        self._most = int(request)
        self._few = trio.Event()
        self._look()
        await self._few.wait()
        return b""

    def _look(self) -> None:
        if self._scheduler.queued <= self._most:
            self._few.set()

    async def resident(self, _request: bytes, _call: ServerCall) -> bytes:
        """The bytes of memory that the process has."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])  # noqa: ASYNC240  # no disk
        return b"%d" % (pages * resource.getpagesize())

    async def run(
        self, _action: LoadedAction, started: Callable[[reapi.ExecutedActionMetadata], None]
    ) -> Outcome:
        self._look()
        started(reapi.ExecutedActionMetadata(worker=EXECUTOR))
        await self._permits.acquire()
        return Outcome(result=reapi.ActionResult())


async def _file_nothing(_action: LoadedAction, _result: reapi.ActionResult) -> None:
    pass


async def main() -> None:
    tune_allocator()
    blobs = MemoryBlobStore()
    instance = Instance(
        name="",
        blobs=blobs,
        actions=CompleteActionCache(MemoryActionCache(), blobs),
        executors={EXECUTOR: math.inf},
    )
    instances = Instances([instance])
    async with (
        open_scheduler({EXECUTOR: Offer({}, CAPACITY)}, SETTINGS) as scheduler,
        trio.open_nursery() as nursery,
    ):
        bench = Bench(scheduler)
        server = Server(
            [
                CasService(instances).service(),
                ExecutionService(instances, scheduler).service(),
                OperationsService(instances, scheduler).service(),
                bench.service(),
            ],
            translate_error=translate,
        )
        port = server.add_listener("127.0.0.1:0")
        await nursery.start(server.serve)
        for _ in range(SLOTS):
            nursery.start_soon(partial(serve_slot, scheduler, EXECUTOR, bench.run, _file_nothing))
        print(f"127.0.0.1:{port}", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
