"""What the executor's own disk may answer, in stoker's terms."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from stoker.errors import InvalidRequest, Unavailable

Result = TypeVar("Result")

_FAULTS_OF_THE_REQUEST = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ, errno.EINVAL})


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Raise OSError as Unavailable, or InvalidRequest if any disk would have refused (RUN-24)."""
    try:
        yield
    except OSError as error:
        where = f" {error.filename!r}" if error.filename is not None else ""
        sentence = f"{doing}{where} failed: {error.strerror}"
        if error.errno in _FAULTS_OF_THE_REQUEST:
            raise InvalidRequest(sentence) from error
        raise Unavailable(sentence) from error


async def on_disk(doing: str, work: Callable[[], Result]) -> Result:
    """Call `work` in a thread. Cancellation waits for its end, so that nothing goes on unseen."""
    with disk_errors(doing):
        return await trio.to_thread.run_sync(work)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
