"""The end of the server, from the moment at which it takes nothing new (SCH-06)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from stoker.errors import Draining

if TYPE_CHECKING:
    from stoker.scheduler.queue import Queue

_RESTART_SECONDS = 1.0
"""When clients of a server that stops are told to come again, after its end."""


class Shutdown:
    """Whether the server is about to end, and when."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._ends_at: float | None = None
        self._all_ended = trio.Event()

    @property
    def has_begun(self) -> bool:
        """Whether nothing is taken in any more, and nothing begun."""
        return self._ends_at is not None

    @property
    def seconds_left(self) -> float:
        """How long what runs may go on. It has to have begun."""
        assert self._ends_at is not None
        return self._ends_at - trio.current_time()

    def begin(self, within_seconds: float) -> None:
        """Nothing is handed out from now on, and what runs may go on for so long."""
        self._ends_at = trio.current_time() + within_seconds
        self._queue.stop()
        self.note_if_all_ended()

    def check(self) -> None:
        """Raise Draining from the beginning on."""
        if self._ends_at is not None:
            raise self.refusal()

    def refusal(self) -> Draining:
        """The error for whoever comes, or still waits."""
        # It is not known when the next one begins: soon after this one has ended.
        return Draining(max(self.seconds_left, 0) + _RESTART_SECONDS)

    def note_if_all_ended(self) -> None:
        """To be called whenever a run has ended, or was lost."""
        if self._ends_at is not None and not self._queue.executing:
            self._all_ended.set()

    async def wait_all_ended(self) -> None:
        """Wait until it has begun and nothing runs."""
        await self._all_ended.wait()
