"""The one place that hashes what comes in: no store can publish bytes that are not its digest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from stoker.digest import Digest
from stoker.errors import DigestMismatch, OffsetOutOfRange, StokerError
from stoker.spi import BlobReader, BlobStore, BlobWriter

# Measured: SHA-256 of 256 KiB takes 0.2 ms, a trip to a thread and back 0.13 ms. Below, hashing
# in place is cheaper; above, it would hold up every other task.
_THREAD_THRESHOLD_BYTES = 256 * 1024


class VerifyingBlobStore(BlobStore):
    """`inner`, with every incoming byte counted and hashed, and the empty blob always present.

    The empty blob is never passed on: it is never missing, reads as nothing and may be written
    (FMB-02, BSR-09, BUB-05). Calls may overlap as `inner` allows, which is freely.
    """

    def __init__(self, inner: BlobStore) -> None:
        self._inner = inner

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        asked = _distinct_not_empty(digests)
        if not asked:
            await trio.lowlevel.checkpoint()
            return set()
        return await self._inner.find_missing(asked)

    @asynccontextmanager
    async def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[BlobReader]:
        """As the store does; and raises OffsetOutOfRange for an offset outside of the blob."""
        if not 0 <= offset <= digest.size_bytes:
            raise OffsetOutOfRange(digest, offset)
        if digest == digest.function.empty:
            yield _EmptyReader()
            return
        async with self._inner.open_read(digest, offset, limit) as reader:
            yield reader

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        """As the store does, but publish only bytes that are `digest`.

        Raises DigestMismatch: from `write` as soon as there are more bytes than announced, and
        on leaving if size or hash differ. After it nothing is published.
        """
        if digest == digest.function.empty:
            # There is nothing to store, and any byte that is written is one too many.
            yield _VerifyingWriter(digest, _NoWriter())
            return
        async with self._inner.open_write(digest) as inner:
            writer = _VerifyingWriter(digest, inner)
            yield writer
            # Inside of the store's context: an error here makes the store drop what it has.
            writer.verify()

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        asked = _distinct_not_empty(digests)
        blobs = await self._inner.read_many(asked) if asked else {}
        return blobs | {digest: b"" for digest in digests if digest == digest.function.empty}

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        """Verify each blob: those that are not their digest fail, the others are published."""
        failures = await _find_mismatches(blobs)
        sound = {
            digest: data
            for digest, data in blobs.items()
            if digest not in failures and digest != digest.function.empty
        }
        return failures | (await self._inner.write_many(sound) if sound else {})

    def open_paths(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[Mapping[Digest, Path]]:
        return self._inner.open_paths(digests)


class _VerifyingWriter(BlobWriter):
    def __init__(self, digest: Digest, inner: BlobWriter) -> None:
        self._digest = digest
        self._inner = inner
        self._hasher = digest.function.new()
        self._size_bytes = 0

    async def write(self, data: bytes | memoryview) -> None:
        if self._size_bytes + len(data) > self._digest.size_bytes:
            raise DigestMismatch(
                self._digest, f"at least {self._size_bytes + len(data)} bytes were written"
            )
        if len(data) < _THREAD_THRESHOLD_BYTES:
            self._hasher.update(data)
            await self._inner.write(data)
        else:
            await self._hash_while_writing(data)
        # Counted last: if a failed write is ignored, verification finds too few bytes.
        self._size_bytes += len(data)

    async def _hash_while_writing(self, data: bytes | memoryview) -> None:
        failure: StokerError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, self._hasher.update, data)
            try:
                await self._inner.write(data)
            except StokerError as error:
                # Carried around the nursery, which would wrap it in a group.
                failure = error
        if failure is not None:
            raise failure

    def verify(self) -> None:
        """Raise DigestMismatch unless what was written is the digest."""
        if self._size_bytes != self._digest.size_bytes:
            raise DigestMismatch(self._digest, f"{self._size_bytes} bytes were written")
        if (actual := self._hasher.hexdigest()) != self._digest.hash:
            raise DigestMismatch(self._digest, f"what was written hashes to {actual}")


class _EmptyReader(BlobReader):
    async def read(self, max_bytes: int) -> bytes:  # noqa: ARG002 - none of them
        await trio.lowlevel.checkpoint()
        return b""


class _NoWriter(BlobWriter):
    async def write(self, data: bytes | memoryview) -> None:  # noqa: ARG002 - always empty
        await trio.lowlevel.checkpoint()


def _distinct_not_empty(digests: Collection[Digest]) -> list[Digest]:
    return [digest for digest in dict.fromkeys(digests) if digest != digest.function.empty]


async def _find_mismatches(blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
    if sum(map(len, blobs.values())) < _THREAD_THRESHOLD_BYTES:
        await trio.lowlevel.checkpoint()
        return _mismatches(blobs)
    return await trio.to_thread.run_sync(_mismatches, blobs)


def _mismatches(blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
    failures: dict[Digest, StokerError] = {}
    for digest, data in blobs.items():
        actual = digest.function.digest(data)
        if actual != digest:
            failures[digest] = DigestMismatch(digest, f"its data is {actual}")
    return failures
