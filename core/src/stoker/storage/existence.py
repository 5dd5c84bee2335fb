"""A memory of which blobs are present, in front of a store that is slow to ask."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import trio

from stoker import spi
from stoker.digest import Digest
from stoker.errors import BlobNotFound, DataLoss, StokerError
from stoker.spi import BlobReader, BlobStore, BlobUpload, BlobWriter


class ExistenceSettings(spi.Settings, frozen=True):
    """Settings of the blob store kind ``existence``."""

    of: spi.BlobStoreName
    """The store to remember about."""
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """How long a blob counts as present after the store has said so or taken it. It must be
    shorter than the time for which that store promises to keep a blob that it was asked for."""
    max_digests: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
    """How many are remembered, about 300 bytes each; the oldest are forgotten first."""


class ExistenceBlobStore(BlobStore):
    """`inner`, which is not asked again for a while about blobs that it had. Calls may overlap.

    What is absent is never remembered. A blob that vanishes from `inner` behind its back is
    called present for at most `seconds`, or until somebody reads it in vain (FMB-08).
    """

    def __init__(self, inner: BlobStore, *, seconds: float, max_digests: int) -> None:
        self._inner = inner
        self._seconds = seconds
        self._max_digests = max_digests
        # In the order in which they expire, since all live equally long.
        self._expiries: OrderedDict[Digest, float] = OrderedDict()

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        asked = [digest for digest in dict.fromkeys(digests) if not self._is_known(digest)]
        if not asked:
            await trio.lowlevel.checkpoint()
            return set()
        # The life begins before the question: the answer may be old when it comes.
        now = trio.current_time()
        missing = await self._inner.find_missing(asked)
        self._remember((digest for digest in asked if digest not in missing), now)
        return missing

    @asynccontextmanager
    async def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[BlobReader]:
        try:
            async with self._inner.open_read(digest, offset, limit) as reader:
                yield reader
        except (BlobNotFound, DataLoss):
            self._expiries.pop(digest, None)
            raise

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        async with self._inner.open_write(digest) as writer:
            yield writer
        self._remember([digest], trio.current_time())

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        try:
            found = await self._inner.read_many(digests)
        except DataLoss as error:
            self._expiries.pop(error.digest, None)
            raise
        for digest in digests:
            if digest not in found:
                self._expiries.pop(digest, None)
        return found

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        failures = await self._inner.write_many(blobs)
        self._remember((d for d in blobs if d not in failures), trio.current_time())
        return failures

    async def write_file(self, digest: Digest, path: Path) -> None:
        await self._inner.write_file(digest, path)
        self._remember([digest], trio.current_time())

    @asynccontextmanager
    async def open_upload(self, digest: Digest, upload: str) -> AsyncIterator[BlobUpload]:
        async with self._inner.open_upload(digest, upload) as writer:
            yield writer
        self._remember([digest], trio.current_time())

    async def uploaded_bytes(self, digest: Digest, upload: str) -> int:
        return await self._inner.uploaded_bytes(digest, upload)

    def open_paths(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[Mapping[Digest, Path]]:
        return self._inner.open_paths(digests)

    def open_locations(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[spi.Locate]:
        return self._inner.open_locations(digests)

    def open_executable_paths(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[Mapping[Digest, Path]]:
        return self._inner.open_executable_paths(digests)

    def _is_known(self, digest: Digest) -> bool:
        return self._expiries.get(digest, 0.0) > trio.current_time()

    def _remember(self, digests: Iterable[Digest], since: float) -> None:
        for digest in digests:
            self._expiries[digest] = since + self._seconds
            self._expiries.move_to_end(digest)
        while len(self._expiries) > self._max_digests or self._oldest_has_expired():
            self._expiries.popitem(last=False)

    def _oldest_has_expired(self) -> bool:
        oldest = next(iter(self._expiries.values()), None)
        return oldest is not None and oldest <= trio.current_time()


@asynccontextmanager
async def open_existence_blob_store(
    settings: ExistenceSettings, context: spi.Context
) -> AsyncIterator[BlobStore]:
    """Open the blob store of the kind ``existence``."""
    yield ExistenceBlobStore(
        context.blob_store(settings.of),
        seconds=settings.seconds,
        max_digests=settings.max_digests,
    )
