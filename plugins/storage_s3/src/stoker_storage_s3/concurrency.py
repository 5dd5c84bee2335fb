"""Doing many things at once, and one thing only once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Generic, TypeVar

import trio

from stoker.spi import Digest, StokerError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


async def for_each(
    items: Iterable[Item], work: Callable[[Item], Awaitable[object]], *, width: int
) -> None:
    """Do `work` on all items, `width` at a time.

    The first StokerError ends it all and is raised, not in a group.
    """
    failures: list[StokerError] = []
    remaining = iter(items)

    async def take_turns() -> None:
        for item in remaining:
            try:
                await work(item)
            except StokerError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(width):
            nursery.start_soon(take_turns)
    if failures:
        raise failures[0]


class Flight(Generic[Answer]):
    """Work on one digest that is under way."""

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.answers: list[Answer] = []
        """One if the work succeeded."""
        self.failure: StokerError | None = None


class Flights(Generic[Answer]):
    """Which digests are being worked on, so that nobody does the same work beside another."""

    def __init__(self) -> None:
        self._under_way: dict[Digest, Flight[Answer]] = {}

    def start(self, digest: Digest) -> Flight[Answer] | None:
        """A flight for others to wait on, to be landed by the caller; None if there is one."""
        if digest in self._under_way:
            return None
        flight = self._under_way[digest] = Flight()
        return flight

    def land(self, digest: Digest, flight: Flight[Answer]) -> None:
        """Tell those who wait, and make way for the next flight."""
        del self._under_way[digest]
        flight.landed.set()

    async def wait_landed(self, digest: Digest) -> Flight[Answer] | None:
        """Wait for the flight under way, if any, and return it landed."""
        flight = self._under_way.get(digest)
        if flight is None:
            return None
        await flight.landed.wait()
        return flight

    async def once(self, digest: Digest, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Do `work`, unless somebody else is at it: then share how that ends, failure included.

        A failure is shared lest those who wait try a dead service one after the other. If the
        other was cancelled, one of those who wait does the work.
        """
        while flight := await self.wait_landed(digest):
            if flight.answers:
                return flight.answers[0]
            if flight.failure is not None:
                raise flight.failure.again()
        return await self._lead(digest, work)

    async def _lead(self, digest: Digest, work: Callable[[], Awaitable[Answer]]) -> Answer:
        flight = self.start(digest)
        assert flight is not None, "nobody else ran since there was none"
        try:
            answer = await work()
            flight.answers.append(answer)
        except StokerError as error:
            flight.failure = error
            raise
        finally:
            self.land(digest, flight)
        return answer


def ranges(start: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    """`start` to `end` in pieces of `step`, the last one shorter if need be."""
    for begin in range(start, end, step):
        yield begin, min(begin + step, end)
