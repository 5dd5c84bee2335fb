"""What the executor's own disk may answer, in stoker's terms."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        where = f" {_shown(error.filename)}" if error.filename is not None else ""
        sentence = f"{doing}{where} failed: {error.strerror}"
        raise _kind(error, fault)(sentence) from error


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


def check_room(folder: str) -> None:
    """Raise StorageFull unless the disk of `folder` has `RESERVE_BYTES` free, and an inode.

    This is a look at one moment, and sees no quota: an action that fills the disk and makes room
    again before it ends goes unnoticed. No error if there is no such folder.
    """
    try:
        status = os.statvfs(folder)
    except FileNotFoundError:
        return
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes < RESERVE_BYTES:
        raise StorageFull(
            f"the disk of {folder} is full: {free_bytes} bytes are free, "
            f"and actions need {RESERVE_BYTES} in reserve"
        )
    # Some file systems count no inodes.
    if status.f_files and not status.f_favail:
        raise StorageFull(f"the disk of {folder} is full: it has no inode left")


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
