"""Who gets the standard streams: the protocol has stdin and stdout for itself alone."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

from stoker.worker_kit.request import CapturedOutput, text_stream

_CHUNK_BYTES = 1 << 16

_current: ContextVar[CapturedOutput | None] = ContextVar("output of the request", default=None)


class Pipes:
    """What requests are read from and answers written to."""

    def __init__(self, requests: int, responses: int) -> None:
        self._requests = requests
        self._responses = responses
        self._writing = Lock()

    def read(self) -> bytes:
        """What has come, waiting for something; none at the end."""
        return os.read(self._requests, _CHUNK_BYTES)

    def write(self, frame: bytes) -> None:
        """Write one answer whole; calls may overlap. Raises OSError when nobody reads it."""
        with self._writing:
            rest = memoryview(frame)
            while rest:
                rest = rest[os.write(self._responses, rest) :]


def take_pipes() -> Pipes:
    """Take stdin and stdout away from everybody else, child processes among them.

    From here on what reads stdin finds its end, and what writes to stdout, be it a print, a
    library in C or a child process, writes to stderr: the log of the worker. Python's own streams
    lead to the output of the request in whose context they are used.
    """
    pipes = Pipes(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    if not _is_open(2):
        os.dup2(nothing, 2)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.flush()  # it holds what was printed before
    sys.stdout = sys.stderr = text_stream(_Routed())
    return pipes


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextmanager
def capture(output: CapturedOutput) -> Iterator[None]:
    """Lead what is printed in this context to `output`."""
    token = _current.set(output)
    try:
        yield
    finally:
        _current.reset(token)


def write_log(data: bytes) -> None:
    """Write to the log of the worker. Nobody is told if that is gone."""
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass


class _Routed(io.BufferedIOBase):
    """What stdout and stderr lead to."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """For those who hand it to a child process."""
        return 2

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # any buffer
        output = _current.get()
        if output is None:
            write_log(bytes(data))
        else:
            output.write(data)
        return len(data)
