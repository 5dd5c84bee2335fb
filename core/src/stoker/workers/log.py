"""What a worker writes to its stderr, kept within bounds while it writes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import trio

LOG_TAIL_BYTES = 2000
"""How much of a worker's stderr an error quotes."""

# Nobody tells that a file grows. Its size is asked for more often the faster it does, so that a
# flood gets little further than the bound, and a silent worker costs next to nothing.
_CALM_SECONDS = 0.25
_HASTE_SECONDS = 0.02

_COPY_BYTES = 2**20
# The worker may write its log by name too. What it puts in its place must not be followed.
_CARE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class WorkerLog:
    """The log of one worker: a file that its process appends to, and beside it the last one.

    The process keeps the file open, so that it cannot be moved away: when it has grown larger
    than `max_bytes`, its last `max_bytes` are copied to the file of the same name with ``.1``
    behind, in place of what was there, and it is emptied. What was written before those, and
    what is written between copying and emptying, is lost.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.earlier = earlier_log(path)
        self._max_bytes = max_bytes

    async def keep(self) -> None:
        """Rotate it as it grows, without end. Raises OSError where that cannot be done.

        Between two looks at it, it may grow larger than the bound. Cancellation leaves both files
        as they are, or a rotation done.
        """
        size_bytes, patience = 0, _CALM_SECONDS
        while True:
            grown = -size_bytes
            size_bytes = _size_bytes(self.path)
            grown += size_bytes
            if size_bytes > self._max_bytes:
                await trio.to_thread.run_sync(self.rotate)
                size_bytes = 0
            patience = _next_patience(patience, grown, self._max_bytes - size_bytes)
            await trio.sleep(patience)

    def rotate(self) -> None:
        """Keep the end of it aside, and empty it. Raises OSError where it cannot be emptied."""
        with contextlib.suppress(FileNotFoundError), _opened(self.path, os.O_RDWR) as log:
            # Rather nothing of it is kept than the disk is filled.
            with contextlib.suppress(OSError):
                self._copy_end(log)
            os.ftruncate(log, 0)

    def _copy_end(self, log: int) -> None:
        self.earlier.unlink(missing_ok=True)
        with _opened(self.earlier, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as earlier:
            position = max(0, os.fstat(log).st_size - self._max_bytes)
            end = position + self._max_bytes
            while data := os.pread(log, min(_COPY_BYTES, end - position), position):
                position += os.write(earlier, data)

    def read_tail(self) -> str:
        """The end of it as text, for an error to quote; empty when there is none."""
        return self.read_end(LOG_TAIL_BYTES).decode("utf-8", "replace").strip()

    def read_end(self, max_bytes: int) -> bytes:
        """At most the last `max_bytes` of it, across a rotation; empty when there is none."""
        end = _read_tail(self.path, max_bytes)
        if len(end) < max_bytes:
            end = _read_tail(self.earlier, max_bytes - len(end)) + end
        return end


def earlier_log(log: Path) -> Path:
    """Where the last one of `log` is, once it has been rotated."""
    return log.with_name(log.name + ".1")


def remove_log(log: Path) -> None:
    """Delete `log` and what was rotated of it, as far as they are there. Raises OSError."""
    log.unlink(missing_ok=True)
    earlier_log(log).unlink(missing_ok=True)


def _next_patience(seconds: float, grown: int, room: int) -> float:
    """When half of the room is full, at the speed of what has grown within `seconds`."""
    if grown <= 0:
        return _CALM_SECONDS
    return max(_HASTE_SECONDS, min(_CALM_SECONDS, seconds * room / grown / 2))


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | _CARE, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_tail(path: Path, max_bytes: int) -> bytes:
    try:
        with _opened(path, os.O_RDONLY) as file:
            return os.pread(file, max_bytes, max(0, os.fstat(file).st_size - max_bytes))
    except OSError:
        return b""  # the process has been there, and may do to it what it likes


def _size_bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
