"""Writing the files of an input root. These functions block; call them in a thread.

A file is written under a name of its own and then renamed where another one has to give way: a
persistent worker that has the old one open goes on reading the old one.
"""

# ruff: noqa: PTH104, PTH108, PTH120
# Strings and descriptors: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stoker.digest import Digest
from stoker.errors import DataLoss
from stoker.execution.arrangement import (
    FileChange,
    LaidFile,
    laid_file,
    mode_of,
    mtime_ns_of,
    state_of,
)

_NO_COPY_IN_KERNEL = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


class PartialFile:
    """A file on its way into the input root `top`. After `finish` or `discard` it is done with."""

    def __init__(self, top: str, change: FileChange) -> None:
        self._file = change.file
        self._path = os.path.join(top, change.file.path)
        self._part = self._path
        if change.replaces:
            folder = os.path.dirname(self._path)
            self._part = os.path.join(folder, f".{uuid.uuid4().hex}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptor = os.open(self._part, flags, 0o600)
        self._is_open = True

    def finish(self) -> LaidFile:
        """Put the file in its place. What was written must be the whole blob, else DataLoss."""
        try:
            written = os.fstat(self.descriptor).st_size
            if written != self._file.digest.size_bytes:
                raise DataLoss(self._file.digest, f"{written} bytes could be read")
            os.fchmod(self.descriptor, mode_of(self._file))
            mtime_ns = mtime_ns_of(self._file)
            os.utime(self.descriptor, ns=(mtime_ns, mtime_ns))
        finally:
            self._close()
        if self._part != self._path:
            os.rename(self._part, self._path)
        # Looked at last, as renaming changes the ctime.
        return laid_file(self._file, state_of(os.lstat(self._path)))

    def discard(self) -> None:
        """Give up, at any time before `finish` returns: a file to be replaced stays as it is."""
        self._close()
        with suppress(OSError):
            os.unlink(self._part)

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self.descriptor)


def write_file(top: str, change: FileChange, fill: Callable[[int], None]) -> LaidFile:
    """Lay out one file whose bytes `fill` writes to a descriptor."""
    part = PartialFile(top, change)
    try:
        fill(part.descriptor)
        return part.finish()
    except BaseException:
        part.discard()
        raise


@contextmanager
def open_source(path: Path | None) -> Iterator[int | None]:
    """A descriptor that reads `path`; None when there is no path, or no file any more."""
    try:
        descriptor = None if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def copy_bytes(source: int, target: int, digest: Digest) -> None:
    """Copy the bytes of a blob from one open file to another, inside of the kernel."""
    remaining = digest.size_bytes
    copy = _copy_file_range
    while remaining:
        try:
            copied = copy(source, target, remaining)
        except OSError as error:
            if copy is _sendfile or error.errno not in _NO_COPY_IN_KERNEL:
                raise
            copy = _sendfile
            continue
        if not copied:
            return
        remaining -= copied


def _copy_file_range(source: int, target: int, count: int) -> int:
    return os.copy_file_range(source, target, count)


def _sendfile(source: int, target: int, count: int) -> int:
    # Without an offset it goes on at the source's own position, as copy_file_range does.
    return os.sendfile(target, source, None, count)
