"""What is free on an executor. Pure."""

from __future__ import annotations

from stoker.resources import Capacity, Request, Share


class Occupancy:
    """The free slots, processors and memory of one executor.

    A slot comes by an offer and goes with the task that is put on it; processors and memory come
    back when the task lets go of them.
    """

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._free = capacity.total
        self.slots = 0
        """How many slots wait for a task."""

    @property
    def free(self) -> Share:
        """What no task has."""
        return self._free

    def fits(self, request: Request) -> bool:
        """Whether there is room for a task with `request` now."""
        share = self._capacity.share(request)
        return (
            self.slots > 0
            and share.millicpus <= self._free.millicpus
            and share.memory_bytes <= self._free.memory_bytes
        )

    def take(self, request: Request) -> None:
        """A task with `request`, which fits, is put on a free slot."""
        millicpus, memory_bytes = self._capacity.share(request)
        self.slots -= 1
        self._free = Share(self._free.millicpus - millicpus, self._free.memory_bytes - memory_bytes)

    def give_back(self, request: Request) -> None:
        """A task with `request` has let go of its share. Its slot will be offered when it is."""
        millicpus, memory_bytes = self._capacity.share(request)
        self._free = Share(self._free.millicpus + millicpus, self._free.memory_bytes + memory_bytes)
