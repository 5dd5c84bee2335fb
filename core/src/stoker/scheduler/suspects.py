"""Actions that were lost with the server, some of which wait for others of their sort. Pure.

One of them may be what ends the server. So the more often one was lost, the fewer run beside it,
those that were lost least first: the innocent end and are suspects no more, and the culprit is
alone at last.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from stoker.action import LoadedAction
from stoker.scheduler.losses import Losses, key_of
from stoker.scheduler.operation import Operation

_FEW = 64


class Waiting(NamedTuple):
    """An operation that is not in the queue yet, and what it is to be queued with."""

    operation: Operation
    action: LoadedAction
    priority: int
    executors: Collection[str]


@dataclass(slots=True)
class Suspects:
    """Those that are in the queue or with an executor, and those that wait to be let in."""

    losses: Losses
    _present: Counter[bytes] = field(default_factory=Counter)
    _waiting: list[tuple[int, int, Waiting]] = field(default_factory=list)
    _most: int = _FEW

    def may_enter(self, action: LoadedAction) -> bool:
        """Whether `action` may be queued now."""
        if not self.losses or not (lost := self.losses.with_server(key := key_of(action))):
            return True
        if key in self._present:
            return True
        most = max([lost, *map(self.losses.with_server, self._present)])
        return len(self._present) < self.losses.suspects_at_once(most)

    def entered(self, action: LoadedAction) -> None:
        """A task of `action` is queued."""
        if self.losses and self.losses.with_server(key := key_of(action)):
            self._present[key] += 1

    def left(self, action: LoadedAction) -> None:
        """A task of `action` has ended."""
        if self._present and (key := key_of(action)) in self._present:
            self._present[key] -= 1
            self._present += Counter()

    def hold(self, waiting: Waiting) -> None:
        """Keep an operation until there is room for it."""
        lost = self.losses.with_server(key_of(waiting.action))
        # By the order in which they were accepted: one that finds no room keeps its place.
        entry = (lost, waiting.operation.number, waiting)
        insort(self._waiting, entry, key=lambda each: each[:2])
        if len(self._waiting) > self._most:
            # Those who gave up meanwhile would stay until their turn comes.
            self._waiting = [each for each in self._waiting if each[2].operation.outcome is None]
            self._most = 2 * len(self._waiting) + _FEW

    def next_to_enter(self) -> Waiting | None:
        """Take out the first of those that wait, if it may enter or has ended already."""
        while self._waiting:
            waiting = self._waiting[0][2]
            if waiting.operation.outcome is None and not self.may_enter(waiting.action):
                return None
            del self._waiting[0]
            if waiting.operation.outcome is None:
                return waiting
        return None
