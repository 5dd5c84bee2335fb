"""Blobs and action results in memory, for tests and tiny set-ups. Nothing outlives the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec
import trio

from stoker import spi
from stoker.digest import Digest
from stoker.errors import BlobNotFound, StokerError, StorageFull
from stoker.spi import ActionKey, ActionResult, BlobReader, BlobWriter


class MemorySettings(spi.Settings, frozen=True):
    """Settings of the kind ``memory``, for blob stores and for action caches."""

    max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 1 << 30
    """How much it may hold, uploads in flight included. Beyond it writes are refused."""


class MemoryBlobStore(spi.BlobStore):
    """A blob store in memory. Nothing is ever evicted: beyond `max_bytes` it raises StorageFull.

    `max_bytes` bounds the blobs and the uploads in flight together; None sets no bound.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self._blobs: dict[Digest, bytes] = {}
        self._room = _Room(max_bytes)

    @property
    def used_bytes(self) -> int:
        """What blobs and uploads in flight take up now."""
        return self._room.used_bytes

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        await trio.lowlevel.checkpoint()
        return {digest for digest in digests if digest not in self._blobs}

    @asynccontextmanager
    async def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[BlobReader]:
        await trio.lowlevel.checkpoint()
        if (data := self._blobs.get(digest)) is None:
            raise BlobNotFound(digest)
        end = len(data) if limit is None else min(offset + limit, len(data))
        yield _MemoryReader(data, offset, end)

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        await trio.lowlevel.checkpoint()
        writer = _MemoryWriter(self._room)
        try:
            yield writer
        finally:
            self._room.give_back(writer.reserved_bytes)
        # What was given back is taken again before anybody else can run.
        self._publish(digest, bytes(writer.data))

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        await trio.lowlevel.checkpoint()
        return {digest: self._blobs[digest] for digest in digests if digest in self._blobs}

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        await trio.lowlevel.checkpoint()
        failures: dict[Digest, StokerError] = {}
        for digest, data in blobs.items():
            try:
                self._publish(digest, bytes(data))
            except StorageFull as error:
                failures[digest] = error
        return failures

    def _publish(self, digest: Digest, data: bytes) -> None:
        if digest not in self._blobs:
            self._room.take(len(data))
            self._blobs[digest] = data


class MemoryActionCache(spi.ActionCache):
    """An action cache in memory. Beyond `max_bytes` of results it raises StorageFull."""

    def __init__(self, max_bytes: int | None = None) -> None:
        # Serialized, so that a caller who changes a message changes nothing here.
        self._results: dict[ActionKey, bytes] = {}
        self._room = _Room(max_bytes)

    async def get(self, key: ActionKey) -> ActionResult | None:
        await trio.lowlevel.checkpoint()
        data = self._results.get(key)
        return None if data is None else ActionResult.FromString(data)

    async def update(self, key: ActionKey, result: ActionResult) -> None:
        await trio.lowlevel.checkpoint()
        data = result.SerializeToString()
        self._room.take(len(data) - len(self._results.get(key, b"")))
        self._results[key] = data

    @asynccontextmanager
    async def open_entries(self) -> AsyncIterator[AsyncIterator[ActionKey]]:
        yield _Entries([*self._results])

    async def remove(self, keys: Collection[ActionKey]) -> None:
        await trio.lowlevel.checkpoint()
        for key in keys:
            self._room.give_back(len(self._results.pop(key, b"")))


class _Entries(AsyncIterator[ActionKey]):
    """Keys as they were at the start. No async generator, so that callers may just stop."""

    def __init__(self, keys: Iterable[ActionKey]) -> None:
        self._keys = iter(keys)

    async def __anext__(self) -> ActionKey:
        await trio.lowlevel.checkpoint()
        if (key := next(self._keys, None)) is None:
            raise StopAsyncIteration
        return key


@asynccontextmanager
async def open_memory_blob_store(
    settings: MemorySettings, _: spi.Context
) -> AsyncIterator[spi.BlobStore]:
    """Open the blob store of the kind ``memory``."""
    yield MemoryBlobStore(settings.max_bytes)


@asynccontextmanager
async def open_memory_action_cache(
    settings: MemorySettings, _: spi.Context
) -> AsyncIterator[spi.ActionCache]:
    """Open the action cache of the kind ``memory``."""
    yield MemoryActionCache(settings.max_bytes)


class _Room:
    """Counts bytes against a bound."""

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self.used_bytes = 0

    def take(self, size_bytes: int) -> None:
        if self._max_bytes is not None and self.used_bytes + size_bytes > self._max_bytes:
            raise StorageFull(
                f"no room for {size_bytes} bytes: "
                f"{self.used_bytes} of max_bytes = {self._max_bytes} are in use"
            )
        self.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        self.used_bytes -= size_bytes


class _MemoryReader(BlobReader):
    def __init__(self, data: bytes, position: int, end: int) -> None:
        self._data = data
        self._position = position
        self._end = end

    async def read(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        piece = self._data[self._position : min(self._position + max_bytes, self._end)]
        self._position += len(piece)
        return piece


class _MemoryWriter(BlobWriter):
    def __init__(self, room: _Room) -> None:
        self._room = room
        self.data = bytearray()
        self.reserved_bytes = 0

    async def write(self, data: bytes | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._room.take(len(data))
        self.reserved_bytes += len(data)
        self.data += data
