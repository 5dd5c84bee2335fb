"""Which file work is done in place, and which in a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

# A trip to a thread and back takes 0.13 ms; reading 64 KiB that the system has cached takes less.
INLINE_BYTES = 64 * 1024
# Opening or looking up a file takes 3 to 5 µs: so many cost as much as one trip.
INLINE_FILES = 32

Answer = TypeVar("Answer")


async def run(work: Callable[[], Answer], *, inline: bool) -> Answer:
    """Do `work` here, after a checkpoint, or in a thread, where it is not cut short."""
    if not inline:
        return await trio.to_thread.run_sync(work)
    await trio.lowlevel.checkpoint()
    return work()
