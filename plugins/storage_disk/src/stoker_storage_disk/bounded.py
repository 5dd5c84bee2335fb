"""A folder that knows what it holds, stays within a bound, and drops first what was used last.

Everything here blocks, and is safe in threads. No method waits for room while it has a claim.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import structlog

from stoker.spi import StokerError, StorageFull
from stoker_storage_disk.folder import EXECUTABLE, Folder, Part, disk_bytes
from stoker_storage_disk.index import Index, IndexedFile, now_ms
from stoker_storage_disk.ledger import Ledger

_log = structlog.get_logger(__name__)

COPY_SUFFIX = ".executable"

# How many files one step of eviction or of bookkeeping takes: milliseconds, during which others
# wait for the index.
_BATCH = 256
_TOUCH_BATCH = 1_000
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


class BoundedFolder:
    """`folder` with its `index`, kept within `bounds`."""

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
        # Eviction must not decide on uses that are on their way into the index.
        self._maintenance = threading.Lock()

    # --- files

    def find(self, sizes: Mapping[str, int]) -> set[str]:
        """Those of the files that are present and have these sizes; they count as used.

        A file of another size is damaged: it is removed and counts as absent. Raises Unavailable.
        """
        # Before the look: what is found now must not be evicted because of an older use.
        condemned = self.ledger.touch(sizes.keys(), now_ms())
        present = {
            name
            for name, size_bytes in sizes.items()
            if name not in condemned and self._holds(name, size_bytes)
        }
        self.ledger.suspect(sizes.keys() - present - condemned)
        self.flush_if_overdue()
        return present

    def open_file(self, name: str, size_bytes: int | None = None) -> int | None:
        """A descriptor to read a file, which counts as used; None if it is absent.

        As for `find`, unless `size_bytes` is None. Pin it before. Raises Unavailable.
        """
        self.ledger.touch([name], now_ms())
        descriptor = self.folder.open_file(name)
        if descriptor is None:
            self.ledger.suspect([name])
            return None
        found = os.fstat(descriptor)
        if size_bytes is None or found.st_size == size_bytes:
            return descriptor
        os.close(descriptor)
        self.remove_damaged(name, found, f"it has {found.st_size} bytes, not {size_bytes}")
        return None

    def remove_damaged(self, name: str, damaged: os.stat_result, reason: str) -> None:
        """Remove a file, if it is still the one found `damaged`. Raises Unavailable."""
        with self.ledger.claimed([name], condemned=True):
            found = self.folder.stat(name)
            if found is None or found.st_ino != damaged.st_ino:
                return
            # The copy was made from it.
            self._remove([IndexedFile(name, disk_bytes(found.st_size), 0, 1)])
        _log.warning("damaged file removed", path=self.folder.absolute(name), reason=reason)

    def remove(self, names: Collection[str]) -> None:
        """Remove files, present or not. Raises Unavailable."""
        for name in names:
            with self.ledger.claimed([name], condemned=True):
                found = self.folder.stat(name)
                if found is not None:
                    self._remove([IndexedFile(name, disk_bytes(found.st_size), 0, 0)])

    def publish(
        self, parts: Mapping[str, Part], *, replace: bool = False
    ) -> dict[str, StokerError]:
        """Give whole parts their names. Returns those that failed, and why.

        A name that has a sound file already keeps it, unless told to `replace`: then the part is
        left as it is. Discard all parts afterwards.
        """
        failures: dict[str, StokerError] = {}
        with _failing(failures, parts):
            for name, part in parts.items():
                if replace or not self._is_sound(name, part.size_bytes):
                    self.folder.seal(part)
            with self.ledger.claimed([*parts]):
                self._publish(parts, failures, replace=replace)
            # Also of files that were there: their publisher may not have come so far.
            self.sync_folders(parts)
        return failures

    def sync_folders(self, names: Collection[str]) -> None:
        """With `fsync`, make sure that these files would be found again. Raises Unavailable."""
        if self.folder.fsync:
            for name in {name.rpartition("/")[0]: name for name in names}.values():
                self.folder.sync_folder_of(name)

    def _publish(
        self, parts: Mapping[str, Part], failures: dict[str, StokerError], *, replace: bool
    ) -> None:
        new = {
            name: part
            for name, part in parts.items()
            if replace or not self._is_sound(name, part.size_bytes)
        }
        self.ledger.touch(parts.keys() - new.keys(), now_ms())
        replaced = {name: self.folder.stat(name) for name in new} if replace else {}
        # First: a crash in between leaves an entry without a file, never a file that is not
        # counted against the bound.
        self._note_new(new)
        for name, part in new.items():
            with _failing(failures, [name]):
                if not part.sealed:
                    self.folder.seal(part)
                self.folder.move(part, name)
                if (old := replaced.get(name)) is not None and old.st_size > part.size_bytes:
                    self._store(self.index.resize, name, disk_bytes(part.size_bytes))
            if name in failures:
                self.ledger.suspect([name])

    def _note_new(self, new: Mapping[str, Part]) -> None:
        sizes = {name: disk_bytes(part.size_bytes) for name, part in new.items()}
        with self.index.lock:
            change = self.index.add(sizes)
            # Entries without a file, of which there may be some as yet, are not in the count.
            if not self.is_counted:
                change = sum(sizes.values())
            self.ledger.store(change, sum(part.taken_bytes for part in new.values()))
        for part in new.values():
            part.taken_bytes = 0

    def _store(self, change: Callable[[str, int], int], name: str, size_bytes: int) -> None:
        with self.index.lock:
            self.ledger.store(change(name, size_bytes))

    def _holds(self, name: str, size_bytes: int) -> bool:
        found = self.folder.stat(name)
        if found is None or found.st_size == size_bytes:
            return found is not None
        self.remove_damaged(name, found, f"it has {found.st_size} bytes, not {size_bytes}")
        return False

    def _is_sound(self, name: str, size_bytes: int) -> bool:
        found = self.folder.stat(name)
        return found is not None and found.st_size == size_bytes

    # --- executable copies

    def find_copy(self, name: str, size_bytes: int) -> bool:
        """Whether there is an executable copy of a file, made now if need be.

        Pin the file before. Raises StorageFull or Unavailable.
        """
        if not self.find({name: size_bytes}):
            return False
        if self._is_sound(name + COPY_SUFFIX, size_bytes):
            return True
        source = self.open_file(name, size_bytes)
        if source is None:
            return False
        try:
            with self.part() as part:
                self.take(part, size_bytes)
                part.copy_from(source, size_bytes)
                return part.size_bytes == size_bytes and self._publish_copy(part, name)
        finally:
            os.close(source)

    def _publish_copy(self, part: Part, name: str) -> bool:
        self.folder.seal(part, EXECUTABLE)
        with self.ledger.claimed([name]):
            if not self._is_sound(name + COPY_SUFFIX, part.size_bytes):
                with self.index.lock:
                    change = self.index.add_copy(name, disk_bytes(part.size_bytes))
                    self.ledger.store(change, part.taken_bytes)
                    part.taken_bytes = 0
                self.folder.move(part, name + COPY_SUFFIX)
        return True

    def remove_copy(self, name: str) -> None:
        """Remove the executable copy of a file, if there is one. Raises Unavailable."""
        with self.ledger.claimed([name]):
            if self.folder.unlink(name + COPY_SUFFIX):
                with self.index.lock:
                    self.ledger.store(self.index.drop_copy(name))

    # --- room

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
            if not self._make_room(needed) and not self.reclaim():
                raise self._no_room(needed)
        part.taken_bytes += needed

    def _no_room(self, needed: int) -> StorageFull:
        message = (
            f"no room for {needed} bytes: {self.ledger.used_bytes} of "
            f"max_bytes = {self.bounds.max_bytes} are in use, and nothing may be evicted: "
            f"it is being used, or was within min_life_seconds"
        )
        return StorageFull(message) if self.is_counted else NotCountedYet(message)

    def _give_back(self, part: Part) -> None:
        taken, part.taken_bytes = part.taken_bytes, 0
        self.ledger.give_back(taken)

    def _make_room(self, size_bytes: int) -> bool:
        limit = self.bounds.max_bytes
        assert limit is not None, "without a bound there is always room"
        # A little more than asked for, so that not every write has to do this.
        spare = min(limit // 100, 64 * 1024 * 1024)
        return self._evict(limit - size_bytes, max(limit - size_bytes - spare, 0))

    def evict(self) -> None:
        """Evict down to the low water mark if the high one is passed. Raises Unavailable."""
        high, low = (self.bounds.share(b) for b in (self.bounds.high_water, self.bounds.low_water))
        if high is not None and low is not None:
            self._evict(high, low)

    def _evict(self, unless_below: int, down_to: int) -> bool:
        """Whether there is any gain. Does nothing if `unless_below` or fewer bytes are in use."""
        with self._maintenance:
            if self.ledger.used_bytes <= unless_below:
                return True
            self._flush()
            # Others may have given room back meanwhile, so that there was no need.
            return self._evict_oldest(down_to) or self.ledger.used_bytes <= unless_below

    def _evict_oldest(self, down_to: int) -> bool:
        gain = False
        place = (-1, "")
        until_ms = now_ms() - self._min_life_ms - self._grain_ms
        while (excess := self.ledger.used_bytes - down_to) > 0:
            oldest = self.index.oldest(place, until_ms, _BATCH)
            if not oldest:
                break
            place = (oldest[-1].used_ms, oldest[-1].name)
            gain |= self._evict_some(oldest, excess)
        return gain

    def _evict_some(self, oldest: list[IndexedFile], excess: int) -> bool:
        condemned: list[IndexedFile] = []
        try:
            for file in oldest:
                if excess <= 0:
                    break
                if self.ledger.try_condemn(file.name, spare_touched=self._min_life_ms > 0):
                    condemned.append(file)
                    excess -= file.size_bytes
            self._remove(condemned)
        finally:
            self.ledger.release([file.name for file in condemned])
        return bool(condemned)

    def _remove(self, files: list[IndexedFile]) -> None:
        """Remove files that are claimed, with their copies."""
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
        """Note in the index what was used, if it is much."""
        if self.ledger.is_overdue:
            self.flush()

    def flush(self) -> None:
        """Note in the index what was used, and correct what it has wrong. Raises Unavailable."""
        with self._maintenance:
            self._flush()

    def _flush(self) -> None:
        used, suspects = self.ledger.take_due()
        try:
            rest = iter(used.items())
            while some := dict(islice(rest, _TOUCH_BATCH)):
                self.index.touch(some, self._grain_ms)
        except StokerError:
            # They are promised all the same.
            self.ledger.touch(used, now_ms())
            raise
        if self.is_counted:
            for start in range(0, len(suspects), _TOUCH_BATCH):
                self.forget_absent(self.index.present(suspects[start : start + _TOUCH_BATCH]))

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


@contextmanager
def _failing(failures: dict[str, StokerError], names: Collection[str]) -> Iterator[None]:
    """File an error under each of `names` that has none yet."""
    try:
        yield
    except StokerError as error:
        for name in names:
            failures.setdefault(name, error)
