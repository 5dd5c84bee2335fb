"""The room that a folder has: counting what is used, and evicting what was used last.

Everything here blocks, and is safe in threads. No method waits for room while it has a claim.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

from stoker.spi import StokerError, StorageFull
from stoker_storage_disk.folder import Folder, Part, disk_bytes
from stoker_storage_disk.index import Index, IndexedFile, now_ms
from stoker_storage_disk.ledger import Ledger

COPY_SUFFIX = ".executable"

# How many files one step of eviction or of bookkeeping takes: milliseconds, during which others
# wait for the index.
_BATCH = 256
# How much the background evicts between two looks at whether it should stop.
_BATCH_BYTES = 256 * 1024 * 1024
# Uses that lie this close together need not be told apart on the disk.
_MAX_GRAIN_MS = 60_000


class NotCountedYet(StorageFull):
    """There was no room, but not all files are known yet: wait for that and try again."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a folder may hold, and how long a file that was used is safe from eviction."""

    max_bytes: int | None = None
    min_life_seconds: float = 0.0
    high_water: float = 1.0
    low_water: float = 1.0

    def share(self, part: float) -> int | None:
        """So much of `max_bytes`."""
        return None if self.max_bytes is None else int(self.max_bytes * part)


class Room:
    """The room in `folder`, whose files are in `index`: never more of it is used than `bounds` say.

    All that is in the folder is counted in blocks, as the disk gives it: stored files, their
    copies, and uploads, whether somebody is at them or not.
    """

    def __init__(self, folder: Folder, index: Index, bounds: Bounds) -> None:
        self.folder = folder
        self.index = index
        self.bounds = bounds
        self.ledger = Ledger(bounds.max_bytes, bounds.share(bounds.high_water))
        self.is_counted = False
        """Whether every file is in the index, and its total the truth."""
        self.reclaim: Callable[[], bool] = lambda: False
        """Frees something that is no file of the index. Returns whether there was anything."""
        self._min_life_ms = int(bounds.min_life_seconds * 1000)
        self._grain_ms = min(_MAX_GRAIN_MS, self._min_life_ms // 10)
        self._is_evicting = False
        # Eviction must not decide on uses that are on their way into the index.
        self._maintenance = threading.Lock()

    # --- uploads

    @contextmanager
    def part(self) -> Iterator[Part]:
        """A new part, discarded in the end, its room with it."""
        part = self.folder.create_part()
        try:
            yield part
        finally:
            self.discard(part)

    def discard(self, part: Part) -> None:
        """Discard `part`, whether it was published or not. Raises Unavailable."""
        try:
            part.discard()
        finally:
            self._give_back(part)

    def append(self, part: Part, data: bytes | bytearray | memoryview) -> None:
        """Append to `part` when there is room for it.

        Raises StorageFull or Unavailable; NotCountedYet before anything was written.
        """
        self.take(part, len(data))
        part.append(data)

    def empty(self, part: Part) -> None:
        """Begin `part` at 0 again. Raises Unavailable."""
        part.empty()
        self._give_back(part)

    def check_size(self, size_bytes: int) -> None:
        """Raise StorageFull for a file that can never fit."""
        limit = self.bounds.max_bytes
        if limit is not None and disk_bytes(size_bytes) > limit:
            raise StorageFull(f"{size_bytes} bytes do not fit into max_bytes = {limit}")

    def take(self, part: Part, size_bytes: int) -> None:
        """Set room aside for `part` to grow by so much, evicting others if need be.

        Raises StorageFull when nothing more may be evicted.
        """
        self.check_size(part.size_bytes + size_bytes)
        needed = disk_bytes(part.size_bytes + size_bytes) - part.taken_bytes
        while not self.ledger.try_take(needed):
            # Before: what the filling of the index had in hand just now could not be evicted.
            was_counted = self.is_counted
            if self._make_room(needed):
                continue
            if not was_counted or not self.reclaim():
                raise self._no_room(needed, was_counted=was_counted)
        part.taken_bytes += needed

    def _no_room(self, needed: int, *, was_counted: bool) -> StorageFull:
        message = (
            f"no room for {needed} bytes: {self.ledger.used_bytes} of "
            f"max_bytes = {self.bounds.max_bytes} are in use, and nothing may be evicted: "
            f"it is being used, or was within min_life_seconds"
        )
        return StorageFull(message) if was_counted else NotCountedYet(message)

    def _give_back(self, part: Part) -> None:
        taken, part.taken_bytes = part.taken_bytes, 0
        self.ledger.give_back(taken)

    # --- eviction

    def _make_room(self, size_bytes: int) -> bool:
        limit = self.bounds.max_bytes
        assert limit is not None, "without a bound there is always room"
        # A little more than asked for, so that not every write has to do this.
        spare = min(limit // 100, 64 * 1024 * 1024)
        return self._evict(limit - size_bytes, max(limit - size_bytes - spare, 0))

    def evict(self) -> bool:
        """Evict some files if the high water mark was passed, and the low one not yet reached.

        Returns whether there is more to be done. One thread calls it. Raises Unavailable.
        """
        high, low = (self.bounds.share(b) for b in (self.bounds.high_water, self.bounds.low_water))
        if high is None or low is None:
            return False
        self._is_evicting |= self.ledger.used_bytes > high
        if self._is_evicting:
            excess = self.ledger.used_bytes - low
            target = self.ledger.used_bytes - min(excess, _BATCH_BYTES)
            gain = self._evict(target, target)
            self._is_evicting = gain and excess > _BATCH_BYTES
        return self._is_evicting

    def _evict(self, unless_below: int, down_to: int) -> bool:
        """Whether there is any gain. Does nothing if `unless_below` or fewer bytes are in use."""
        if self.ledger.used_bytes <= unless_below:
            return True
        gain = False
        place: tuple[int, str] | None = (-1, "")
        while place is not None and self.ledger.used_bytes > down_to:
            # Given back after each batch: others may have something to note.
            with self._maintenance:
                place, freed = self._evict_batch(place, down_to)
            gain |= freed
        # Others may have given room back meanwhile, so that there was no need.
        return gain or self.ledger.used_bytes <= unless_below

    def _evict_batch(
        self, place: tuple[int, str], down_to: int
    ) -> tuple[tuple[int, str] | None, bool]:
        # A full disk, on which nothing can be noted, is no reason not to evict.
        with suppress(StorageFull):
            self._flush()
        until_ms = now_ms() - self._min_life_ms - self._grain_ms
        oldest = self.index.oldest(place, until_ms, _BATCH)
        if not oldest:
            return None, False
        freed = self._evict_some(oldest, self.ledger.used_bytes - down_to)
        return (oldest[-1].used_ms, oldest[-1].name), freed

    def _evict_some(self, oldest: list[IndexedFile], excess: int) -> bool:
        condemned: list[IndexedFile] = []
        try:
            for file in oldest:
                if excess <= 0:
                    break
                if self.ledger.try_condemn(file.name, spare_touched=self._min_life_ms > 0):
                    condemned.append(file)
                    excess -= file.size_bytes
            self.drop(condemned)
        finally:
            self.ledger.release([file.name for file in condemned])
        return bool(condemned)

    def drop(self, files: list[IndexedFile]) -> None:
        """Remove files that are claimed, with the copies that `kind` tells of.

        Raises Unavailable; then some are gone.
        """
        freed = 0
        gone = []
        try:
            for file in files:
                if file.kind:
                    self.folder.unlink(file.name + COPY_SUFFIX)
                if self.folder.unlink(file.name):
                    freed += file.size_bytes
                gone.append(file.name)
        finally:
            # Last: what is still in the index after a crash is found not to exist some day.
            with self.index.lock:
                change = self.index.remove(gone)
                self.ledger.store(change if self.is_counted else -freed)

    # --- bookkeeping

    def flush_if_overdue(self) -> None:
        """Note in the index what was used, if it is much, and nobody is about it."""
        if self.ledger.is_overdue and self._maintenance.acquire(blocking=False):
            try:
                # On a full disk nothing can be noted, and reads go on. The uses wait, and who
                # looks after the folder tells of the trouble.
                with suppress(StokerError):
                    self._flush()
            finally:
                self._maintenance.release()

    def flush(self) -> None:
        """Note in the index what was used, and correct what it has wrong. Raises Unavailable."""
        with self._maintenance:
            self._flush()

    def _flush(self) -> None:
        used, suspects = self.ledger.take_due()
        try:
            rest = iter(used.items())
            while some := dict(islice(rest, _BATCH)):
                self.index.touch(some, self._grain_ms)
        except StokerError:
            # They are promised all the same.
            self.ledger.touch(used, now_ms())
            raise
        if self.is_counted:
            for start in range(0, len(suspects), _BATCH):
                self.forget_absent(self.index.present(suspects[start : start + _BATCH]))

    def forget_absent(self, names: Collection[str]) -> None:
        """Drop those of these entries whose file is not there. Raises Unavailable."""
        claimed = [name for name in names if self.ledger.try_claim(name)]
        try:
            absent = [name for name in claimed if self.folder.stat(name) is None]
            for name in absent:
                # Of no more use without the file beside it, which alone is ever looked for.
                self.folder.unlink(name + COPY_SUFFIX)
            with self.index.lock:
                change = self.index.remove(absent)
                if self.is_counted:
                    self.ledger.store(change)
        finally:
            self.ledger.release(claimed)

    def note_found(self, files: list[IndexedFile]) -> None:
        """Make sure that the index knows files that were found. Raises Unavailable."""
        with self.index.lock:
            change = self.index.add_found(files)
            if self.is_counted:
                self.ledger.store(change)

    def count(self, generation: int = 0) -> bool:
        """From now on every file is in the index, if it is still the one of `generation`."""
        with self.index.lock:
            self.index.mark_complete(complete=True)
            if self.index.generation == generation:
                self.is_counted = True
                self.ledger.set_stored(self.index.total_bytes)
            return self.is_counted
