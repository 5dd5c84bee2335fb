"""The one place that hashes what comes in: no store can publish bytes that are not its digest."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from stoker.digest import Digest
from stoker.errors import DataLoss, DigestMismatch, OffsetOutOfRange, StokerError
from stoker.spi import BlobReader, BlobStore, BlobUpload, BlobWriter, Locate
from stoker.storage.hashing import THREAD_BYTES, StreamHasher, open_hasher
from stoker.storage.recent import RecentBlobs

_KEPT_PIECE_BYTES = 1024 * 1024


class VerifyingBlobStore(BlobStore):
    """`inner`, with every incoming byte counted and hashed, and the empty blob always present.

    What is read is counted: a store that ends a blob early, or goes on behind its end, is told
    as DataLoss, never as a shorter or longer blob (BSR-19).

    The empty blob is never passed on: it is never missing, reads as nothing and may be written
    (FMB-02, BSR-09, BUB-05). Calls may overlap as `inner` allows, which is freely.

    Small blobs that have gone in or out are held in memory for a while, for those who ask for no
    more than their bytes; every other question goes to `inner`.
    """

    def __init__(self, inner: BlobStore) -> None:
        self._inner = inner
        self._recent = RecentBlobs()

    def held(self, digests: Collection[Digest]) -> Mapping[Digest, bytes]:
        return self._recent.find(digests)

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
        """As the store does; and raises OffsetOutOfRange for an offset outside of the blob.

        The reader raises DataLoss where the store gives other than the announced number of bytes.
        """
        if not 0 <= offset <= digest.size_bytes:
            raise OffsetOutOfRange(digest, offset)
        if digest == digest.function.empty:
            yield _EmptyReader()
            return
        rest = digest.size_bytes - offset
        async with self._inner.open_read(digest, offset, limit) as reader:
            yield _CountingReader(digest, reader, rest if limit is None else min(limit, rest))

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        """As the store does, but publish only bytes that are `digest`.

        Raises DigestMismatch: from `write` as soon as there are more bytes than announced, and
        on leaving if size or hash differ. After it nothing is published.
        """
        if digest == digest.function.empty:
            # There is nothing to store, and any byte that is written is one too many.
            yield _VerifyingWriter(digest, _NoWriter(), StreamHasher(digest))
            return
        holds = self._recent.wants(digest)
        async with self._inner.open_write(digest) as inner, open_hasher(digest) as hasher:
            writer = _VerifyingWriter(digest, inner, hasher, holds=holds)
            yield writer
            # Inside of the store's context: an error here makes the store drop what it has.
            await writer.verify()
        self._recent.add(writer.whole())

    @asynccontextmanager
    async def open_upload(self, digest: Digest, upload: str) -> AsyncIterator[BlobUpload]:
        """As the store does, but publish only bytes that are `digest`, kept ones among them.

        What was kept is hashed once more before anything is written behind it. Raises
        DigestMismatch as `open_write` does; after it nothing is published and nothing is kept.
        """
        if digest == digest.function.empty:
            yield _VerifyingUpload(digest, _NoUpload(), StreamHasher(digest))
            return
        holds = self._recent.wants(digest)
        async with self._inner.open_upload(digest, upload) as inner, open_hasher(digest) as hasher:
            writer = _VerifyingUpload(digest, inner, hasher, holds=holds)
            yield writer
            await writer.verify()
        self._recent.add(writer.whole())

    async def uploaded_bytes(self, digest: Digest, upload: str) -> int:
        if digest == digest.function.empty:
            await trio.lowlevel.checkpoint()
            return 0
        return await self._inner.uploaded_bytes(digest, upload)

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        asked = _distinct_not_empty(digests)
        blobs = await self._inner.read_many(asked) if asked else {}
        for digest, data in blobs.items():
            if len(data) != digest.size_bytes:
                raise DataLoss(digest, f"its store has given {len(data)} bytes")
        self._recent.add(blobs)
        return blobs | {digest: b"" for digest in digests if digest == digest.function.empty}

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        """Verify each blob: those that are not their digest fail, the others are published."""
        failures = await _find_mismatches(blobs)
        sound = {
            digest: data
            for digest, data in blobs.items()
            if digest not in failures and digest != digest.function.empty
        }
        if sound:
            failures |= await self._inner.write_many(sound)
        self._recent.add({digest: sound[digest] for digest in sound if digest not in failures})
        return failures

    async def write_file(self, digest: Digest, path: Path) -> None:
        """Have the store take a file that is `digest` already, and look only at its size.

        Integrity stays core's: no store hashes, and no client can call this. Whoever does is core
        itself, which has hashed this very file since nobody could write to it any more; hashing
        once more what may be moved without being read would find nothing new. A mistaken size is
        caught: DigestMismatch, and nothing is published. Raises FileNotFoundError.
        """
        status = await trio.Path(path).lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != digest.size_bytes:
            raise DigestMismatch(digest, f"{path} is no file of that size: {status.st_size} bytes")
        if digest != digest.function.empty:
            await self._inner.write_file(digest, path)

    def open_paths(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[Mapping[Digest, Path]]:
        return self._inner.open_paths(digests)

    def open_locations(self, digests: Collection[Digest]) -> AbstractAsyncContextManager[Locate]:
        return self._inner.open_locations(digests)

    def open_executable_paths(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[Mapping[Digest, Path]]:
        return self._inner.open_executable_paths(digests)


class _VerifyingWriter(BlobWriter):
    def __init__(
        self, digest: Digest, inner: BlobWriter, hasher: StreamHasher, *, holds: bool = False
    ) -> None:
        """With `holds`, what is written is kept in memory too."""
        self._digest = digest
        self._inner = inner
        self._hasher = hasher
        self._size_bytes = 0
        self._held: list[bytes] | None = [] if holds else None

    async def write(self, data: bytes | memoryview) -> None:
        if self._size_bytes + len(data) > self._digest.size_bytes:
            raise DigestMismatch(
                self._digest, f"at least {self._size_bytes + len(data)} bytes were written"
            )
        await self._hasher.update(data)
        await self._inner.write(data)
        # Counted last: if a failed write is ignored, verification finds too few bytes.
        self._size_bytes += len(data)
        if self._held is not None:
            self._held.append(bytes(data))

    def whole(self) -> dict[Digest, bytes]:
        """The blob, once it is verified, where all of it was written here and kept."""
        data = b"".join(self._held or ())
        return {self._digest: data} if len(data) == self._digest.size_bytes else {}

    async def verify(self) -> None:
        """Raise DigestMismatch unless what was written is the digest."""
        if self._size_bytes != self._digest.size_bytes:
            raise DigestMismatch(self._digest, f"{self._size_bytes} bytes were written")
        if (actual := await self._hasher.hexdigest()) != self._digest.hash:
            raise DigestMismatch(self._digest, f"what was written hashes to {actual}")


class _VerifyingUpload(_VerifyingWriter, BlobUpload):
    """Hashes what an earlier call has left, unless it is given up, before it goes on."""

    def __init__(
        self, digest: Digest, inner: BlobUpload, hasher: StreamHasher, *, holds: bool = False
    ) -> None:
        super().__init__(digest, inner, hasher, holds=holds)
        self._upload = inner
        self.offset = inner.offset
        self._is_hashed = not inner.offset

    async def write(self, data: bytes | memoryview) -> None:
        await self._hash_kept()
        await super().write(data)

    async def read_kept(self, offset: int, max_bytes: int) -> bytes:
        return await self._upload.read_kept(offset, max_bytes)

    async def restart(self) -> None:
        await self._upload.restart()
        self.offset = 0
        self._is_hashed = True

    async def verify(self) -> None:
        await self._hash_kept()
        await super().verify()

    async def _hash_kept(self) -> None:
        if self._is_hashed:
            return
        while self._size_bytes < self.offset:
            room = min(_KEPT_PIECE_BYTES, self.offset - self._size_bytes)
            piece = await self._upload.read_kept(self._size_bytes, room)
            if not piece:
                raise DigestMismatch(
                    self._digest,
                    f"of the {self.offset} bytes that were kept of it {self._size_bytes} are left",
                )
            await self._hasher.update(piece)
            self._size_bytes += len(piece)
        self._is_hashed = True


class _CountingReader(BlobReader):
    def __init__(self, digest: Digest, inner: BlobReader, size_bytes: int) -> None:
        self._digest = digest
        self._inner = inner
        self._left = size_bytes

    async def read(self, max_bytes: int) -> bytes:
        piece = await self._inner.read(max_bytes)
        self._left -= len(piece)
        if self._left < 0 or (self._left and not piece):
            kind = "more" if self._left < 0 else "fewer"
            raise DataLoss(self._digest, f"its store gives {abs(self._left)} bytes {kind}")
        return piece


class _EmptyReader(BlobReader):
    async def read(self, max_bytes: int) -> bytes:  # noqa: ARG002 - none of them
        await trio.lowlevel.checkpoint()
        return b""


class _NoWriter(BlobWriter):
    async def write(self, data: bytes | memoryview) -> None:  # noqa: ARG002 - always empty
        await trio.lowlevel.checkpoint()


class _NoUpload(_NoWriter, BlobUpload):
    async def read_kept(self, offset: int, max_bytes: int) -> bytes:  # noqa: ARG002 - none of them
        await trio.lowlevel.checkpoint()
        return b""

    async def restart(self) -> None:
        await trio.lowlevel.checkpoint()


def _distinct_not_empty(digests: Collection[Digest]) -> list[Digest]:
    return [digest for digest in dict.fromkeys(digests) if digest != digest.function.empty]


async def _find_mismatches(blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
    if sum(map(len, blobs.values())) < THREAD_BYTES:
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
