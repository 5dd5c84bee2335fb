"""The threads that wait for the disk.

No task of the server does: a disk that hangs holds up these threads, and those who wait for them,
but not health checks, metrics, or another store.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

import trio

# Reading has threads that no writer can occupy: a full or slow disk is seen by writers first.
_READERS = 16
_WRITERS = 8

Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")


class Threads:
    """Threads of one store. Work that has begun is not cut short by cancellation."""

    def __init__(self) -> None:
        self._readers = trio.CapacityLimiter(_READERS)
        self._writers = trio.CapacityLimiter(_WRITERS)

    async def read(self, work: Callable[[*Arguments], Answer], *arguments: *Arguments) -> Answer:
        """Do work that changes nothing that could be waited for."""
        return await _in_thread(partial(work, *arguments), self._readers)

    async def write(self, work: Callable[[*Arguments], Answer], *arguments: *Arguments) -> Answer:
        """Do work that may wait for room or for the disk to catch up."""
        return await _in_thread(partial(work, *arguments), self._writers)


async def _in_thread(work: Callable[[], Answer], limiter: trio.CapacityLimiter) -> Answer:
    """As `trio.to_thread.run_sync`, for work that does not call back: at half of its cost."""
    await trio.lowlevel.checkpoint_if_cancelled()
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

    def tell(answer: Any) -> None:
        # Trio has ended only if it has crashed: then nobody waits any more.
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(trio.lowlevel.reschedule, task, answer)

    try:
        limiter.acquire_nowait()
    except trio.WouldBlock:
        await limiter.acquire()
    try:
        trio.lowlevel.start_thread_soon(work, tell)
        answer: Answer = await trio.lowlevel.wait_task_rescheduled(_wait_for_the_end)
        return answer
    finally:
        limiter.release()


def _wait_for_the_end(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
