"""Stores and caches that may be read and not written, composed by name in TOML."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from stoker import spi
from stoker.digest import Digest
from stoker.errors import FailedPrecondition, StokerError
from stoker.spi import ActionKey, ActionResult, BlobReader, BlobUpload, BlobWriter


class ReadOnlyBlobStoreSettings(spi.Settings, frozen=True):
    """Settings of the blob store kind ``read-only``."""

    of: spi.BlobStoreName
    """The store to read from."""


class ReadOnlyActionCacheSettings(spi.Settings, frozen=True):
    """Settings of the action cache kind ``read-only``."""

    of: spi.ActionCacheName
    """The cache to read from."""


class ReadOnlyBlobStore(spi.BlobStore):
    """`inner` without its writing side: every write raises FailedPrecondition.

    `name` is the store's name for that message. Calls may overlap freely.
    """

    def __init__(self, inner: spi.BlobStore, name: str) -> None:
        self._inner = inner
        self._name = name

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._inner.find_missing(digests)

    def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AbstractAsyncContextManager[BlobReader]:
        return self._inner.open_read(digest, offset, limit)

    def open_write(self, digest: Digest) -> AbstractAsyncContextManager[BlobWriter]:
        """Raise FailedPrecondition at once."""
        raise self._refusal(digest)

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        return await self._inner.read_many(digests)

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        """Every blob fails, with FailedPrecondition."""
        await trio.lowlevel.checkpoint()
        return {digest: self._refusal(digest) for digest in blobs}

    async def write_file(self, digest: Digest, path: Path) -> None:  # noqa: ARG002 - refused
        """Raise FailedPrecondition."""
        await trio.lowlevel.checkpoint()
        raise self._refusal(digest)

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

    def open_upload(self, digest: Digest, upload: str) -> AbstractAsyncContextManager[BlobUpload]:
        """Raise FailedPrecondition at once."""
        del upload
        raise self._refusal(digest)

    def _refusal(self, digest: Digest) -> FailedPrecondition:
        return FailedPrecondition(
            f"blob {digest} cannot be written: store {self._name!r} is read-only"
        )


class ReadOnlyActionCache(spi.ActionCache):
    """`inner` without updates, which raise FailedPrecondition. Calls may overlap freely."""

    def __init__(self, inner: spi.ActionCache, name: str) -> None:
        self._inner = inner
        self._name = name

    async def get(self, key: ActionKey) -> ActionResult | None:
        return await self._inner.get(key)

    async def update(self, key: ActionKey, result: ActionResult) -> None:  # noqa: ARG002 - refused
        """Raise FailedPrecondition."""
        await trio.lowlevel.checkpoint()
        raise FailedPrecondition(
            f"the result of action {key.action} cannot be filed: "
            f"action cache {self._name!r} is read-only"
        )


@asynccontextmanager
async def open_read_only_blob_store(
    settings: ReadOnlyBlobStoreSettings, context: spi.Context
) -> AsyncIterator[spi.BlobStore]:
    """Open the blob store of the kind ``read-only``."""
    yield ReadOnlyBlobStore(context.blob_store(settings.of), context.name)


@asynccontextmanager
async def open_read_only_action_cache(
    settings: ReadOnlyActionCacheSettings, context: spi.Context
) -> AsyncIterator[spi.ActionCache]:
    """Open the action cache of the kind ``read-only``."""
    yield ReadOnlyActionCache(context.action_cache(settings.of), context.name)
