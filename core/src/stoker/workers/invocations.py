"""When invocations of the build tool have ended, as far as a server can tell. Pure.

An invocation that has had nothing to do for a while is taken to be over; no client says so.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict


class Invocations:
    """Invocations by their names. Times are seconds of any one clock."""

    def __init__(self, quit_after_seconds: float | None) -> None:
        """With None no invocation is ever over."""
        self._quit_after_seconds = quit_after_seconds
        self._active: Counter[str] = Counter()
        self._quiet: OrderedDict[str, float] = OrderedDict()  # each with when it fell quiet

    def begin(self, invocation: str) -> None:
        """One action of `invocation` waits for a worker, or has one; empty if it has no name."""
        if self._quit_after_seconds is not None and invocation:
            self._active[invocation] += 1
            self._quiet.pop(invocation, None)

    def end(self, invocation: str, now: float) -> None:
        """That action is over."""
        if invocation in self._active:
            self._active[invocation] -= 1
            if not self._active[invocation]:
                del self._active[invocation]
                self._quiet[invocation] = now

    @property
    def next_end(self) -> float:
        """When the next one will be over, if it stays quiet; infinity if all are busy."""
        if self._quit_after_seconds is None or not self._quiet:
            return math.inf
        return next(iter(self._quiet.values())) + self._quit_after_seconds

    def take_ended(self, now: float) -> frozenset[str]:
        """Those that are over now; each is told once."""
        ended = []
        while self.next_end <= now:
            ended.append(self._quiet.popitem(last=False)[0])
        return frozenset(ended)
