"""Tasks in order of arrival. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

_FEW_VOID = 32


class _Arrived(Protocol):
    @property
    def sequence(self) -> int: ...


T = TypeVar("T", bound=_Arrived)


class Lane(Generic[T]):
    """What has arrived and still waits, first come first served.

    An entry that waits no longer stays until it comes to the front, or until most are such: so
    nothing costs by the number of entries.
    """

    __slots__ = ("_arrivals", "_returned", "_void", "_waits")

    def __init__(self, waits: Callable[[T], bool]) -> None:
        self._waits = waits
        self._arrivals: deque[T] = deque()
        # What comes back to its old place is rare. A heap of all would make each pay for it.
        self._returned: list[tuple[int, T]] = []
        self._void = 0

    def push(self, task: T) -> None:
        """Place `task` by its sequence."""
        if not self._arrivals or self._arrivals[-1].sequence < task.sequence:
            self._arrivals.append(task)
        else:
            heapq.heappush(self._returned, (task.sequence, task))

    def __iter__(self) -> Iterator[T]:
        """All that wait, in no order. One that has come back may be told twice."""
        yield from filter(self._waits, self._arrivals)
        yield from (task for _, task in self._returned if self._waits(task))

    def head(self) -> T | None:
        """The first that waits."""
        arrivals, waits = self._arrivals, self._waits
        while arrivals and not waits(arrivals[0]):
            arrivals.popleft()
            self._void -= 1
        if self._returned and (returned := self._first_returned()):
            if arrivals and arrivals[0].sequence < returned.sequence:
                return arrivals[0]
            return returned
        return arrivals[0] if arrivals else None

    def _first_returned(self) -> T | None:
        while self._returned and not self._waits(self._returned[0][1]):
            heapq.heappop(self._returned)
            self._void -= 1
        return self._returned[0][1] if self._returned else None

    def note_void(self) -> None:
        """An entry waits no longer."""
        self._void += 1
        if self._void > (len(self._arrivals) + len(self._returned)) // 2 + _FEW_VOID:
            self._arrivals = deque(task for task in self._arrivals if self._waits(task))
            self._returned = [entry for entry in self._returned if self._waits(entry[1])]
            heapq.heapify(self._returned)
            self._void = 0
