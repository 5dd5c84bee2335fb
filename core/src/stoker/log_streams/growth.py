"""Waiting for files to grow: one look at all of them now and then, and none without a reader."""

from __future__ import annotations

from collections.abc import Callable

import trio

LOOK_SECONDS = 0.05
"""How long it takes at most until growth is seen (LOG-06 allows 200 ms)."""

_Waiting = tuple[Callable[[], bool], trio.Event]


class Growth:
    """Wakes those who wait for more.

    A ticker in place of inotify: it sees what is written through any mount, costs a writer nothing
    however often he writes, and a reader one look per tick.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        """Look in a task of `nursery`, which runs while somebody waits."""
        self._nursery = nursery
        self._waiting: set[_Waiting] = set()
        self._is_looking = False

    @property
    def is_looking(self) -> bool:
        """Whether a task runs."""
        return self._is_looking

    async def wait(self, is_news: Callable[[], bool]) -> None:
        """Wait until `is_news`, which is asked often, and must neither block nor raise."""
        if is_news():
            await trio.lowlevel.checkpoint()
            return
        waiting = (is_news, trio.Event())
        self._waiting.add(waiting)
        if not self._is_looking:
            self._is_looking = True
            self._nursery.start_soon(self._look)
        try:
            await waiting[1].wait()
        finally:
            self._waiting.discard(waiting)

    async def _look(self) -> None:
        while self._waiting:
            await trio.sleep(LOOK_SECONDS)
            # Nothing of a stream stays behind here, which would keep it readable.
            for event in [event for is_news, event in self._waiting if is_news()]:
                event.set()
        self._is_looking = False
