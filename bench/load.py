"""The load that servers are put under: many tasks of one program, each asking again and again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from stoker.rpc import Channel

Item = TypeVar("Item")


async def call_again_and_again(
    channel: Channel, method: str, request: bytes, *, calls: int, in_flight: int
) -> None:
    """Make `calls` unary calls, `in_flight` at a time, and look at no answer."""

    async def call(_number: int) -> None:
        await channel.unary_unary(method, request, bytes)

    await at_a_time(in_flight, range(calls), call)


async def at_a_time(
    in_flight: int, items: Iterable[Item], work: Callable[[Item], Awaitable[object]]
) -> None:
    """Do `work` for each of `items`, `in_flight` of them at a time."""
    remaining = iter(items)

    async def work_on() -> None:
        for item in remaining:
            await work(item)

    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(work_on)
