"""Who uses which file of a folder, and how many bytes are spoken for. All of it in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager

# How many files may be noted as used, or as suspect, before somebody has to look after them.
MANY = 50_000


class Pins:
    """What keeps some files from being evicted."""

    def __init__(
        self,
        pin: Callable[[Iterable[str]], set[str]],
        pin_all: Callable[[Set[str], int], Set[str]],
    ) -> None:
        self._pin = pin
        self._pin_all = pin_all
        self.names: set[str] = set()
        self.batches: list[Set[str]] = []

    def add(self, *names: str) -> set[str]:
        """Pin these files too. Returns those pinned by now: the ones not condemned."""
        self.names |= self._pin(set(names) - self.names)
        return self.names.intersection(names)

    def add_used(self, batch: Set[str], used_ms: int) -> Set[str]:
        """Pin many files too, and note them as used, at one stroke. `batch` is kept, and must
        stay as it is. Returns those condemned, on which nobody should count."""
        condemned = self._pin_all(batch, used_ms)
        self.batches.append(batch)
        return condemned


class Ledger:
    """Pins, claims, touches and bytes. Every method is quick, blocks on no disk, and is safe in
    threads, but for `claimed`, which waits for other claims on the same names.

    A *claim* is the sole right to change the file of a name. A claimed file that is *condemned*
    is about to be removed: it counts as absent.
    """

    def __init__(self, max_bytes: int | None, alarm_bytes: int | None) -> None:
        self.max_bytes = max_bytes
        self._alarm_bytes = alarm_bytes
        self.on_alarm: Callable[[], None] = lambda: None
        """Called, in any thread, when more than `alarm_bytes` are in use."""
        self._stored_bytes = 0
        self._in_flight_bytes = 0
        self._pins: dict[str, int] = {}
        self._batches: list[Set[str]] = []
        """Names that are pinned together: a count for each would take longer than looking here."""
        self._claims: dict[str, bool] = {}
        self._condemned: set[str] = set()
        self._touched: dict[str, int] = {}
        self._used: list[tuple[Set[str], int]] = []
        """As `_touched`, of names that were used together."""
        self._suspects: set[str] = set()
        self._changed = threading.Condition()

    # --- bytes

    @property
    def used_bytes(self) -> int:
        """What files and uploads, finished or not, take up now."""
        with self._changed:
            return self._stored_bytes + self._in_flight_bytes

    def try_take(self, size_bytes: int) -> bool:
        """Set room for an upload aside, if there is any."""
        with self._changed:
            used = self._stored_bytes + self._in_flight_bytes + size_bytes
            if self.max_bytes is not None and used > self.max_bytes:
                return False
            self._in_flight_bytes += size_bytes
        if self._alarm_bytes is not None and used > self._alarm_bytes:
            self.on_alarm()
        return True

    def take(self, size_bytes: int) -> None:
        """Count what an upload of earlier has taken, whatever the bound says."""
        with self._changed:
            self._in_flight_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """The room of an upload is free again."""
        with self._changed:
            self._in_flight_bytes -= size_bytes

    def store(self, change_bytes: int, uploaded_bytes: int = 0) -> None:
        """Stored files grew by `change_bytes`, out of uploads of `uploaded_bytes`."""
        with self._changed:
            self._stored_bytes += change_bytes
            self._in_flight_bytes -= uploaded_bytes

    def set_stored(self, size_bytes: int) -> None:
        """Stored files were counted."""
        with self._changed:
            self._stored_bytes = size_bytes

    # --- pins and claims

    @contextmanager
    def pins(self) -> Iterator[Pins]:
        """A set of pins, empty at first, all of which are undone in the end."""
        pins = Pins(self._pin, self._pin_all)
        try:
            yield pins
        finally:
            self._unpin(pins)

    def _pin(self, names: Iterable[str]) -> set[str]:
        with self._changed:
            pinned = {name for name in names if not self._claims.get(name)}
            for name in pinned:
                self._pins[name] = self._pins.get(name, 0) + 1
            return pinned

    def _pin_all(self, batch: Set[str], used_ms: int) -> Set[str]:
        with self._changed:
            self._batches.append(batch)
            self._used.append((batch, used_ms))
            return {name for name in self._condemned if name in batch}

    def _unpin(self, pins: Pins) -> None:
        with self._changed:
            for name in pins.names:
                self._pins[name] -= 1
                if not self._pins[name]:
                    del self._pins[name]
            for batch in pins.batches:
                # Not by `remove`, which would compare their contents.
                position = next(n for n, other in enumerate(self._batches) if other is batch)
                del self._batches[position]

    def _is_touched(self, name: str) -> bool:
        return name in self._touched or any(name in batch for batch, _ in self._used)

    def _is_pinned(self, name: str) -> bool:
        return name in self._pins or any(name in batch for batch in self._batches)

    @contextmanager
    def claimed(self, names: Sequence[str], *, condemned: bool = False) -> Iterator[None]:
        """Claim all of `names`, waiting for those that others have claimed."""
        # In order: two who wait for each other's would do so for ever.
        claimed: list[str] = []
        try:
            for name in sorted(names):
                with self._changed:
                    while name in self._claims:
                        self._changed.wait()
                    self._claim(name, condemned=condemned)
                    claimed.append(name)
            yield
        finally:
            self.release(claimed)

    def try_claim(self, name: str) -> bool:
        """Claim `name` unless somebody else has."""
        with self._changed:
            if name in self._claims:
                return False
            self._claim(name, condemned=False)
            return True

    def try_condemn(self, name: str, *, spare_touched: bool) -> bool:
        """Claim `name` to remove it, unless it is in use."""
        with self._changed:
            if name in self._claims or self._is_pinned(name):
                return False
            if spare_touched and self._is_touched(name):
                return False
            self._touched.pop(name, None)
            self._claim(name, condemned=True)
            return True

    def _claim(self, name: str, *, condemned: bool) -> None:
        self._claims[name] = condemned
        if condemned:
            self._condemned.add(name)

    def release(self, names: Collection[str]) -> None:
        """Give claims up."""
        with self._changed:
            for name in names:
                del self._claims[name]
            self._condemned.difference_update(names)
            self._changed.notify_all()

    # --- use

    def touch(self, names: Collection[str], used_ms: int) -> set[str]:
        """Note files as used, before looking whether they are there. Returns those condemned."""
        with self._changed:
            condemned = self._condemned.intersection(names) if self._condemned else set()
            self._touched.update((name, used_ms) for name in names if name not in condemned)
            return condemned

    def suspect(self, names: Collection[str]) -> None:
        """These were not there: not used, and if the index knows them it is wrong."""
        with self._changed:
            for name in names:
                self._touched.pop(name, None)
            # More are of no use: an entry that stays wrong is corrected when it is evicted.
            if len(self._suspects) + len(names) <= MANY:
                self._suspects.update(names)

    @property
    def is_due(self) -> bool:
        """Whether there is anything to be noted in the index."""
        return bool(self._touched or self._used or self._suspects)

    @property
    def is_overdue(self) -> bool:
        """Whether there is so much that it should not wait."""
        with self._changed:
            return len(self._touched) + sum(len(batch) for batch, _ in self._used) >= MANY

    def take_due(self) -> tuple[dict[str, int], list[str]]:
        """Files used, with the last time, and files to be suspected, since the last call."""
        with self._changed:
            touched, self._touched = self._touched, {}
            used, self._used = self._used, []
            suspects, self._suspects = self._suspects, set()
        # Not under the lock, as it takes a while.
        for batch, used_ms in used:
            touched.update((name, max(used_ms, touched.get(name, 0))) for name in batch)
        return touched, [*suspects]
