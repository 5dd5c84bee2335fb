"""Files that are found, read, published and removed, in a folder that keeps within its bounds.

Everything here blocks, and is safe in threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import contextmanager

import structlog

from stoker.spi import StokerError
from stoker_storage_disk.folder import EXECUTABLE, Part, disk_bytes
from stoker_storage_disk.index import IndexedFile, now_ms
from stoker_storage_disk.ledger import Pins
from stoker_storage_disk.room import COPY_SUFFIX, Room

_log = structlog.get_logger(__name__)


class BoundedFolder(Room):
    """The files of a folder, by name."""

    # --- files

    def find(self, sizes: Mapping[str, int]) -> Set[str]:
        """Those of the files that are present and have these sizes; they count as used.

        A file of another size is damaged: it is removed and counts as absent. Raises Unavailable.
        """
        return self._find(sizes).keys()

    def find_inputs(self, sizes: Mapping[str, int]) -> Set[str]:
        """As `find`, of files that are going to be linked: they have the time of inputs."""
        found = self._find(sizes)
        for name, facts in found.items():
            self.folder.give_input_time(name, facts)
        return found.keys()

    def use_unseen(self, names: Set[str], pins: Pins) -> Set[str]:
        """Pin files, present or not, which count as used. Returns those about to be removed.

        `names` is kept, and must stay as it is.
        """
        condemned = pins.add_used(names, now_ms())
        self.flush_if_overdue()
        return condemned

    def _find(self, sizes: Mapping[str, int]) -> dict[str, os.stat_result]:
        # Before the look: what is found now must not be evicted because of an older use.
        condemned = self.ledger.touch(sizes.keys(), now_ms())
        found = self.folder.stat_many(name for name in sizes if name not in condemned)
        damaged = [name for name, facts in found.items() if facts.st_size != sizes[name]]
        for name in damaged:
            facts = found.pop(name)
            self.remove_damaged(name, facts, f"it has {facts.st_size} bytes, not {sizes[name]}")
        self.ledger.suspect(sizes.keys() - found.keys() - condemned)
        self.flush_if_overdue()
        return found

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
            if found is None or _version(found) != _version(damaged):
                return
            # The copy was made from it.
            self.drop([IndexedFile(name, disk_bytes(found.st_size), 0, 1)])
        _log.warning("damaged file removed", path=self.folder.absolute(name), reason=reason)

    def remove(self, names: Collection[str]) -> None:
        """Remove files, present or not. Raises Unavailable."""
        for name in names:
            with self.ledger.claimed([name], condemned=True):
                found = self.folder.stat(name)
                if found is not None:
                    self.drop([IndexedFile(name, disk_bytes(found.st_size), 0, 0)])

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
                if not part.sealed and (replace or not self._is_sound(name, part.size_bytes)):
                    self.folder.seal(part)
            with self.ledger.claimed([*parts]):
                self._publish(parts, failures, replace=replace)
            # Also of files that were there: their publisher may not have come so far.
            self.sync_folders(parts)
        return failures

    def publish_file(self, name: str, path: str, size_bytes: int) -> bool:
        """Publish the file at `path` by moving it, or copying it where that is not sound.

        Returns False, and publishes nothing, if it is not of that size. A name that has a sound
        file keeps it; then `path` is left alone. Raises FileNotFoundError, StorageFull or
        Unavailable; NotCountedYet before anything was moved or written.
        """
        given = self.folder.open_given(path)
        try:
            if os.fstat(given.descriptor).st_size != size_bytes:
                return False
            if self.find({name: size_bytes}):
                self.sync_folders([name])
                return True
            self.take(given, size_bytes)
            if given.take_over(path):
                return self._publish_given(name, given, size_bytes)
            return self._publish_copy_of(given, name, size_bytes)
        finally:
            self.discard(given)

    def _publish_copy_of(self, given: Part, name: str, size_bytes: int) -> bool:
        with self.part() as part:
            # The room is the copy's now.
            part.taken_bytes, given.taken_bytes = given.taken_bytes, 0
            part.copy_from(given.descriptor, size_bytes)
            return self._publish_given(name, part, size_bytes)

    def _publish_given(self, name: str, part: Part, size_bytes: int) -> bool:
        if part.size_bytes != size_bytes:
            return False
        for error in self.publish({name: part}).values():
            raise error
        return True

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

    def _is_sound(self, name: str, size_bytes: int) -> bool:
        found = self.folder.stat(name)
        return found is not None and found.st_size == size_bytes

    # --- executable copies

    def find_copies(self, sizes: Mapping[str, int]) -> set[str]:
        """Those of the files that are present and have an executable copy. As for `find`."""
        present = self.find(sizes)
        copies = self.folder.stat_many(name + COPY_SUFFIX for name in present)
        sound = set()
        for name in present:
            facts = copies.get(name + COPY_SUFFIX)
            if facts is not None and facts.st_size == sizes[name]:
                self.folder.give_input_time(name + COPY_SUFFIX, facts)
                sound.add(name)
        return sound

    def make_copy(self, name: str, size_bytes: int) -> bool:
        """Make an executable copy of a file. Returns whether the file is there, and is still the
        one that was copied: one found damaged meanwhile may be in the copy.

        Pin the file before. Raises StorageFull or Unavailable.
        """
        source = self.open_file(name, size_bytes)
        if source is None:
            return False
        try:
            with self.part() as part:
                self.take(part, size_bytes)
                part.copy_from(source, size_bytes)
                return part.size_bytes == size_bytes and self._publish_copy(part, name, source)
        finally:
            os.close(source)

    def _publish_copy(self, part: Part, name: str, source: int) -> bool:
        self.folder.seal(part, EXECUTABLE)
        with self.ledger.claimed([name]):
            found = self.folder.stat(name)
            if found is None or _version(found) != _version(os.fstat(source)):
                return False
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


def _version(file: os.stat_result) -> tuple[int, int, int]:
    # A number alone is soon given to another file.
    return file.st_ino, file.st_size, file.st_mtime_ns


@contextmanager
def _failing(failures: dict[str, StokerError], names: Collection[str]) -> Iterator[None]:
    """File an error under each of `names` that has none yet."""
    try:
        yield
    except StokerError as error:
        for name in names:
            failures.setdefault(name, error)
