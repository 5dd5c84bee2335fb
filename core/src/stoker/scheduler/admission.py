"""How much is taken in: limits on all together and on each client, and when to try again. Pure.

Calls are told the time, `now`, in seconds of a clock that never goes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from stoker.errors import Overloaded

MIN_DELAY_SECONDS, MAX_DELAY_SECONDS = 0.1, 60.0
"""What clients are told to wait, at the least and at the most."""

_REMEMBERED = 64
"""After how many departures the pace is forgotten: enough to even out, and few enough to follow."""


class Bound:
    """A count that may not pass a limit, and the pace at which it falls."""

    __slots__ = ("_left", "_promised", "count", "limit")

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self.count = 0
        self._left = deque([now], _REMEMBERED)
        self._promised = now

    def leave(self, now: float) -> None:
        """There is one less."""
        self.count -= 1
        self._left.append(now)

    def promise(self, now: float) -> float:
        """The seconds after which one that is refused now should find a place.

        No two are promised the same place: however many are refused, they come back no faster
        than places become free.
        """
        seconds_each = (now - self._left[0]) / max(1, len(self._left) - 1)
        due = max(self._promised, now) + seconds_each
        delay = min(max(due - now, MIN_DELAY_SECONDS), MAX_DELAY_SECONDS)
        self._promised = now + delay
        return delay


class Limit:
    """How many of one thing there may be, together and of each client."""

    def __init__(
        self, what: str, setting: str, total: int, of_one: Callable[[str], int], now: float
    ) -> None:
        """`what` are counted, as in "5 actions are queued"; `setting` bounds them, and
        `setting` with ``_per_principal`` those of one client: `of_one`, by its name."""
        self._what = what
        self._setting = setting
        self._of_one = of_one
        self._all = Bound(total, now)
        self._each: dict[str, Bound] = {}

    @property
    def count(self) -> int:
        """How many there are."""
        return self._all.count

    @property
    def clients(self) -> int:
        """How many clients have any."""
        return len(self._each)

    def check(self, principal: str, now: float) -> None:
        """Raise Overloaded unless there may be one more, of this client."""
        if self._all.count >= self._all.limit:
            raise self.refusal(now)
        self.check_client(principal, now)

    def check_client(self, principal: str, now: float) -> None:
        """Raise Overloaded unless this client may have one more."""
        own = self._each.get(principal)
        if own is not None and own.count >= own.limit:
            who = f"of client {principal!r} " if principal else ""
            raise _refusal(f"{self._what} {who}", f"{self._setting}_per_principal", own, now)

    def refusal(self, now: float) -> Overloaded:
        """The error for one more than all clients may have together."""
        return _refusal(f"{self._what} ", self._setting, self._all, now)

    def enter(self, principal: str, now: float) -> None:
        """There is one more of this client."""
        own = self._each.get(principal)
        if own is None:
            own = self._each[principal] = Bound(self._of_one(principal), now)
        own.count += 1
        self._all.count += 1

    def leave(self, principal: str, now: float) -> None:
        """There is one less of this client."""
        own = self._each[principal]
        own.leave(now)
        self._all.leave(now)
        if not own.count:
            del self._each[principal]


class Limits(NamedTuple):
    """What a scheduler limits."""

    queued: Limit
    """Operations that wait for an executor."""
    in_flight: Limit
    """Operations that have not ended."""
    streams: Limit
    """Calls that wait for operations."""


def _refusal(what: str, setting: str, bound: Bound, now: float) -> Overloaded:
    delay = bound.promise(now)
    return Overloaded(
        f"{bound.limit} {what}already, as many as `{setting}` in [scheduler] allows: try again "
        f"in {delay:.1f} s, ask for less at once, or have the server allow more",
        delay,
    )
