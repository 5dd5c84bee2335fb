"""Opening what an action left, and making sure that nobody goes on writing to it.

These functions block; call them in a thread. They raise OSError where the disk fails.
"""

# ruff: noqa: PTH101, PTH115
# Strings and descriptors: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from stoker.digest import Hasher
from stoker.errors import FailedPrecondition

# Without O_NONBLOCK, a fifo that took the file's place would block for ever.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_PIECE_BYTES = 2**20


class OutputFile:
    """A regular file that is open for reading. Close it. One thread at a time."""

    def __init__(self, location: str) -> None:
        """Open the file; one that forbids it is given the permission (OUT-20).

        Raises FailedPrecondition if it cannot be read all the same, or is not at `location` but
        behind a symbolic link.
        """
        self.location = location
        self.descriptor = _open_file(location)
        self._found = os.fstat(self.descriptor)
        self.size_bytes = self._found.st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    def read(self, max_bytes: int, offset: int = 0) -> bytes:
        """At most `max_bytes` from `offset`, or none from the end on."""
        return os.pread(self.descriptor, max_bytes, offset)

    def hash_some(self, hasher: Hasher, offset: int, max_bytes: int) -> int:
        """Hash the bytes from `offset`, and return how many they were: 0 from the end on.

        Nothing behind `size_bytes` is read.
        """
        end = min(offset + max_bytes, self.size_bytes)
        buffer = memoryview(bytearray(min(end - offset, _PIECE_BYTES)))
        position = offset
        while position < end:
            read = os.preadv(self.descriptor, [buffer[: end - position]], position)
            if not read:
                break
            hasher.update(buffer[:read])
            position += read
        return position - offset

    def check_unchanged(self) -> None:
        """Raise FailedPrecondition if somebody has written to the file since it was opened.

        A mapped file may be written to without a trace: this is for the sake of a clear message.
        """
        now = os.fstat(self.descriptor)
        if (now.st_size, now.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns):
            raise FailedPrecondition(f"{self.location!r} changed while it was being stored")

    # --- for a file that is to be given away

    def settle(self) -> None:
        """Take the file from its owner, and watch from now on whether anybody can write to it.

        Its processes have ended. But one of them may have handed an open file, or a mapping of
        it, to a process that lives on, of another action say; or somebody knows it by another
        name. `is_settled` tells. A file with another name is left as it is, since it may be a
        blob that serves as an input (OUT-17).
        """
        self._disown()
        # The signal of a broken lease, SIGIO, would end the server; this one does nothing.
        fcntl.fcntl(self.descriptor, fcntl.F_SETSIG, signal.SIGURG)
        try:
            # Refused while anybody has the file open, or mapped, for writing.
            fcntl.fcntl(self.descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError:
            # That, or a file system without leases: nothing is known then.
            return
        self._found = os.fstat(self.descriptor)

    def _disown(self) -> None:
        # First of all, so that whoever could open it for writing after the lease was taken has
        # passed the check of permissions by now, and breaks the lease.
        status = self._found
        if status.st_nlink != 1:
            return
        try:
            if status.st_uid != os.geteuid():
                os.fchown(self.descriptor, os.geteuid(), os.getegid())
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                os.fchmod(self.descriptor, stat.S_IMODE(status.st_mode) & 0o755)
        except PermissionError:
            # Not the server's to take. A lease needs as much, and is refused too.
            return

    def is_settled(self) -> bool:
        """Whether nobody could write to the file since `settle`, and it is still where it was."""
        if fcntl.fcntl(self.descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            return False
        try:
            there = os.lstat(self.location)
        except FileNotFoundError:
            return False
        # With another name, somebody could write to it once the lease has run out.
        return there.st_nlink == 1 and _facts(there) == _facts(self._found)


def _facts(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _open_file(location: str) -> int:
    try:
        descriptor = _open_readable(location)
    except OSError as error:
        raise FailedPrecondition(f"output {location!r} cannot be read: {error.strerror}") from error
    with _closed_on_error(descriptor):
        _check_place(descriptor, location)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FailedPrecondition(f"output {location!r} is a regular file no more")
    return descriptor


def _open_readable(location: str) -> int:
    try:
        return os.open(location, _FILE)
    except PermissionError:
        _permit(location, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        return os.open(location, _FILE)


@contextmanager
def open_folder(location: str) -> Iterator[int]:
    """A descriptor of a folder; one that forbids it is given the permission (OUT-20).

    Raises FailedPrecondition if it is not at `location` but behind a symbolic link.
    """
    try:
        descriptor = os.open(location, _FOLDER)
    except PermissionError:
        make_passable(location)
        descriptor = os.open(location, _FOLDER)
    try:
        _check_place(descriptor, location)
        yield descriptor
    finally:
        os.close(descriptor)


def make_passable(location: str) -> None:
    """Give the owner all permissions for the folder at `location`. Follows no symbolic link.

    Raises FailedPrecondition if it is not at `location` but behind one.
    """
    _permit(location, _PLACE, 0o700)


def _permit(location: str, flags: int, mode: int) -> None:
    descriptor = os.open(location, flags)
    try:
        # By the descriptor: a persistent worker could put a link in place of what is there, or of
        # a folder on the way, and have the permissions of something else changed.
        _check_place(descriptor, location)
        if not stat.S_ISLNK(os.fstat(descriptor).st_mode):
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)


def _check_place(descriptor: int, location: str) -> None:
    """Raise FailedPrecondition unless `descriptor` is what is at `location`, without any link.

    A persistent worker lives on, and could put a link in place of a folder on the way: a server
    that is root would then give away files that the worker cannot read.
    """
    found = os.readlink(f"/proc/self/fd/{descriptor}")
    if found != location:
        raise FailedPrecondition(f"output {location!r} was moved while it was looked at: {found!r}")


@contextmanager
def _closed_on_error(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise
