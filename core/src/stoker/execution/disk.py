"""What the executor's own disk may answer, in stoker's terms."""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import trio

from stoker.errors import InvalidRequest, StokerError, StorageFull, Unavailable

Result = TypeVar("Result")

# No disk would take these.
_FAULTS_OF_THE_REQUEST = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ, errno.EINVAL})

_LONGEST_SHOWN_PATH = 200

RESERVE_BYTES = 16 * 2**20
"""How much must be free on the disk of an executor's folder when an action starts, and when it
ends. Many tools take no notice of a failed write: with less than this, what an action wrote may
be cut short, whatever its exit code."""


@contextmanager
def disk_errors(doing: str, fault: type[StokerError] = InvalidRequest) -> Iterator[None]:
    """Raise OSError as Unavailable (RUN-24), or as `fault` where any disk would have refused."""
    try:
        yield
    except OSError as error:
        raise _translated(error, doing, fault) from error


def _translated(error: OSError, doing: str, fault: type[StokerError]) -> StokerError:
    where = f" {_shown(error.filename)}" if error.filename is not None else ""
    return _kind(error, fault)(f"{doing}{where} failed: {error.strerror}")


def _kind(error: OSError, fault: type[StokerError]) -> type[StokerError]:
    return fault if error.errno in _FAULTS_OF_THE_REQUEST else Unavailable


def _shown(path: object) -> str:
    text = repr(path)
    return text if len(text) <= _LONGEST_SHOWN_PATH else f"{text[:_LONGEST_SHOWN_PATH]}…"


async def on_disk(
    doing: str, work: Callable[[], Result], fault: type[StokerError] = InvalidRequest
) -> Result:
    """Call `work` in a thread, with `disk_errors`.

    Cancellation waits for the end of `work`, so that nothing goes on unseen.
    """
    with disk_errors(doing, fault):
        return await trio.to_thread.run_sync(work)


# Work of a moment that takes so long, for how long threads are asked instead.
_SLOW_SECONDS = 0.002
_REST_SECONDS = 1.0


class Pace:
    """Whether a disk is quick enough for the work of a moment to be done without a thread.

    A disk that is busy may hold up whoever makes a file for long: all of the server, once.
    """

    def __init__(self) -> None:
        self._slow_until = -math.inf

    @property
    def is_quick(self) -> bool:
        """Whether it has not been slow of late."""
        return trio.current_time() >= self._slow_until

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Do such work."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            if time.perf_counter() - begun > _SLOW_SECONDS:
                self._slow_until = trio.current_time() + _REST_SECONDS


class Disk:
    """The disk that an executor's folder lies on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen_full = -math.inf

    def check_room(self, since: float = math.inf) -> None:
        """Raise StorageFull unless there are `RESERVE_BYTES` free, and an inode.

        Raises it too if anybody has found the disk full `since` that trio time: one action may
        have filled it while another one wrote. These are looks at single moments, and see no
        quota: an action that fills the disk and makes room again by itself goes unnoticed.
        Raises Unavailable if the disk fails.
        """
        shortage = self._shortage()
        if shortage:
            self._seen_full = trio.current_time()
            raise StorageFull(f"the disk of {self._folder} is full: {shortage}")
        if self._seen_full >= since:
            raise StorageFull(f"the disk of {self._folder} was full while the action ran")

    def _shortage(self) -> str:
        try:
            status = os.statvfs(self._folder)
        except OSError as error:
            raise _translated(error, "looking for free space:", InvalidRequest) from error
        free_bytes = status.f_bavail * status.f_frsize
        if free_bytes < RESERVE_BYTES:
            return f"{free_bytes} bytes are free, and actions need {RESERVE_BYTES} in reserve"
        # Some file systems count no inodes.
        return "it has no inode left" if status.f_files and not status.f_favail else ""


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
