"""A folder of files that appear whole or not at all.

All calls but `open_folder` are synchronous and safe in threads.
"""
# ruff: noqa: PTH104, PTH108, PTH116 - on hot paths a pathlib object costs as much as the call.

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import structlog
import trio

from stoker.spi import ConfigurationError, StorageFull, Unavailable

_log = structlog.get_logger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ = os.O_RDONLY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@asynccontextmanager
async def open_folder(path: Path, *, fsync: bool) -> AsyncIterator[Folder]:
    """Create `path` if need be, lock it, and remove what an earlier server left half written.

    Raises ConfigurationError when somebody else has it open, or it cannot be made or locked.
    """
    lock = await trio.to_thread.run_sync(_prepare, path)
    try:
        yield Folder(path, fsync=fsync)
    finally:
        os.close(lock)


class Folder:
    """A locked folder. Files in it are read-only, and replaced rather than changed."""

    def __init__(self, path: Path, *, fsync: bool) -> None:
        self.path = str(path)
        self.fsync = fsync
        self._incoming = _incoming(path)
        self._part_numbers = itertools.count()
        # Between a look at a damaged file and its removal, a sound one may take its place.
        self._lock = threading.Lock()

    def open_file(self, path: str, size_bytes: int | None = None) -> int | None:
        """A descriptor to read file `path`, or None if it is absent.

        A file of another size than `size_bytes` is damaged: it is removed and counts as absent.
        Raises Unavailable.
        """
        with storage_errors(path):
            try:
                descriptor = os.open(path, _READ)
            except FileNotFoundError:
                return None
            with _closed_on_error(descriptor):
                found = os.fstat(descriptor)
        if size_bytes is None or found.st_size == size_bytes:
            return descriptor
        os.close(descriptor)
        self.remove_damaged(path, found, f"it has {found.st_size} bytes, not {size_bytes}")
        return None

    def holds_file(self, path: str, size_bytes: int) -> bool:
        """Whether file `path` is present, and sound as for `open_file`. Raises Unavailable."""
        with storage_errors(path):
            try:
                found = os.stat(path)
            except FileNotFoundError:
                return False
        if found.st_size == size_bytes:
            return True
        self.remove_damaged(path, found, f"it has {found.st_size} bytes, not {size_bytes}")
        return False

    def remove_damaged(self, path: str, damaged: os.stat_result, reason: str) -> None:
        """Remove file `path`, if it is still the one found `damaged`. Raises Unavailable."""
        with self._lock, storage_errors(path):
            try:
                if os.stat(path).st_ino != damaged.st_ino:
                    return
                os.unlink(path)
            except FileNotFoundError:
                return
        _log.warning("damaged file removed", path=path, reason=reason)

    def create_part(self) -> Part:
        """A new file that nobody sees yet. Raises StorageFull or Unavailable."""
        path = os.path.join(self._incoming, f"{next(self._part_numbers)}.part")
        with storage_errors(path):
            return Part(path, os.open(path, _CREATE, 0o444))

    def publish(self, part: Part, path: str) -> None:
        """Give `part` the name `path`, in place of any file there. It is finished by that.

        Raises StorageFull or Unavailable, and then the part still needs to be discarded.
        """
        with storage_errors(path):
            # Set again, as the umask may have taken away what other users' actions need.
            os.fchmod(part.descriptor, 0o444)
            if self.fsync:
                os.fdatasync(part.descriptor)
            with self._lock:
                self._rename(part.path, path)
            part.published = True
            if self.fsync:
                _sync_folder(Path(path).parent)

    def sync_folder_of(self, path: str) -> None:
        """Make sure that file `path`, which somebody else just published, would be found again.

        Does nothing without `fsync`. Raises Unavailable.
        """
        if self.fsync:
            with storage_errors(path):
                _sync_folder(Path(path).parent)

    def _rename(self, source: str, target: str) -> None:
        try:
            os.rename(source, target)
        except FileNotFoundError:
            _make_folders(Path(target).parent, fsync=self.fsync)
            os.rename(source, target)


class Part:
    """A file on its way in. Discard it in every case, also after it was published."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.published = False

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`. Raises StorageFull or Unavailable."""
        with storage_errors(self.path):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]

    def discard(self) -> None:
        """Close the file, and remove it unless it was published. Raises Unavailable."""
        with storage_errors(self.path):
            os.close(self.descriptor)
            if not self.published:
                with suppress(FileNotFoundError):
                    os.unlink(self.path)


@contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Turn OSError into StorageFull or Unavailable, naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"no room to write {path}: {error.strerror}") from error
        raise Unavailable(f"{path}: {error.strerror}") from error


def read_exactly(path: str, descriptor: int, offset: int, size_bytes: int) -> bytes:
    """`size_bytes` from `offset`, or fewer if file `path` ends before. Raises Unavailable."""
    pieces = []
    with storage_errors(path):
        while size_bytes > 0 and (piece := os.pread(descriptor, size_bytes, offset)):
            pieces.append(piece)
            offset += len(piece)
            size_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextmanager
def _closed_on_error(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise


def _prepare(path: Path) -> int:
    try:
        Path(_incoming(path)).mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    except OSError as error:
        raise ConfigurationError([f"folder {path} cannot be used: {error.strerror}"]) from error
    with _closed_on_error(lock):
        _sweep(path)
    return lock


def _lock(path: Path) -> int:
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with _closed_on_error(lock):
        try:
            # Ends with the process, however that ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                [f"folder {path} is in use already: each store or cache needs one of its own"]
            ) from error
    return lock


def _sweep(path: Path) -> None:
    incoming = Path(_incoming(path))
    with storage_errors(str(incoming)):
        for part in incoming.iterdir():
            part.unlink()


def _incoming(path: Path) -> str:
    # Below the folder itself, as a rename cannot cross file systems.
    return os.path.join(path, "incoming")


def _make_folders(path: Path, *, fsync: bool) -> None:
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        if fsync:
            _sync_folder(folder.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
