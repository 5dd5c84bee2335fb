"""A store of blobs."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from stoker.digest import Digest
from stoker.errors import BlobNotFound, StokerError, Unsupported
from stoker.spi.blob_paths import Locate, locate_in
from stoker.spi.blob_streams import BlobReader, BlobUpload, BlobWriter

_COPY_BYTES = 1024 * 1024

HELD_SECONDS = 60.0
"""For how long bytes of a blob may be held in memory after it was last seen in its store."""


@dataclass(frozen=True, slots=True)
class ScrubFinding:
    """One step of a scrub: something that was wrong, or how far it has come."""

    digest: Digest | None
    """The blob that this is about, where it can still be told."""
    problem: str
    """What was wrong, and what was done about it; empty where this only tells the progress."""
    checked: int
    """How many blobs have been checked so far."""


class BlobStore(abc.ABC):
    """Blobs by content. Calls may overlap freely, also on one digest.

    The store never hashes: stoker hands it a writer that verifies size and hash before the
    context of `open_write` is left cleanly. A store need not know the empty blob either: stoker
    answers for it.
    """

    @abc.abstractmethod
    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Those of `digests` that are absent. One that is present is not soon evicted.

        Raises Unavailable rather than call a blob missing because something did not answer.
        """

    @abc.abstractmethod
    def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AbstractAsyncContextManager[BlobReader]:
        """Open `digest` at `offset` (at most its size) for at most `limit` bytes.

        While it is open the blob stays readable, whatever happens to it meanwhile.
        Raises BlobNotFound or Unavailable on entering.
        """

    @abc.abstractmethod
    def open_write(self, digest: Digest) -> AbstractAsyncContextManager[BlobWriter]:
        """Publish `digest` once the context is left cleanly.

        After any exception, cancellation included, readers see nothing of it and the space is
        given back. Writing a blob that is present already is no error.
        Raises StorageFull or Unavailable.
        """

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        """Whole small blobs at once. Absent ones are left out. Raises DataLoss or Unavailable."""
        blobs = {}
        for digest in digests:
            try:
                async with self.open_read(digest) as reader:
                    blobs[digest] = await _read_whole(reader, digest.size_bytes)
            except BlobNotFound:
                continue
        return blobs

    def held(self, digests: Collection[Digest]) -> Mapping[Digest, bytes]:
        """Those of `digests` that somebody has in memory, and nobody has to wait for.

        They were in the store at most `HELD_SECONDS` ago, and may have gone since: for whoever
        needs the bytes and not the blob. To be held is not to be used. None by default: stoker
        holds what has gone in and out of a store lately itself.
        """
        del digests
        return {}

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        """Publish whole small blobs, each on its own. Returns those that failed, and why."""
        failures: dict[Digest, StokerError] = {}
        for digest, data in blobs.items():
            try:
                async with self.open_write(digest) as writer:
                    await writer.write(data)
            except StokerError as error:
                failures[digest] = error
        return failures

    def open_upload(self, digest: Digest, upload: str) -> AbstractAsyncContextManager[BlobUpload]:
        """As `open_write`, for an upload that may be continued under its name, any short text.

        Left cleanly, it publishes `digest`. Left by InvalidRequest, DigestMismatch among it,
        what was written is discarded. Left by any other exception, cancellation included, a
        store that can keeps what was written, over restarts too, for a bounded time and counted
        against its bound; this body keeps nothing. Raises UploadInProgress on entering while
        another task has the same upload open, StorageFull or Unavailable.
        """
        return _unkept_upload(self, digest, upload)

    async def write_file(self, digest: Digest, path: Path) -> None:
        """Publish the file at `path`, whose bytes the caller has found to be `digest`.

        The file is the store's: it may be moved away, and nobody may have it open for writing.
        Where it stays, it is unchanged, and the caller's to remove. As for `open_write`
        otherwise; raises FileNotFoundError if there is no such file. By default it is copied.
        """
        async with self.open_write(digest) as writer, await trio.open_file(path, "rb") as file:
            while data := await file.read(_COPY_BYTES):
                await writer.write(data)

    async def uploaded_bytes(self, digest: Digest, upload: str) -> int:
        """How many bytes `open_upload` would go on behind. Raises Unavailable."""
        del digest, upload
        return 0

    def open_executable_paths(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[Mapping[Digest, Path]]:
        """As `open_paths`, of files with execute permission."""
        return _no_paths(digests)

    def scrub(self) -> AbstractAsyncContextManager[AsyncIterator[ScrubFinding]]:
        """Hash every blob once more, and drop those that are damaged.

        A finding for each blob as it is done with, in no order; blobs that come and go meanwhile
        may be told or not. Nothing counts as used by it. Work goes on as far as findings are
        asked for, and leaving the context ends it. Iterating raises Unavailable. Raises
        Unsupported by default: a store that stands on others leaves it to them.
        """
        raise Unsupported("this kind of blob store cannot be scrubbed")

    def open_paths(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[Mapping[Digest, Path]]:
        """Files of this machine that hold blobs, pinned while the context is open.

        Blobs that are absent, or have no file here, are left out. The files must only be read,
        and hard links may be made to them where processes cannot change them: they have mode
        0444, and were last modified on 2000-01-01, as inputs are (RUN-04). A `BlobPaths` saves
        time where there are many.
        """
        return _no_paths(digests)

    def open_locations(self, digests: Collection[Digest]) -> AbstractAsyncContextManager[Locate]:
        """As `open_paths`, but nobody need have looked. Of other digests nothing may be asked.

        A file may be absent or of another size, or have another time, all the same: whoever uses
        it looks, and asks `open_paths` where something is wrong, which sees to it. For ten
        thousand files, looking takes a third of the time of linking them. By default it is what
        `open_paths` finds.
        """
        return _locations(self, digests)


async def _read_whole(reader: BlobReader, size_bytes: int) -> bytes:
    pieces = []
    while piece := await reader.read(max(size_bytes, 1)):
        pieces.append(piece)
    return b"".join(pieces)


class _UnkeptUpload(BlobUpload):
    def __init__(self, writer: BlobWriter) -> None:
        self._writer = writer

    async def write(self, data: bytes | memoryview) -> None:
        await self._writer.write(data)

    async def read_kept(self, offset: int, max_bytes: int) -> bytes:
        del offset, max_bytes
        return b""

    async def restart(self) -> None:
        pass


@asynccontextmanager
async def _unkept_upload(store: BlobStore, digest: Digest, _: str) -> AsyncIterator[BlobUpload]:
    async with store.open_write(digest) as writer:
        yield _UnkeptUpload(writer)


@asynccontextmanager
async def _locations(store: BlobStore, digests: Collection[Digest]) -> AsyncIterator[Locate]:
    async with store.open_paths(digests) as paths:
        yield locate_in(paths)


@asynccontextmanager
async def _no_paths(_: Collection[Digest]) -> AsyncIterator[Mapping[Digest, Path]]:
    yield {}
