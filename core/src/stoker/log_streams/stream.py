"""What all log streams have in common: bytes in a file that grows, and readers that follow it."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio

from stoker.digest import Digest
from stoker.errors import FailedPrecondition, LogOffsetOutOfRange, Unavailable
from stoker.log_streams.growth import Growth

LAST_SECONDS = 30.0
"""How long a reader may take for the rest of a stream that nobody keeps. Until then its file takes
room on the disk, which a client that does not read would take for good."""


class LogStream(abc.ABC):
    """A stream that can be read while it grows. All its readers share one descriptor."""

    __slots__ = ("__weakref__", "_descriptor", "_readers", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        """The name to read it by."""
        self._descriptor: int | None = None
        self._readers: set[LogReader] = set()

    @property
    @abc.abstractmethod
    def ended(self) -> bool:
        """Whether nothing more comes."""

    @property
    def digest(self) -> Digest | None:
        """The blob that holds the whole, once there is one: read on from there."""
        return None

    @abc.abstractmethod
    def open_descriptor(self) -> int | None:
        """A new descriptor of the file, or None while there is none, or if there is none any more.

        Takes no longer than a look at a file.
        """

    @abc.abstractmethod
    def size_bytes(self, descriptor: int) -> int:
        """How many bytes can be read now."""

    @abc.abstractmethod
    def check(self, *, has_read: bool) -> None:
        """Raise what a reader is to be told in place of the rest, if he has read some or not."""

    @contextmanager
    def open_reader(self, offset: int, growth: Growth) -> Iterator[LogReader]:
        """Read from `offset` on, which may be ahead of what there is now."""
        reader = LogReader(self, offset, growth)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            if not self._readers and self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def hurry(self) -> None:
        """The file has no other place any more: who reads it has `LAST_SECONDS` left."""
        for reader in self._readers:
            reader.scope.deadline = trio.current_time() + LAST_SECONDS

    def descriptor(self) -> int | None:
        """What a reader reads from, as long as it is open."""
        if self._descriptor is None:
            self._descriptor = self.open_descriptor()
        return self._descriptor


class LogReader:
    """A reader of a stream. One task uses it."""

    def __init__(self, stream: LogStream, offset: int, growth: Growth) -> None:
        self._stream = stream
        self._growth = growth
        self._begun = offset
        self.offset = offset
        """Of the next byte."""
        self.scope = trio.CancelScope()
        """To be entered around all that is done with what was read."""

    async def read(self, max_bytes: int) -> bytes:
        """The next bytes: at least one and at most `max_bytes`, as soon as there are any.

        Empty at the end, or once the rest is to be had from the blob `LogStream.digest`. After
        cancellation it may be repeated. Raises FailedPrecondition if bytes that were read are
        gone, Unavailable if the disk fails, and what `LogStream.check` raises.
        """
        stream = self._stream
        while True:
            stream.check(has_read=self.offset > self._begun)
            ended = stream.ended
            if stream.digest is not None:
                return b""
            descriptor = stream.descriptor()
            seen = self._size(descriptor)
            if seen > self.offset and descriptor is not None:
                if data := await self._take(descriptor, min(max_bytes, seen - self.offset)):
                    return data
                continue  # it was cut short in this moment
            if seen < self.offset and self.offset > self._begun and descriptor is not None:
                self.check_end(seen)
            if ended:
                self.check_end(seen)
                return b""
            await self._growth.wait(partial(self._is_news, seen))

    def check_end(self, size_bytes: int) -> None:
        """The stream has `size_bytes`. Raises FailedPrecondition or LogOffsetOutOfRange if that is
        less than what was read, or passed over."""
        if self.offset <= size_bytes:
            return
        if self.offset == self._begun:
            raise LogOffsetOutOfRange(self.offset)
        raise FailedPrecondition(
            f"{self.offset} bytes of the stream were read, and its writer has cut it short since"
        )

    def _size(self, descriptor: int | None) -> int:
        return 0 if descriptor is None else self._stream.size_bytes(descriptor)

    def _is_news(self, seen: int) -> bool:
        stream = self._stream
        return stream.ended or self._size(stream.descriptor()) != seen

    async def _take(self, descriptor: int, max_bytes: int) -> bytes:
        # In a thread: what was written a while ago may have to come from a slow disk.
        try:
            data = await trio.to_thread.run_sync(os.pread, descriptor, max_bytes, self.offset)
        except OSError as error:
            raise Unavailable(f"the stream cannot be read: {error.strerror}") from error
        self.offset += len(data)
        return data
