"""Writing the files of an input root. These functions block; call them in a thread.

A file is made under a name of its own and then renamed where another one has to give way: a
persistent worker that has the old one open goes on reading the old one.
"""

# Strings and descriptors: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from stoker.digest import Digest
from stoker.errors import DataLoss
from stoker.execution.arrangement import DEFAULT_MTIME_NS, Form
from stoker.spi import ProcessUser

# In whole seconds: a `stat_result` has that at hand, and has to work out the nanoseconds.
INPUT_MTIME = DEFAULT_MTIME_NS // 10**9
"""What the time of a file that may be linked begins with."""

_NO_COPY_IN_KERNEL = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


class Target(NamedTuple):
    """Where a file goes, and as what."""

    name: str
    folder: int
    """A descriptor of the folder that it goes into."""
    form: Form
    replaces: bool
    owner: ProcessUser | None = None


class PartialFile:
    """A file on its way into an input root. After `finish` or `discard` it is done with."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._part = _part_name(target)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptor = os.open(self._part, flags, 0o600, dir_fd=target.folder)
        self._is_open = True

    def finish(self) -> os.stat_result:
        """Put the file in its place. What was written must be the whole blob, else DataLoss."""
        name, folder, form, _, owner = self._target
        try:
            written = os.fstat(self.descriptor).st_size
            if written != form.digest.size_bytes:
                raise DataLoss(form.digest, f"{written} bytes could be read")
            if owner is not None:
                os.fchown(self.descriptor, *owner)
            os.fchmod(self.descriptor, form.mode)
            os.utime(self.descriptor, ns=(form.mtime_ns, form.mtime_ns))
            if self._part != name:
                _rename(self._part, name, folder)
            # Looked at last, as renaming changes the ctime.
            return os.fstat(self.descriptor)
        finally:
            self._close()

    def discard(self) -> None:
        """Give up, at any time before `finish` returns: a file to be replaced stays as it is."""
        self._close()
        with suppress(OSError):
            os.unlink(self._part, dir_fd=self._target.folder)

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self.descriptor)


def write_file(target: Target, fill: Callable[[int], None]) -> os.stat_result:
    """Lay out one file whose bytes `fill` writes to a descriptor."""
    part = PartialFile(target)
    try:
        fill(part.descriptor)
        return part.finish()
    except BaseException:
        part.discard()
        raise


def link_file(target: Target, source: str) -> int:
    """Lay out one file as a hard link to `source`. Returns the number of its inode.

    Raises OSError, and has done nothing then: FileNotFoundError also where `source` is not what
    it should be.
    """
    name, folder, form, replaces, _ = target
    part = _part_name(target)
    os.link(source, part, dst_dir_fd=folder)
    status = os.stat(part, dir_fd=folder, follow_symlinks=False)
    if status.st_size != form.digest.size_bytes or status[stat.ST_MTIME] != INPUT_MTIME:
        os.unlink(part, dir_fd=folder)
        raise FileNotFoundError(errno.ENOENT, "it holds something else", source)
    if replaces:
        _rename(part, name, folder)
    return status.st_ino


def _rename(part: str, name: str, folder: int) -> None:
    """Put file `part` in the place of `name`."""
    # By itself first: to rename over a file, ext4 begins to write the new one to the disk, and
    # others wait for a disk that is busy. An input root need not survive a crash.
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)


def _part_name(target: Target) -> str:
    return f".{uuid.uuid4().hex}" if target.replaces else target.name


@contextmanager
def open_source(path: str | None) -> Iterator[int | None]:
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
    """Copy the bytes of a blob from one open file to another, inside of the kernel.

    A file system that can share blocks between files, as XFS and Btrfs do, shares them.
    """
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
