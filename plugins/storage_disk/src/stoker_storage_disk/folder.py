"""A locked folder of files that appear whole or not at all.

All calls but `open_folder` are synchronous and safe in threads. Names are relative to the folder.
"""
# ruff: noqa: PTH101, PTH104, PTH108, PTH116 - on hot paths a pathlib object costs as much as the call.

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

from stoker.spi import ConfigurationError, StorageFull, Unavailable

BLOCK_BYTES = 4096
"""What a file takes on the disk is counted in blocks of so many bytes."""
READ_ONLY = 0o444
EXECUTABLE = 0o555
INPUT_MTIME_NS = 946_684_800 * 10**9
"""2000-01-01, as actions expect of their inputs (RUN-04)."""
INCOMING = "incoming"
PARTIAL = "partial"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_COPY_IN_KERNEL = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
_NOT_MOVABLE = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS})
# Without O_NONBLOCK, opening a fifo would wait for ever.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_TAKE = _READ | os.O_NOFOLLOW
_CONTINUE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


def disk_bytes(size_bytes: int) -> int:
    """What a file of `size_bytes` takes on the disk."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


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
        self._part_numbers = itertools.count()
        self._lasting: set[Path] = set()
        """Folders that would be found again themselves."""

    def absolute(self, name: str) -> str:
        """Where file `name` is."""
        return f"{self.path}/{name}"

    def open_file(self, name: str) -> int | None:
        """A descriptor to read file `name`, or None if it is absent.

        Raises Unavailable, also for what is no regular file.
        """
        path = self.absolute(name)
        with storage_errors(path):
            try:
                descriptor = os.open(path, _READ)
            except FileNotFoundError:
                return None
            with _closed_on_error(descriptor):
                _check_regular(path, descriptor)
        return descriptor

    def stat(self, name: str) -> os.stat_result | None:
        """Facts about file `name`, or None if it is absent. Raises Unavailable."""
        path = self.absolute(name)
        with storage_errors(path):
            try:
                return os.stat(path)
            except FileNotFoundError:
                return None

    def stat_many(self, names: Iterable[str]) -> dict[str, os.stat_result]:
        """Facts about those of the files that are there. Raises Unavailable."""
        found = {}
        prefix = self.absolute("")
        for name in names:
            try:
                found[name] = os.stat(prefix + name)
            except FileNotFoundError:
                continue
            except OSError:
                # Only now: for ten thousand files, it costs as much as looking.
                with storage_errors(prefix + name):
                    raise
        return found

    def give_input_time(self, name: str, found: os.stat_result) -> None:
        """Make sure of the time of a file that has been `found`, which may have been written by
        an earlier release. Raises Unavailable."""
        if found.st_mtime_ns != INPUT_MTIME_NS:
            path = self.absolute(name)
            with storage_errors(path), suppress(FileNotFoundError):
                os.utime(path, ns=(found.st_atime_ns, INPUT_MTIME_NS))

    def unlink(self, name: str) -> bool:
        """Remove file `name`. Returns whether it was there. Raises Unavailable."""
        path = self.absolute(name)
        with storage_errors(path):
            try:
                os.unlink(path)
            except FileNotFoundError:
                return False
        return True

    def create_part(self) -> Part:
        """A new file that nobody sees yet. Raises StorageFull or Unavailable."""
        path = self.absolute(f"{INCOMING}/{next(self._part_numbers)}.part")
        with storage_errors(path):
            return Part(path, os.open(path, _CREATE, 0o600))

    def open_given(self, path: str) -> Part:
        """A part for the file at `path`, which is still there: `Part.take_over` moves it.

        Raises FileNotFoundError or Unavailable.
        """
        part_path = self.absolute(f"{INCOMING}/{next(self._part_numbers)}.part")
        with _storage_errors_but_absence(path):
            return Part(part_path, os.open(path, _TAKE))

    def open_partial(self, name: str) -> Part:
        """The file of an upload that may be continued, new or not, at its end.

        Raises StorageFull or Unavailable.
        """
        path = self.absolute(f"{PARTIAL}/{name}")
        with storage_errors(path):
            descriptor = _open_to_continue(path)
            with _closed_on_error(descriptor):
                return Part(path, descriptor, os.lseek(descriptor, 0, os.SEEK_END))

    def seal(self, part: Part, mode: int = READ_ONLY) -> None:
        """Give `part` its mode and time; with `fsync`, make its bytes last. Raises Unavailable."""
        with storage_errors(part.path):
            # Set by hand, as the umask may take away what other users' actions need.
            os.fchmod(part.descriptor, mode)
            # Links to it are inputs of actions. When it was last used is the other time.
            os.utime(part.descriptor, ns=(time.time_ns(), INPUT_MTIME_NS))
            if self.fsync:
                os.fdatasync(part.descriptor)
        part.sealed = True

    def move(self, part: Part, name: str) -> None:
        """Give a sealed `part` its name, in place of any file there. It is finished by that.

        Raises StorageFull or Unavailable, and then the part still needs to be discarded.
        """
        path = self.absolute(name)
        with storage_errors(path):
            try:
                os.rename(part.path, path)
            except FileNotFoundError:
                _make_folders(Path(path).parent, fsync=self.fsync)
                os.rename(part.path, path)
        part.published = True

    def sync_folder_of(self, name: str) -> None:
        """With `fsync`, make sure that file `name` would be found again. Raises Unavailable."""
        if not self.fsync:
            return
        path = self.absolute(name)
        folder = Path(path).parent
        with storage_errors(path):
            _sync_folder(folder)
            if folder not in self._lasting:
                # Whoever has made it need not have come so far, or was told not to.
                for above in folder.relative_to(self.path).parents:
                    _sync_folder(Path(self.path) / above)
                self._lasting.add(folder)


class Part:
    """A file on its way in. Discard it in every case, also after it was published."""

    def __init__(self, path: str, descriptor: int, size_bytes: int = 0) -> None:
        self.path = path
        self.descriptor = descriptor
        self.size_bytes = size_bytes
        self.taken_bytes = 0
        """How much room was set aside for it; kept by whoever sets it aside."""
        self.sealed = False
        self.published = False
        self._closed = False

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`. Raises StorageFull or Unavailable."""
        with storage_errors(self.path):
            rest = memoryview(data)
            while rest:
                written = os.write(self.descriptor, rest)
                self.size_bytes += written
                rest = rest[written:]

    def take_over(self, path: str) -> bool:
        """Move the file at `path`, which this part has open, here. Returns whether it could be.

        It stays where it is if it is on another file system, if it has another name, by which
        somebody could go on to write to it, or if it is somebody else's and cannot be taken.
        Raises FileNotFoundError or Unavailable.
        """
        found = os.fstat(self.descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return False
        with _storage_errors_but_absence(path):
            try:
                if found.st_uid != os.geteuid():
                    os.fchown(self.descriptor, os.geteuid(), os.getegid())
                os.rename(path, self.path)
            except OSError as error:
                if error.errno in _NOT_MOVABLE:
                    return False
                raise
            moved = os.lstat(self.path)
        if (moved.st_dev, moved.st_ino, moved.st_nlink) != (found.st_dev, found.st_ino, 1):
            raise Unavailable(f"{path} was replaced while it was moved")
        self.size_bytes = moved.st_size
        return True

    def copy_from(self, source: int, size_bytes: int) -> None:
        """Append `size_bytes` of the open file `source`, or fewer if it ends before.

        Raises StorageFull or Unavailable.
        """
        copy = _copy_file_range
        with storage_errors(self.path):
            while size_bytes > 0:
                try:
                    copied = copy(source, self.descriptor, size_bytes)
                except OSError as error:
                    if copy is _send_file or error.errno not in _NO_COPY_IN_KERNEL:
                        raise
                    copy = _send_file
                    continue
                if not copied:
                    return
                self.size_bytes += copied
                size_bytes -= copied

    def empty(self) -> None:
        """Begin at 0 again. Raises Unavailable."""
        with storage_errors(self.path):
            os.ftruncate(self.descriptor, 0)
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            self.size_bytes = 0

    def close(self) -> None:
        """Close the file and leave it, unless that was done before. Raises Unavailable."""
        if not self._closed:
            # First: after an error too, the descriptor may be somebody else's.
            self._closed = True
            with storage_errors(self.path):
                os.close(self.descriptor)

    def discard(self) -> None:
        """Close the file, and remove it unless it was published. Raises Unavailable."""
        self.close()
        if not self.published:
            with storage_errors(self.path), suppress(FileNotFoundError):
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


@contextmanager
def _storage_errors_but_absence(path: str) -> Iterator[None]:
    try:
        with storage_errors(path):
            yield
    except Unavailable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise


def read_exactly(path: str, descriptor: int, offset: int, size_bytes: int) -> bytes:
    """`size_bytes` from `offset`, or fewer if file `path` ends before. Raises Unavailable."""
    pieces = []
    with storage_errors(path):
        while size_bytes > 0 and (piece := os.pread(descriptor, size_bytes, offset)):
            pieces.append(piece)
            offset += len(piece)
            size_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _check_regular(path: str, descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise Unavailable(f"{path} is not a regular file")


def _open_to_continue(path: str) -> int:
    try:
        return os.open(path, _CONTINUE, 0o600)
    except PermissionError:
        # It was about to be published when the server ended.
        os.chmod(path, 0o600)
        return os.open(path, _CONTINUE, 0o600)


def _copy_file_range(source: int, target: int, count: int) -> int:
    # Shares the blocks on a file system that can.
    return os.copy_file_range(source, target, count)


def _send_file(source: int, target: int, count: int) -> int:
    return os.sendfile(target, source, None, count)


@contextmanager
def _closed_on_error(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise


def _prepare(path: Path) -> int:
    try:
        for name in (INCOMING, PARTIAL):
            (path / name).mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    except OSError as error:
        raise ConfigurationError([f"folder {path} cannot be used: {error.strerror}"]) from error
    with _closed_on_error(lock):
        _sweep(path / INCOMING)
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


def _sweep(incoming: Path) -> None:
    with storage_errors(str(incoming)):
        for part in incoming.iterdir():
            part.unlink()


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
