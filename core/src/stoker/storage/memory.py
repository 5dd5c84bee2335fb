"""Blobs and action results in memory, for tests and tiny set-ups. Nothing outlives the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec
import trio

from stoker import spi
from stoker.digest import Digest
from stoker.errors import (
    BlobNotFound,
    InvalidRequest,
    StokerError,
    StorageFull,
    UploadInProgress,
)
from stoker.spi import ActionKey, ActionResult, BlobReader, BlobUpload, BlobWriter

MAX_KEPT_UPLOADS = 1_000
"""How many uploads that broke off are kept to be continued; beyond it the oldest are forgotten."""

_CALLS_A_TURN = 16


class MemorySettings(spi.Settings, frozen=True):
    """Settings of the kind ``memory``, for blob stores and for action caches."""

    max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 1 << 30
    """How much it may hold, uploads in flight included. Beyond it writes are refused."""


class MemoryBlobStore(spi.BlobStore):
    """A blob store in memory. Nothing is ever evicted: beyond `max_bytes` it raises StorageFull.

    `max_bytes` bounds the blobs and the uploads together; None sets no bound. Uploads that broke
    off are kept as long as there are at most MAX_KEPT_UPLOADS of them and nothing else needs
    their room.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self._blobs: dict[Digest, bytes] = {}
        self._kept: dict[tuple[Digest, str], bytearray] = {}
        self._in_progress: set[tuple[Digest, str]] = set()
        self._room = _Room(max_bytes, self._forget_oldest)
        self._turns = _Turns()

    @property
    def used_bytes(self) -> int:
        """What blobs and uploads, kept ones too, take up now."""
        return self._room.used_bytes

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        await self._turns.take()
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

    @asynccontextmanager
    async def open_upload(self, digest: Digest, upload: str) -> AsyncIterator[BlobUpload]:
        await trio.lowlevel.checkpoint()
        key = digest, upload
        if key in self._in_progress:
            raise UploadInProgress(digest, upload)
        self._in_progress.add(key)
        writer = _MemoryUpload(self._room, self._kept.pop(key, bytearray()))
        try:
            yield writer
        except InvalidRequest:
            self._room.give_back(writer.reserved_bytes)
            raise
        except BaseException:
            self._keep(key, writer.data)
            raise
        finally:
            self._in_progress.discard(key)
        self._room.give_back(writer.reserved_bytes)
        self._publish(digest, bytes(writer.data))

    async def uploaded_bytes(self, digest: Digest, upload: str) -> int:
        await trio.lowlevel.checkpoint()
        return len(self._kept.get((digest, upload), b""))

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        await self._turns.take()
        return {digest: self._blobs[digest] for digest in digests if digest in self._blobs}

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        await self._turns.take()
        failures: dict[Digest, StokerError] = {}
        for digest, data in blobs.items():
            try:
                self._publish(digest, bytes(data))
            except StorageFull as error:
                failures[digest] = error
        return failures

    def _keep(self, key: tuple[Digest, str], data: bytearray) -> None:
        if not data:
            return
        self._kept[key] = data
        if len(self._kept) > MAX_KEPT_UPLOADS:
            self._forget_oldest()

    def _forget_oldest(self) -> bool:
        """Give the room of the upload back that was kept the longest; False if there is none."""
        oldest = next(iter(self._kept), None)
        if oldest is None:
            return False
        self._room.give_back(len(self._kept.pop(oldest)))
        return True

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
        self._turns = _Turns()

    async def get(self, key: ActionKey) -> ActionResult | None:
        await self._turns.take()
        data = self._results.get(key)
        return None if data is None else ActionResult.FromString(data)

    async def update(self, key: ActionKey, result: ActionResult) -> None:
        await self._turns.take()
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


class _Turns:
    """Lets other tasks run, though not at every call: that costs more than a look into memory."""

    def __init__(self) -> None:
        self._taken = 0

    async def take(self) -> None:
        """Notice a cancellation, and let others run now and then."""
        self._taken += 1
        if self._taken % _CALLS_A_TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()


class _Room:
    """Counts bytes against a bound. `make_room` gives some back, until it returns False."""

    def __init__(
        self, max_bytes: int | None, make_room: Callable[[], bool] = lambda: False
    ) -> None:
        self._max_bytes = max_bytes
        self._make_room = make_room
        self.used_bytes = 0

    def take(self, size_bytes: int) -> None:
        while self._lacks(size_bytes) and self._make_room():
            pass
        if self._lacks(size_bytes):
            raise StorageFull(
                f"no room for {size_bytes} bytes: "
                f"{self.used_bytes} of max_bytes = {self._max_bytes} are in use"
            )
        self.used_bytes += size_bytes

    def _lacks(self, size_bytes: int) -> bool:
        return self._max_bytes is not None and self.used_bytes + size_bytes > self._max_bytes

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


class _MemoryUpload(_MemoryWriter, BlobUpload):
    def __init__(self, room: _Room, kept: bytearray) -> None:
        super().__init__(room)
        self.data = kept
        self.reserved_bytes = self.offset = len(kept)

    async def read_kept(self, offset: int, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return bytes(self.data[offset : min(offset + max_bytes, self.offset)])

    async def restart(self) -> None:
        await trio.lowlevel.checkpoint()
        self._room.give_back(self.reserved_bytes)
        self.data = bytearray()
        self.reserved_bytes = self.offset = 0
