"""Operations that nobody waits for any more, until somebody comes back or they are abandoned."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from stoker.alarm import Alarm
from stoker.scheduler.operation import Operation
from stoker.scheduler.task import Stage


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

    @contextmanager
    def watching(self, operation: Operation) -> Iterator[None]:
        """Somebody waits for `operation`, within this context."""
        operation.watchers += 1
        try:
            yield
        finally:
            operation.watchers -= 1
            operation.departures += 1
            if operation.watchers == 0 and operation.stage is not Stage.COMPLETED:
                self._note(operation)

    async def await_return(self, operations: Iterable[Operation], seconds: float) -> None:
        """Abandon those of `operations` that nobody waits for, nor has, `seconds` from now."""
        await trio.sleep(seconds)
        for operation in operations:
            # There may be as many as a queue holds, and others want their turn.
            await trio.lowlevel.checkpoint()
            if operation.watchers == 0 and operation.departures == 0:
                self._abandon(operation)

    def _note(self, operation: Operation) -> None:
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
