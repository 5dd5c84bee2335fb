"""A blob store in a folder: one file a blob, named by digest function, hash and size."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from stoker.spi import (
    BlobNotFound,
    BlobReader,
    BlobStore,
    BlobWriter,
    DataLoss,
    Digest,
    StokerError,
)
from stoker_storage_disk.folder import Folder, Part, read_exactly
from stoker_storage_disk.threads import INLINE_BYTES, INLINE_FILES, run

# What one upload may hold back in memory, so that small pieces do not each cost a trip.
_BUFFER_BYTES = 256 * 1024
_MAX_READ_BYTES = 1024 * 1024


class DiskBlobStore(BlobStore):
    """Blobs in `folder`. See README.md for the layout and for what survives a crash.

    Whole files are moved into place, so that readers, who keep a descriptor, see either nothing
    or all of a blob. A file whose size is not its digest's counts as absent and is removed.
    Calls may overlap freely. Work that has gone to a thread is not cut short by cancellation.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        def work() -> set[Digest]:
            return {digest for digest in digests if not self._holds(digest)}

        return await run(work, inline=len(digests) <= INLINE_FILES)

    @asynccontextmanager
    async def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[BlobReader]:
        await trio.lowlevel.checkpoint()
        descriptor = self._open(digest)
        if descriptor is None:
            raise BlobNotFound(digest)
        try:
            yield _DiskReader(digest, descriptor, offset, limit)
        finally:
            os.close(descriptor)

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        await trio.lowlevel.checkpoint()
        upload = _Upload(self._folder)
        try:
            yield upload
            await trio.to_thread.run_sync(self._publish, digest, upload)
        finally:
            if upload.has_part:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(upload.discard)

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        def work() -> dict[Digest, bytes]:
            found = ((digest, self._read(digest)) for digest in digests)
            return {digest: data for digest, data in found if data is not None}

        few = len(digests) <= INLINE_FILES
        return await run(work, inline=few and _size_bytes(digests) <= INLINE_BYTES)

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        """As the default does, in one trip to a thread. Cancellation leaves all or none written."""

        def work() -> dict[Digest, StokerError]:
            failures: dict[Digest, StokerError] = {}
            for digest, data in blobs.items():
                try:
                    self._write(digest, data)
                except StokerError as error:
                    failures[digest] = error
            return failures

        return await trio.to_thread.run_sync(work)

    @asynccontextmanager
    async def open_paths(self, digests: Collection[Digest]) -> AsyncIterator[Mapping[Digest, Path]]:
        """The blobs' own files, of mode 0444. Hard links to them are welcome."""

        def work() -> dict[Digest, Path]:
            return {digest: Path(self._path(digest)) for digest in digests if self._holds(digest)}

        yield await run(work, inline=len(digests) <= INLINE_FILES)

    def _path(self, digest: Digest) -> str:
        # The size is part of the name: a known hash with another size is another file (GEN-03).
        return os.path.join(
            self._folder.path,
            digest.function.name.lower(),
            digest.hash[:2],
            f"{digest.hash}-{digest.size_bytes}",
        )

    def _holds(self, digest: Digest) -> bool:
        return self._folder.holds_file(self._path(digest), digest.size_bytes)

    def _open(self, digest: Digest) -> int | None:
        return self._folder.open_file(self._path(digest), digest.size_bytes)

    def _read(self, digest: Digest) -> bytes | None:
        descriptor = self._open(digest)
        if descriptor is None:
            return None
        try:
            return _read_exactly(digest, descriptor, 0, digest.size_bytes)
        finally:
            os.close(descriptor)

    def _write(self, digest: Digest, data: bytes) -> None:
        self._publish(digest, _Upload(self._folder), data)

    def _publish(self, digest: Digest, upload: _Upload, rest: bytes = b"") -> None:
        try:
            # A blob that is there already keeps its file, to which inputs may be linked (BUB-06).
            if self._holds(digest):
                self._folder.sync_folder_of(self._path(digest))
            else:
                self._folder.publish(upload.append(rest), self._path(digest))
        finally:
            upload.discard()


class _DiskReader(BlobReader):
    def __init__(self, digest: Digest, descriptor: int, offset: int, limit: int | None) -> None:
        self._digest = digest
        self._descriptor = descriptor
        self._position = offset
        rest = digest.size_bytes - offset
        self._end = offset + (rest if limit is None else min(rest, limit))

    async def read(self, max_bytes: int) -> bytes:
        size_bytes = min(max_bytes, self._end - self._position, _MAX_READ_BYTES)
        data = await run(lambda: self._read(size_bytes), inline=size_bytes <= INLINE_BYTES)
        self._position += len(data)
        return data

    def _read(self, size_bytes: int) -> bytes:
        return _read_exactly(self._digest, self._descriptor, self._position, size_bytes)


class _Upload(BlobWriter):
    """Gathers small pieces, and has no file as long as they fit into the buffer."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._buffer = bytearray()
        self._part: Part | None = None

    @property
    def has_part(self) -> bool:
        return self._part is not None

    async def write(self, data: bytes | memoryview) -> None:
        if len(self._buffer) + len(data) < _BUFFER_BYTES:
            await trio.lowlevel.checkpoint()
            self._buffer += data
        else:
            # `data` goes to the file as it is: the caller may reuse it only after this returns.
            await trio.to_thread.run_sync(self.append, data)

    def discard(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.discard()

    def append(self, data: bytes | memoryview) -> Part:
        """Write all that was gathered, and `data`, to the part. Blocks."""
        if self._part is None:
            self._part = self._folder.create_part()
        for piece in (self._buffer, data):
            self._part.append(piece)
        self._buffer = bytearray()
        return self._part


def _read_exactly(digest: Digest, descriptor: int, offset: int, size_bytes: int) -> bytes:
    data = read_exactly(f"blob {digest}", descriptor, offset, size_bytes)
    if len(data) < size_bytes:
        raise DataLoss(digest, f"its file ends at byte {offset + len(data)}")
    return data


def _size_bytes(digests: Collection[Digest]) -> int:
    return sum(digest.size_bytes for digest in digests)
