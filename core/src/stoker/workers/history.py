"""What became of each key, so that it can be said why an action found no warm worker. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from stoker.workers.key import WorkerKey
from stoker.workers.shelves import Reason

_MAX_KEYS_WITHOUT_WORKERS = 256


@dataclass(slots=True, eq=False)
class KeyHistory:
    """What the actions of one key met with."""

    key: WorkerKey
    name: str
    """The mnemonic of the first of them."""
    nearest_key_differs_in: tuple[str, ...] = ()
    hits: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    last_error: str = ""
    last_end: Reason | None = None
    workers: int = 0


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a worker had to be started."""

    reason: str
    differs_in: tuple[str, ...] = ()
    """For the reason ``key``, in which components."""


class History:
    """All keys that have workers, and as many of the others as were used last."""

    def __init__(self, max_keys_without_workers: int = _MAX_KEYS_WITHOUT_WORKERS) -> None:
        self._max_keys_without_workers = max_keys_without_workers
        self._keys: dict[WorkerKey, KeyHistory] = {}
        self._without_workers: OrderedDict[KeyHistory, None] = OrderedDict()
        self.hits = 0
        """Actions that got a warm worker."""
        self.misses: Counter[str] = Counter()
        """Actions that a worker was started for, by the reason. ``key:argv`` and the like, for
        each component that differed, come beside ``key``."""
        self.ended: Counter[str] = Counter()
        """Workers that have ended, by the reason."""

    def known(self) -> list[KeyHistory]:
        """All that is known."""
        return list(self._keys.values())

    def hit(self, key: WorkerKey) -> None:
        """An action got a warm worker."""
        self._keys[key].hits += 1
        self.hits += 1

    def miss(self, key: WorkerKey, name: str, *, is_busy: bool, ending: Reason | None) -> Miss:
        """A worker is started for an action, and added to the key's. Why there was none.

        `is_busy` tells that there are others, none of which could be had; `ending` why the last
        of those that are being ended is.
        """
        history = self._keys.get(key)
        if history is None:
            miss = self._first_miss(key, name)
            history = self._keys[key] = KeyHistory(key, name, miss.differs_in)
        else:
            miss = Miss("busy" if is_busy else ending or history.last_end or "failed")
        self._without_workers.pop(history, None)
        history.workers += 1
        history.misses[miss.reason] += 1
        self.misses.update([miss.reason, *(f"key:{component}" for component in miss.differs_in)])
        return miss

    def _first_miss(self, key: WorkerKey, name: str) -> Miss:
        # Whatever another mnemonic does says nothing of why this one shares no worker.
        akin = [other.key for other in self._keys.values() if other.name == name]
        nearest = min(map(key.difference, akin), key=len, default=())
        return Miss("key", nearest) if nearest else Miss("first")

    def end(self, key: WorkerKey, reason: Reason, error: str = "") -> None:
        """A worker of `key` has ended."""
        history = self._keys[key]
        history.workers -= 1
        history.last_end = reason
        history.last_error = error or history.last_error
        self.ended[reason] += 1
        if not history.workers:
            self._without_workers[history] = None
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        if len(self._without_workers) > self._max_keys_without_workers:
            oldest, _ = self._without_workers.popitem(last=False)
            del self._keys[oldest.key]
