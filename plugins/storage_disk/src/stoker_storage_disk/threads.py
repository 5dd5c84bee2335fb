"""The threads that wait for the disk.

No task of the server does: a disk that hangs holds up these threads, and those who wait for them,
but not health checks, metrics, or another store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

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
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._readers)

    async def write(self, work: Callable[[*Arguments], Answer], *arguments: *Arguments) -> Answer:
        """Do work that may wait for room or for the disk to catch up."""
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._writers)
