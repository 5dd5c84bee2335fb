"""Operations that nobody waits for any more, until somebody comes back or they are abandoned."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import trio

from stoker.alarm import Alarm
from stoker.scheduler.operation import Operation


class _Departure(NamedTuple):
    due: float
    operation: Operation
    number: int


class Departures:
    """Calls `abandon` with each operation that nobody has waited for during `patience_seconds`.

    One clock for all of them: a connection that breaks may leave thousands at once.
    """

    def __init__(self, abandon: Callable[[Operation], None], patience_seconds: float) -> None:
        self._abandon = abandon
        self._patience_seconds = patience_seconds
        self._departures: deque[_Departure] = deque()
        self._alarm = Alarm(self._look)

    async def run(self) -> None:
        """Watch the clock, without end."""
        await self._alarm.run()

    def note(self, operation: Operation) -> None:
        """The last that waited for `operation` has gone."""
        due = trio.current_time() + self._patience_seconds
        self._departures.append(_Departure(due, operation, operation.departures))
        self._alarm.set(due)

    def _look(self) -> None:
        while self._departures and self._departures[0].due <= trio.current_time():
            _, operation, number = self._departures.popleft()
            if operation.watchers == 0 and operation.departures == number:
                self._abandon(operation)
        if self._departures:
            self._alarm.set(self._departures[0].due)
