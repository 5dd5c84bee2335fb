"""When idle workers are ended: after a while, or with the invocation that they served. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Generic

from stoker.workers.invocations import Invocations
from stoker.workers.making import FolderT
from stoker.workers.places import Places
from stoker.workers.resident import Resident


class Expiry(Generic[FolderT]):
    """What time does to the idle workers of `places`. Times are seconds of any one clock."""

    def __init__(
        self,
        places: Places[Resident[FolderT]],
        *,
        idle_seconds: float,
        quit_after_invocation_seconds: float | None,
    ) -> None:
        self._places = places
        self._idle_seconds = idle_seconds
        self._invocations = Invocations(quit_after_invocation_seconds)

    def begin_action(self, invocation: str) -> None:
        """An action of `invocation`, empty if it has no name, waits for a worker, or has one."""
        self._invocations.begin(invocation)

    def end_action(self, invocation: str, now: float) -> None:
        """That action is over."""
        self._invocations.end(invocation, now)

    @property
    def next_end(self) -> float:
        """When something that is idle now has been so for too long."""
        oldest = self._places.least_recently_used()
        expiry = math.inf if oldest is None else oldest.idle_since + self._idle_seconds
        return min(expiry, self._invocations.next_end)

    def retire_overdue(self, residents: Iterable[Resident[FolderT]], now: float) -> None:
        """Retire those that have been idle for too long by now."""
        while (oldest := self._places.least_recently_used()) is not None:
            if oldest.idle_since + self._idle_seconds > now:
                break
            self._places.retire(oldest, "expired")
        ended = self._invocations.take_ended(now)
        for resident in residents if ended else ():
            if resident.invocation in ended and self._places.is_idle(resident):
                self._places.retire(resident, "invocation")
