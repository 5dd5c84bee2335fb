"""Streams that clients create and write to (LOG-01, LOG-02, LOG-05)."""

from __future__ import annotations

import errno
import hmac
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import structlog
import trio

from stoker.errors import (
    FailedPrecondition,
    LogStreamBusy,
    LogStreamNotFound,
    Overloaded,
    StorageFull,
    Unavailable,
)
from stoker.log_streams.growth import Growth
from stoker.log_streams.names import new_names, new_token, write_name
from stoker.log_streams.settings import LogStreamSettings
from stoker.log_streams.stream import LogReader, LogStream
from stoker.spi import BlobWriter

_log = structlog.get_logger(__name__)

_RETRY_SECONDS = 10.0


class WrittenStream(LogStream, BlobWriter):
    """A stream in a file without a name, which is gone with the server, however that ends."""

    __slots__ = ("_file", "_max_bytes", "_token", "committed_bytes", "finished", "touched", "users")

    def __init__(self, name: str, file: int, max_bytes: int) -> None:
        """Use the descriptor `file`, which is this stream's from now on."""
        super().__init__(name)
        self._file: int | None = file
        self._max_bytes = max_bytes
        self._token = new_token()
        self.committed_bytes = 0
        self.finished = False
        self.users = 0
        """How many calls write to it: none or one."""
        self.touched = trio.current_time()
        """When somebody last did something with it."""

    @property
    def write_resource_name(self) -> str:
        """The name that gives the right to write."""
        return write_name(self.name, self._token)

    def admits(self, token: str) -> bool:
        """Whether `token` is the right one."""
        return hmac.compare_digest(token.encode(), self._token.encode())

    @property
    def ended(self) -> bool:
        return self.finished or self._file is None

    def open_descriptor(self) -> int | None:
        return None if self._file is None else os.dup(self._file)

    def size_bytes(self, _descriptor: int) -> int:
        return self.committed_bytes

    def check(self, *, has_read: bool = False) -> None:
        """Raises LogStreamNotFound once it is forgotten."""
        del has_read
        if self._file is None:
            raise LogStreamNotFound(self.name)

    @contextmanager
    def open_reader(self, offset: int, growth: Growth) -> Iterator[LogReader]:
        self.touched = trio.current_time()
        with super().open_reader(offset, growth) as reader:
            yield reader
        self.touched = trio.current_time()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One call writes at a time. Raises LogStreamBusy, or FailedPrecondition at the end."""
        if self.finished:
            raise FailedPrecondition(
                f"the log stream was finished with {self.committed_bytes} bytes"
            )
        if self.users:
            raise LogStreamBusy(self.name)
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            self.touched = trio.current_time()

    async def write(self, data: bytes | memoryview) -> None:
        """Append `data`; readers see it at once. See `BlobWriter.write`."""
        if not data:
            return
        if self.committed_bytes + len(data) > self._max_bytes:
            raise StorageFull(
                f"a log stream may have {self._max_bytes} bytes, as `max_stream_bytes` in "
                f"[log_streams] says, and this is full"
            )
        self.check()
        assert self._file is not None
        try:
            # Behind what counts: what a failure leaves there is overwritten by the next attempt.
            await trio.to_thread.run_sync(_write_all, self._file, data, self.committed_bytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull("the disk of log streams is full") from error
            raise Unavailable(f"the log stream cannot be written: {error.strerror}") from error
        self.committed_bytes += len(data)
        self.touched = trio.current_time()

    def close(self) -> None:
        """Forget it. Readers are told so."""
        if self._file is not None:
            os.close(self._file)
            self.hurry()
        self._file = None


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


class WrittenStreams:
    """All streams that clients have created, within bounds."""

    def __init__(self, folder: Path, settings: LogStreamSettings, nursery: trio.Nursery) -> None:
        """Keep them on the disk of `folder`, and forget them in tasks of `nursery`."""
        self._folder = folder
        self._settings = settings
        self._nursery = nursery
        self._streams: dict[str, WrittenStream] = {}
        self._opening = 0

    async def create(self, instance_name: str) -> WrittenStream:
        """A new stream. Raises Overloaded if there are too many, StorageFull or Unavailable."""
        if len(self._streams) + self._opening >= self._settings.max_streams:
            raise Overloaded(
                f"there are {self._settings.max_streams} log streams already, as many as "
                f"`max_streams` in [log_streams] allows: try again once others are idle",
                _RETRY_SECONDS,
            )
        self._opening += 1
        try:
            file = await trio.to_thread.run_sync(partial(_open_unnamed, self._folder))
        except OSError as error:
            raise Unavailable(f"no log stream can be made: {error.strerror}") from error
        finally:
            self._opening -= 1
        name, _ = new_names(instance_name)
        stream = WrittenStream(name, file, self._settings.max_stream_bytes)
        self._streams[name] = stream
        self._nursery.start_soon(self._forget_later, stream)
        return stream

    def find(self, name: str) -> WrittenStream:
        """The stream to read by this name. Raises LogStreamNotFound."""
        try:
            return self._streams[name]
        except KeyError:
            raise LogStreamNotFound(name) from None

    def find_for_writing(self, name: str, token: str) -> WrittenStream:
        """The stream that `token` gives the right to write. Raises LogStreamNotFound."""
        stream = self.find(name)
        if not stream.admits(token):
            raise LogStreamNotFound(name)
        return stream

    async def _forget_later(self, stream: WrittenStream) -> None:
        while (end := stream.touched + self._settings.idle_seconds) > trio.current_time():
            await trio.sleep_until(end)
            if stream.users:
                stream.touched = trio.current_time()
        del self._streams[stream.name]
        stream.close()
        _log.info("log stream forgotten", size_bytes=stream.committed_bytes)

    def close(self) -> None:
        """Forget all."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()


def _open_unnamed(folder: Path) -> int:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        return os.dup(file.fileno())
