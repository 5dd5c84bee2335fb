"""The executors of a queue: which are there, and what is free on them. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping

from stoker.resources import Share
from stoker.scheduler.affinity import Affinity
from stoker.scheduler.kinds import Kind
from stoker.scheduler.matching import Matching, Offer
from stoker.scheduler.occupancy import Occupancy
from stoker.scheduler.task import Assignment, Task
from stoker.scheduler.waiting import GONE, KEPT_FREE


class Executors:
    """Those of a queue. One that is detached keeps its slots and what it has, and gets nothing."""

    def __init__(self, offers: Mapping[str, Offer], matching: Matching) -> None:
        self._occupancy = {
            name: Occupancy(offer.capacity, matching.amounts(offer))
            for name, offer in offers.items()
        }
        self._rotation = deque(offers)
        self._affinity = Affinity()
        self.attached = set(offers)
        """Those that are there. All are to begin with."""
        self.slots = 0
        """How many slots of those wait for a task."""

    def attach(self, name: str) -> None:
        """`name`, which is detached, is there."""
        self.attached.add(name)
        self._rotation.append(name)
        self.slots += self._occupancy[name].slots

    def detach(self, name: str) -> None:
        """`name`, which is attached, gets nothing from now on."""
        self.attached.remove(name)
        self._rotation.remove(name)
        self.slots -= self._occupancy[name].slots

    def change_slots(self, name: str, change: int) -> None:
        """So many more slots of `name` wait for a task."""
        self._occupancy[name].slots += change
        if name in self.attached:
            self.slots += change

    def free(self, name: str) -> Share:
        """What no task has of `name`."""
        return self._occupancy[name].free

    def any_slot(self, saved: Collection[str]) -> bool:
        """Whether one waits that is not on an executor of `saved`."""
        if not saved:
            return self.slots > 0
        return any(self._occupancy[name].slots for name in self._rotation if name not in saved)

    def room_for(self, task: Task, saved: Collection[str]) -> str | None:
        """The executor with room for `task` that is warm for it, or else was given work least
        recently."""
        kind = task.kind
        if self.slots == 0:
            return None
        fitting = [
            name
            for name in self._rotation
            if name in kind.eligible
            and name not in saved
            and self._occupancy[name].fits(kind.request, kind.amounts)
        ]
        return self._affinity.prefer(task.action, fitting)

    def obstacles(self, task: Task) -> dict[str, str]:
        """The executors that could take `task`, and what keeps it from each now."""
        kind = task.kind
        return {
            name: (
                self._occupancy[name].lacking(kind.request, kind.amounts) or KEPT_FREE
                if name in self.attached
                else GONE
            )
            for name in sorted(kind.eligible)
        }

    def save_for(self, task: Task, saved: set[str]) -> None:
        """Keep tasks behind `task` from one executor. It stays the same one while it can: else
        each in turn would be filled up again."""
        if task.saving is None or task.saving in saved or task.saving not in self.attached:
            task.saving = next(
                (name for name in self._rotation if self._could_save(name, task, saved)), None
            )
        if task.saving is not None:
            saved.add(task.saving)

    def _could_save(self, name: str, task: Task, saved: Collection[str]) -> bool:
        # One without a free slot takes nothing anyway.
        return name in task.kind.eligible and name not in saved and self._occupancy[name].slots > 0

    def take(self, assignment: Assignment) -> int:
        """A task is put on a slot, where it has room. Returns what it counts for, as `weight`."""
        task, name = assignment
        if self._rotation[-1] != name:
            self._rotation.remove(name)
            self._rotation.append(name)
        self.slots -= 1
        if len(self._occupancy) > 1:
            self._affinity.note(task.action, name)
        return self._occupancy[name].take(task.kind.request, task.kind.amounts)

    def give_back(self, assignment: Assignment) -> None:
        """The executor has nothing left of a task. Its slot will be offered when it is."""
        kind = assignment.task.kind
        self._occupancy[assignment.executor].give_back(kind.request, kind.amounts)

    def weight(self, kind: Kind, name: str) -> int:
        """What a task of `kind` counts for where `name` has it."""
        return self._occupancy[name].weight(kind.request)
