"""Something that is to be done at a time which may come nearer."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio


class Alarm:
    """Calls `ring` at the time that was set, once. Nothing is set to begin with."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._when = math.inf
        self._moved = trio.Event()

    def set(self, when: float) -> None:
        """Ring at `when`, in trio's time, unless it is to ring before that."""
        if when < self._when:
            self._when = when
            self._moved.set()

    async def run(self) -> None:
        """Wait and ring, without end."""
        while True:
            self._moved = trio.Event()
            with trio.move_on_at(self._when) as patience:
                await self._moved.wait()
            if patience.cancelled_caught:
                self._when = math.inf
                self._ring()
