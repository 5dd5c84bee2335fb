"""The files of a container, as they are named in it, looked at from outside.

Every path is looked up by the system as if the container's root were its own: no link, however it
is made and whenever it is changed, leads to a file out here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_OPENAT2: Final = 437  # the same on all machines; Linux 5.6
_NO_MAGIC_LINKS: Final = 0x02
_IN_ROOT: Final = 0x10
_ATTEMPTS: Final = 16
_FIRST_BYTES: Final = 256

_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    """struct open_how, see openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class Inside:
    """The files that a process sees. Blocks for moments. Calls may overlap; close it.

    It is this process's for ever, never another's that has got its number.
    """

    _root = "root"

    def __init__(self, pid: int) -> None:
        """Raises OSError."""
        self._process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the descriptor back. May be called again."""
        process, self._process = self._process, -1
        if process >= 0:
            os.close(process)

    def open_namespace(self, kind: str) -> int:
        """A descriptor of a namespace of the process. Raises ProcessLookupError."""
        return self._open_own(f"ns/{kind}", os.O_RDONLY)

    def open(self, path: str, flags: int) -> int:
        """A descriptor of a file. Raises OSError: ProcessLookupError if the process has ended."""
        top = self._open_own(self._root, os.O_PATH | os.O_DIRECTORY)
        try:
            return open_below(top, path, flags)
        finally:
            os.close(top)

    def check(self) -> None:
        """Raises ProcessLookupError if the process has ended."""
        os.close(self._open_own(self._root, os.O_PATH | os.O_DIRECTORY))

    def status(self, path: str) -> os.stat_result | None:
        """Of what a path leads to; None if it leads nowhere. Raises ProcessLookupError."""
        try:
            with _closing(self.open(path, os.O_PATH)) as descriptor:
                return os.fstat(descriptor)
        except ProcessLookupError:
            raise
        except OSError:
            return None

    def first_bytes(self, path: str) -> bytes:
        """The beginning of a regular file. Raises OSError."""
        with _closing(self.open(path, os.O_PATH)) as found:
            # Not before this: to open a device may do something.
            if not stat.S_ISREG(os.fstat(found).st_mode):
                return b""
            flags = os.O_RDONLY | os.O_CLOEXEC
            with _closing(os.open(f"/proc/self/fd/{found}", flags)) as descriptor:
                return os.read(descriptor, _FIRST_BYTES)

    def _open_own(self, name: str, flags: int) -> int:
        try:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._process)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise ProcessLookupError("the process has ended") from error


class InsideFolder(Inside):
    """The same for processes whose root a folder is to be."""

    _root = "."

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        self._process = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def open_below(top: int, path: str | Path, flags: int) -> int:
    """Open `path` as if the folder `top`, a descriptor, were the root. Raises OSError."""
    how = _How(flags | os.O_CLOEXEC, 0, _IN_ROOT | _NO_MAGIC_LINKS)
    number = errno.EAGAIN
    for _ in range(_ATTEMPTS):
        descriptor: int = _libc.syscall(
            _OPENAT2, top, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
        )
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        # Something was renamed meanwhile, so that the system is not sure.
        if number != errno.EAGAIN:
            break
    raise OSError(number, os.strerror(number), str(path))


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
