"""What a measurement is made of: costs, taken in turns, and rows of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.servers import ServerProcess


class Cost(NamedTuple):
    """What a piece of work has cost."""

    wall_seconds: float
    cpu_seconds: float
    """The processor time of the process that was asked, not that of its children."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison. All figures are costs, so that a ratio below 1 is to stoker's credit."""

    what: str
    unit: str
    ours: Sequence[float]
    """A figure for each round."""
    against: str
    theirs: Sequence[float]
    """As many, each taken beside that of the same round."""
    at_most: float | None = None
    """What the ratio should be, where that was ever agreed."""

    @property
    def our_median(self) -> float:
        return statistics.median(self.ours)

    @property
    def their_median(self) -> float:
        return statistics.median(self.theirs)

    @property
    def ratios(self) -> list[float]:
        """Stoker's cost by the other's in each round."""
        return [mine / other for mine, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of `ratios`: what slows a whole round down does not touch it."""
        return statistics.median(self.ratios)


Work = Callable[[], Awaitable[object]]
Turn = Callable[[], Awaitable[Cost]]


class Pair(NamedTuple):
    """The costs of two, round by round."""

    ours: Sequence[Cost]
    theirs: Sequence[Cost]

    def wall_row(
        self, what: str, against: str, *, unit: str, per_second: float, at_most: float | None = None
    ) -> Row:
        """A row of wall time. `per_second` is how many of the unit one second is."""
        return Row(
            what=what,
            unit=unit,
            against=against,
            ours=[cost.wall_seconds * per_second for cost in self.ours],
            theirs=[cost.wall_seconds * per_second for cost in self.theirs],
            at_most=at_most,
        )

    def cpu_row(
        self, what: str, against: str, *, unit: str, per_second: float, at_most: float | None = None
    ) -> Row:
        """A row of processor time. `per_second` is how many of the unit one second is."""
        return Row(
            what=what,
            unit=unit,
            against=against,
            ours=[cost.cpu_seconds * per_second for cost in self.ours],
            theirs=[cost.cpu_seconds * per_second for cost in self.theirs],
            at_most=at_most,
        )


async def in_turns(rounds: int, *turns: Turn) -> list[list[Cost]]:
    """Take each of several costs `rounds` times: forth, back, forth, and so on.

    So what else the machine does, and whatever grows with time, falls on all of them.
    """
    costs: list[list[Cost]] = [[] for _ in turns]
    order = list(zip(turns, costs, strict=True))
    for _ in range(rounds):
        for turn, taken in order:
            taken.append(await turn())
        order.reverse()
    return costs


async def cost_at(server: ServerProcess, work: Work) -> Cost:
    """What `work` costs: its wall time, and the processor time of `server`."""
    cpu, wall = server.cpu_seconds(), time.perf_counter()
    await work()
    return Cost(time.perf_counter() - wall, server.cpu_seconds() - cpu)


async def cost_here(work: Work) -> Cost:
    """What `work` costs: its wall time, and the processor time of this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)
