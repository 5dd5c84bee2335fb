"""What is free on an executor. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from stoker.resources import Capacity, Request, Share
from stoker.scheduler.matching import Amounts


class Occupancy:
    """The free slots, processors, memory and consumed properties of one executor.

    A slot comes by an offer and goes with the task that is put on it; the rest comes back when the
    task lets go of it.
    """

    def __init__(self, capacity: Capacity, amounts: Mapping[str, int] | None = None) -> None:
        self._capacity = capacity
        self._free = capacity.total
        self._amounts = dict(amounts or {})
        self.slots = 0
        """How many slots wait for a task."""

    @property
    def free(self) -> Share:
        """What no task has."""
        return self._free

    def free_amount(self, name: str) -> int:
        """What no task has of a consumed property, in thousandths."""
        return self._amounts.get(name, 0)

    def fits(self, request: Request, amounts: Amounts = ()) -> bool:
        """Whether there is room for a task with `request` now."""
        share = self._capacity.share(request)
        return (
            self.slots > 0
            and share.millicpus <= self._free.millicpus
            and share.memory_bytes <= self._free.memory_bytes
            and all(amount <= self.free_amount(name) for name, amount in amounts)
        )

    def lacking(self, request: Request, amounts: Amounts = ()) -> str:
        """What keeps a task with `request` from beginning now; empty where it `fits`."""
        share, free = self._capacity.share(request), self._free
        if self.slots <= 0:
            return "no slot is free"
        if share.millicpus > free.millicpus:
            return f"{free.millicpus / 1000:g} processors are free of {share.millicpus / 1000:g}"
        if share.memory_bytes > free.memory_bytes:
            return f"{free.memory_bytes} bytes of memory are free of {share.memory_bytes}"
        for name, amount in amounts:
            if amount > self.free_amount(name):
                return f"{self.free_amount(name) / 1000:g} {name} are free of {amount / 1000:g}"
        return ""

    def take(self, request: Request, amounts: Amounts = ()) -> None:
        """A task with `request`, which fits, is put on a free slot."""
        self.slots -= 1
        self._change(request, amounts, -1)

    def give_back(self, request: Request, amounts: Amounts = ()) -> None:
        """A task with `request` has let go of its share. Its slot will be offered when it is."""
        self._change(request, amounts, 1)

    def weight(self, request: Request) -> int:
        """What a task with `request` holds: thousandths of a processor, or as large a part of the
        executor's memory, whichever is more."""
        share, total = self._capacity.share(request), self._capacity.total
        by_memory = share.memory_bytes * total.millicpus // total.memory_bytes
        # Never nothing: who has something running is behind who has not.
        return max(share.millicpus, by_memory, 1)

    def _change(self, request: Request, amounts: Amounts, sign: int) -> None:
        millicpus, memory_bytes = self._capacity.share(request)
        self._free = Share(
            self._free.millicpus + sign * millicpus, self._free.memory_bytes + sign * memory_bytes
        )
        for name, amount in amounts:
            self._amounts[name] += sign * amount
