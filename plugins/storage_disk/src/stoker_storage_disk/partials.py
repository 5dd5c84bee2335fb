"""Uploads that were broken off and may be continued: one file each, in the folder ``partial``."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import time

from stoker.spi import Digest, UploadInProgress
from stoker_storage_disk.bounded import BoundedFolder
from stoker_storage_disk.folder import PARTIAL, Part, disk_bytes, storage_errors


@dataclass(slots=True)
class _Kept:
    """An upload that nobody is writing now."""

    size_bytes: int
    left_at: float


class Partials:
    """The unfinished uploads of a folder: those that are being written, and those kept.

    Kept ones are forgotten `life_seconds` after they were left; the ones left first are forgotten
    when all that are kept pass `max_bytes`, or room is needed for blobs. Safe in threads.
    """

    def __init__(self, files: BoundedFolder, life_seconds: float, max_bytes: int | None) -> None:
        self._files = files
        self._life_seconds = life_seconds
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._open: dict[str, Part | None] = {}
        self._kept: dict[str, _Kept] = {}

    def load(self) -> None:
        """Find what an earlier server kept, and forget what is too old. Raises Unavailable."""
        folder = self._files.folder.absolute(PARTIAL)
        with storage_errors(folder), os.scandir(folder) as entries:
            found = {entry.name: entry.stat() for entry in entries}
        # One that was about to be published has the time of an input; the other is true then.
        written = {name: max(facts.st_mtime, facts.st_atime) for name, facts in found.items()}
        for name, facts in sorted(found.items(), key=lambda item: written[item[0]]):
            self._kept[name] = _Kept(facts.st_size, written[name])
            self._files.ledger.take(disk_bytes(facts.st_size))
        self.sweep()

    @contextmanager
    def opened(self, digest: Digest, upload: str) -> Iterator[str]:
        """The name of an upload, which nobody else may open meanwhile.

        Raises UploadInProgress when somebody has.
        """
        name = _name(digest, upload)
        with self._lock:
            if name in self._open:
                raise UploadInProgress(digest, upload)
            self._open[name] = None
        try:
            yield name
        finally:
            with self._lock:
                del self._open[name]

    def part(self, name: str) -> Part:
        """The file of an upload that is open. Raises StorageFull or Unavailable."""
        part = self._files.folder.open_partial(name)
        with self._lock:
            kept = self._kept.pop(name, None)
            self._open[name] = part
        part.taken_bytes = 0 if kept is None else disk_bytes(kept.size_bytes)
        return part

    def size_bytes(self, digest: Digest, upload: str) -> int:
        """How many bytes of an upload are in its file."""
        name = _name(digest, upload)
        with self._lock:
            if (part := self._open.get(name)) is not None:
                return part.size_bytes
            return kept.size_bytes if (kept := self._kept.get(name)) is not None else 0

    def keep(self, name: str, part: Part) -> None:
        """Leave an upload to be continued later. Raises Unavailable."""
        if not part.size_bytes:
            self._files.discard(part)
            return
        try:
            if self._files.folder.fsync:
                with storage_errors(part.path):
                    os.fdatasync(part.descriptor)
        finally:
            # Less room may be needed than was taken, if the last write failed half way.
            spare = part.taken_bytes - disk_bytes(part.size_bytes)
            part.taken_bytes = 0
            with self._lock:
                self._kept[name] = _Kept(part.size_bytes, time())
            self._files.ledger.give_back(spare)
            part.close()
        superfluous = self._superfluous()
        if name in superfluous:
            self._drop(name)
        self._forget(superfluous)

    def sweep(self) -> None:
        """Forget kept uploads that are too old, or too much. Raises Unavailable."""
        self._forget(self._superfluous())

    def reclaim(self) -> bool:
        """Forget the upload that was left first. Returns whether there was one."""
        with self._lock:
            name = next((name for name in self._kept if name not in self._open), None)
        return name is not None and self._forget([name])

    def _superfluous(self) -> list[str]:
        with self._lock:
            excess = sum(disk_bytes(kept.size_bytes) for kept in self._kept.values())
            excess -= excess if self._max_bytes is None else self._max_bytes
            names = []
            # In the order in which they were left.
            for name, kept in self._kept.items():
                is_old = not 0 <= time() - kept.left_at <= self._life_seconds
                if is_old or excess > 0:
                    names.append(name)
                    excess -= disk_bytes(kept.size_bytes)
            return names

    def _forget(self, names: list[str]) -> bool:
        gain = False
        for name in names:
            with self._lock:
                if name in self._open or name not in self._kept:
                    continue
                # Open to nobody else until its file is gone.
                self._open[name] = None
            try:
                self._drop(name)
                gain = True
            finally:
                with self._lock:
                    del self._open[name]
        return gain

    def _drop(self, name: str) -> None:
        self._files.folder.unlink(f"{PARTIAL}/{name}")
        with self._lock:
            kept = self._kept.pop(name)
        self._files.ledger.give_back(disk_bytes(kept.size_bytes))


def _name(digest: Digest, upload: str) -> str:
    # An upload may have any name: hashed, it can name no other place.
    identity = f"{digest.function.name}/{digest}/{upload}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(identity).hexdigest()
