"""What the executor's own disk may answer, in stoker's terms."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from stoker.errors import InvalidRequest, StokerError, Unavailable

Result = TypeVar("Result")

# No disk would take these.
_FAULTS_OF_THE_REQUEST = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ, errno.EINVAL})

_LONGEST_SHOWN_PATH = 200


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


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
