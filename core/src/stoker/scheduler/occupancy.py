"""What is free on an executor. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from stoker.resources import Capacity, Request, Share
from stoker.scheduler.matching import Amounts

_REMEMBERED = 256
"""How many unlike requests are remembered."""


class _Part(NamedTuple):
    """What a request takes of an executor."""

    millicpus: int
    memory_bytes: int
    weight: int


class Occupancy:
    """The free slots, processors, memory and consumed properties of one executor.

    A slot comes by an offer and goes with the task that is put on it; the rest comes back when the
    task lets go of it.
    """

    def __init__(self, capacity: Capacity, amounts: Mapping[str, int] | None = None) -> None:
        self._capacity = capacity
        self._free_millicpus, self._free_memory_bytes = capacity.total
        self._amounts = dict(amounts or {})
        self._parts: dict[Request, _Part] = {}
        self.slots = 0
        """How many slots wait for a task."""

    @property
    def free(self) -> Share:
        """What no task has."""
        return Share(self._free_millicpus, self._free_memory_bytes)

    def free_amount(self, name: str) -> int:
        """What no task has of a consumed property, in thousandths."""
        return self._amounts.get(name, 0)

    def fits(self, request: Request, amounts: Amounts = ()) -> bool:
        """Whether there is room for a task with `request` now."""
        if self.slots <= 0:
            return False
        part = self._part(request)
        return (
            part.millicpus <= self._free_millicpus
            and part.memory_bytes <= self._free_memory_bytes
            and (not amounts or all(a <= self.free_amount(name) for name, a in amounts))
        )

    def lacking(self, request: Request, amounts: Amounts = ()) -> str:
        """What keeps a task with `request` from beginning now; empty where it `fits`."""
        part, free = self._part(request), self.free
        if self.slots <= 0:
            return "no slot is free"
        if part.millicpus > free.millicpus:
            return f"{free.millicpus / 1000:g} processors are free of {part.millicpus / 1000:g}"
        if part.memory_bytes > free.memory_bytes:
            return f"{free.memory_bytes} bytes of memory are free of {part.memory_bytes}"
        for name, amount in amounts:
            if amount > self.free_amount(name):
                return f"{self.free_amount(name) / 1000:g} {name} are free of {amount / 1000:g}"
        return ""

    def take(self, request: Request, amounts: Amounts = ()) -> int:
        """A task with `request`, which fits, is put on a free slot. Returns its `weight`."""
        self.slots -= 1
        part = self._part(request)
        self._free_millicpus -= part.millicpus
        self._free_memory_bytes -= part.memory_bytes
        for name, amount in amounts:
            self._amounts[name] -= amount
        return part.weight

    def give_back(self, request: Request, amounts: Amounts = ()) -> None:
        """A task with `request` has let go of its share. Its slot will be offered when it is."""
        part = self._part(request)
        self._free_millicpus += part.millicpus
        self._free_memory_bytes += part.memory_bytes
        for name, amount in amounts:
            self._amounts[name] += amount

    def weight(self, request: Request) -> int:
        """What a task with `request` holds: thousandths of a processor, or as large a part of the
        executor's memory, whichever is more."""
        return self._part(request).weight

    def _part(self, request: Request) -> _Part:
        part = self._parts.get(request)
        if part is None:
            if len(self._parts) >= _REMEMBERED:
                self._parts.clear()
            part = self._parts[request] = self._measure(request)
        return part

    def _measure(self, request: Request) -> _Part:
        share, total = self._capacity.share(request), self._capacity.total
        by_memory = share.memory_bytes * total.millicpus // total.memory_bytes
        # Never nothing: who has something running is behind who has not.
        return _Part(*share, max(share.millicpus, by_memory, 1))
