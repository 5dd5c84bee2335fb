"""Two blob stores as one: a near one that is quick, and a far one that is shared or large."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
    suppress,
)
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import structlog
import trio

from stoker import spi
from stoker.digest import Digest
from stoker.errors import (
    BlobNotFound,
    ConfigurationError,
    DataLoss,
    StokerError,
    Unavailable,
)
from stoker.spi import BlobReader, BlobStore, BlobUpload, BlobWriter
from stoker.storage.fills import PIECE_BYTES, Fills
from stoker.storage.write_back import Journal, WriteBack

log = structlog.get_logger(__name__)

_PositiveInt = Annotated[int, msgspec.Meta(ge=1)]


class TieredBlobStoreSettings(spi.Settings, frozen=True):
    """Settings of the blob store kind ``tiered``."""

    near: spi.BlobStoreName
    """Asked first, and filled with what is read."""
    far: spi.BlobStoreName
    """Asked for what the near one does not hold."""
    writes: Literal["through", "back", "near-only"] = "through"
    """through: a write has succeeded when both hold the blob, the far one first. back: when the
    near one holds it; it is uploaded afterwards. near-only: the far one is never written to."""
    max_pending: _PositiveInt = 1000
    """With back: how many blobs may wait for their upload. Each is held open in the near store,
    with a file descriptor where that is a disk. Beyond, writes wait."""
    max_uploads: _PositiveInt = 8
    """With back: how many of them are uploaded at once."""
    journal: str | None = None
    """With back: a file that remembers what waits. Without one, the blobs that wait when the
    process is killed stay in the near store alone, until somebody writes them again."""
    drain_seconds: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """With back: how long uploads may go on when the server stops."""


class TieredBlobStore(BlobStore):
    """`near` in front of `far`. Calls may overlap freely.

    - `find_missing` asks `near`, then `far` for the rest, in one batch.
    - A read that `near` cannot serve copies the whole blob from `far` first, once for all who
      wait, and then reads from `near`. Where that has no room, the blob is served from `far`
      without being kept.
    - A failing `far` is never an absent blob: its error is raised as it is.
    - Files (`open_paths`) and the kept bytes of uploads that were broken off are those of `near`.
    - It is not scrubbed itself: both its stores are.

    `queue` is where writes go on to `far` afterwards; without one they go through at once, or,
    where not `writes_far`, never.
    """

    def __init__(
        self,
        near: BlobStore,
        far: BlobStore,
        fills: Fills,
        *,
        queue: WriteBack | None = None,
        writes_far: bool = True,
    ) -> None:
        self._near = near
        self._far = far
        self._fills = fills
        self._queue = queue
        self._through = writes_far and queue is None

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        missing = await self._near.find_missing(digests)
        return await self._far.find_missing(missing) if missing else missing

    # --- reading

    @asynccontextmanager
    async def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[BlobReader]:
        async with AsyncExitStack() as stack:
            yield await self._open_reader(stack, digest, offset, limit)

    async def _open_reader(
        self, stack: AsyncExitStack, digest: Digest, offset: int, limit: int | None
    ) -> BlobReader:
        trouble: StokerError | None = None
        try:
            return await stack.enter_async_context(self._near.open_read(digest, offset, limit))
        except BlobNotFound:
            if await self._fills.copy(digest):
                # It may be evicted again by now: then the far store serves it.
                with suppress(BlobNotFound, DataLoss, Unavailable):
                    return await stack.enter_async_context(
                        self._near.open_read(digest, offset, limit)
                    )
        except (DataLoss, Unavailable) as error:
            trouble = error
        try:
            return await stack.enter_async_context(self._far.open_read(digest, offset, limit))
        except BlobNotFound:
            # Absent there says nothing of the near one, which could not be asked.
            raise trouble or BlobNotFound(digest) from None

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        trouble: StokerError | None = None
        found: dict[Digest, bytes] = {}
        try:
            found = await self._near.read_many(digests)
        except (DataLoss, Unavailable) as error:
            trouble = error
        if absent := _without(digests, found):
            found |= await self._fills.fetch(absent)
        if trouble and _without(absent, found):
            # Absent in the far store says nothing of the near one, which could not be asked.
            raise trouble
        return found

    def open_paths(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[Mapping[Digest, Path]]:
        return self._near.open_paths(digests)

    def open_locations(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[spi.Locate]:
        return self._near.open_locations(digests)

    def open_executable_paths(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[Mapping[Digest, Path]]:
        return self._near.open_executable_paths(digests)

    # --- writing

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        if self._through:
            # The far one is left, and so publishes, first: what the near one holds is then never
            # absent there, and a client whose write has failed is not told that it is present.
            async with self._near.open_write(digest) as near, self._far.open_write(digest) as far:
                yield _Both(near, far)
            return
        await self._wait_room(digest)
        async with self._near.open_write(digest) as near:
            yield near
        await self._upload_later(digest)

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        if self._through:
            failures = await self._far.write_many(blobs)
        else:
            failures = await self._each(blobs, self._wait_room)
        taken = {digest: data for digest, data in blobs.items() if digest not in failures}
        failures |= await self._near.write_many(taken)
        return failures | await self._each(taken.keys() - failures.keys(), self._upload_later)

    async def write_file(self, digest: Digest, path: Path) -> None:
        """The near store may have the file itself; the far one gets a copy, and gets it first."""
        if self._through:
            # Not the far store's own way, which may be to take the file away.
            await BlobStore.write_file(self._far, digest, path)
        await self._wait_room(digest)
        await self._near.write_file(digest, path)
        await self._upload_later(digest)

    @asynccontextmanager
    async def open_upload(self, digest: Digest, upload: str) -> AsyncIterator[BlobUpload]:
        if self._through:
            async with (
                self._near.open_upload(digest, upload) as near,
                self._far.open_write(digest) as far,
            ):
                both = _BothUpload(near, far)
                yield both
                await both.replay()
            return
        await self._wait_room(digest)
        async with self._near.open_upload(digest, upload) as near:
            yield near
        await self._upload_later(digest)

    async def uploaded_bytes(self, digest: Digest, upload: str) -> int:
        return await self._near.uploaded_bytes(digest, upload)

    async def _wait_room(self, digest: Digest) -> None:
        # Before the near one has the blob: a client whose write is refused is to write it again,
        # and would be told that it is present.
        if self._queue is not None:
            await self._queue.wait_room(digest)

    async def _upload_later(self, digest: Digest) -> None:
        if self._queue is not None:
            await self._queue.add(digest)

    async def _each(
        self, digests: Collection[Digest], work: Callable[[Digest], Awaitable[None]]
    ) -> dict[Digest, StokerError]:
        """Do `work` on each; returns those for which it was not available."""
        failures: dict[Digest, StokerError] = {}
        for digest in digests if self._queue is not None else ():
            try:
                await work(digest)
            except Unavailable as error:
                failures[digest] = error
        return failures


class _Both(BlobWriter):
    def __init__(self, near: BlobWriter, far: BlobWriter) -> None:
        self._near = near
        self._far = far

    async def write(self, data: bytes | memoryview) -> None:
        await self._near.write(data)
        await self._far.write(data)


class _BothUpload(BlobUpload):
    """An upload that the near store keeps. The far one gets the kept bytes once more."""

    def __init__(self, near: BlobUpload, far: BlobWriter) -> None:
        self._near = near
        self._far = far
        self._replayed = False
        self.offset = near.offset

    async def read_kept(self, offset: int, max_bytes: int) -> bytes:
        return await self._near.read_kept(offset, max_bytes)

    async def restart(self) -> None:
        await self._near.restart()
        self.offset = 0

    async def write(self, data: bytes | memoryview) -> None:
        await self.replay()
        await self._near.write(data)
        await self._far.write(data)

    async def replay(self) -> None:
        """Give the far store what it has missed. Late, since `restart` may make it void."""
        if self._replayed:
            return
        self._replayed = True
        position = 0
        while position < self.offset:
            piece = await self._near.read_kept(position, min(PIECE_BYTES, self.offset - position))
            if not piece:
                raise Unavailable(f"of {self.offset} bytes that were kept {position} can be read")
            await self._far.write(piece)
            position += len(piece)


@asynccontextmanager
async def open_tiered_blob_store(
    settings: TieredBlobStoreSettings, context: spi.Context
) -> AsyncIterator[BlobStore]:
    """Open the blob store of the kind ``tiered``. Its fills and uploads end with it."""
    if settings.near == settings.far:
        raise ConfigurationError([f"near and far are both {settings.near!r}"])
    near, far = context.blob_store(settings.near), context.blob_store(settings.far)
    # The journal outlives the nursery: an upload may end while the nursery is being cancelled.
    async with _open_journal(settings, context) as journal, trio.open_nursery() as nursery:
        fills = Fills(nursery, near, far)
        if settings.writes == "back":
            async with _open_queue(nursery, near, far, settings, journal) as queue:
                yield TieredBlobStore(near, far, fills, queue=queue)
        else:
            yield TieredBlobStore(near, far, fills, writes_far=settings.writes == "through")
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_journal(
    settings: TieredBlobStoreSettings, context: spi.Context
) -> AsyncIterator[Journal | None]:
    if settings.writes != "back" or not settings.journal:
        yield None
        return
    with closing(Journal(context.path(settings.journal))) as journal:
        yield journal


@asynccontextmanager
async def _open_queue(
    nursery: trio.Nursery,
    near: BlobStore,
    far: BlobStore,
    settings: TieredBlobStoreSettings,
    journal: Journal | None,
) -> AsyncIterator[WriteBack]:
    queue = WriteBack(
        nursery,
        near,
        far,
        max_pending=settings.max_pending,
        max_uploads=settings.max_uploads,
        journal=journal,
    )
    await queue.resume()
    yield queue
    with trio.move_on_after(settings.drain_seconds):
        await queue.wait_empty()
    if queue.pending:
        log.warning("blobs are not uploaded", count=queue.pending, journal=settings.journal)


def _without(digests: Collection[Digest], found: Mapping[Digest, bytes]) -> list[Digest]:
    return [digest for digest in dict.fromkeys(digests) if digest not in found]
