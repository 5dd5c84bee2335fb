"""Where work is done that takes the processor: here, or in a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")


async def run(work: Callable[[*Arguments], Answer], *arguments: *Arguments, inline: bool) -> Answer:
    """`work` done here where that is `inline`, or in a thread where it would hold up others.

    Cancellation waits for a thread that has begun.
    """
    return work(*arguments) if inline else await trio.to_thread.run_sync(work, *arguments)
