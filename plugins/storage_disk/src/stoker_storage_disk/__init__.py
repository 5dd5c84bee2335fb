"""Blobs and action results in folders of a local disk: the kinds ``disk`` of stoker.

README.md describes the settings, the layout on the disk and what survives which mishap.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec

from stoker import spi
from stoker_storage_disk.action_cache import DiskActionCache
from stoker_storage_disk.blob_store import DiskBlobStore
from stoker_storage_disk.partials import Partials
from stoker_storage_disk.room import Bounds
from stoker_storage_disk.upkeep import Content, open_bounded_folder

__all__ = [
    "DiskActionCache",
    "DiskActionCacheSettings",
    "DiskBlobStore",
    "DiskSettings",
    "stoker_action_caches",
    "stoker_blob_stores",
]

_Bytes = Annotated[int, msgspec.Meta(ge=0)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]
_Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class _FolderSettings(spi.Settings, frozen=True):
    path: str
    """The folder to use, and to create if need be. Each table needs one of its own."""
    fsync: bool = False
    """Whether a write is answered only once it would survive a loss of power."""
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """What the files, uploads in flight included, may take on the disk; no bound if not set."""
    high_water: _Share = 0.95
    """The share of `max_bytes` above which the longest unused is evicted in the background."""
    low_water: _Share = 0.9
    """The share of `max_bytes` at which that ends."""


class DiskActionCacheSettings(_FolderSettings, frozen=True):
    """Settings of the action cache kind ``disk``."""


class DiskSettings(_FolderSettings, frozen=True):
    """Settings of the blob store kind ``disk``."""

    min_life_seconds: _Seconds = 3600.0
    """How long a blob is safe from eviction after it was written, read or found present."""
    verify_reads: bool = False
    """Whether blobs that are read whole are hashed on the way out."""
    partial_life_seconds: _Seconds = 86400.0
    """How long an upload that was broken off may be continued."""
    partial_max_bytes: _Bytes | None = None
    """What uploads that were broken off may take; a tenth of `max_bytes` if not set."""


@asynccontextmanager
async def open_disk_blob_store(
    settings: DiskSettings, context: spi.Context
) -> AsyncIterator[spi.BlobStore]:
    """Open the blob store in the folder `settings.path`, creating it if need be.

    Raises ConfigurationError when another server uses the folder, or it cannot be used at all.
    """
    bounds = _bounds(settings, settings.min_life_seconds)
    async with open_bounded_folder(
        context.path(settings.path),
        fsync=settings.fsync,
        bounds=bounds,
        content=Content(size_is_in_name=True),
    ) as upkeep:
        kept_bytes = settings.partial_max_bytes
        partials = Partials(
            upkeep.files,
            settings.partial_life_seconds,
            bounds.share(0.1) if kept_bytes is None else kept_bytes,
        )
        await upkeep.threads.write(partials.load)
        upkeep.files.reclaim = partials.reclaim
        upkeep.chores.append(partials.sweep)
        yield DiskBlobStore(upkeep, partials, verify_reads=settings.verify_reads)


@asynccontextmanager
async def open_disk_action_cache(
    settings: DiskActionCacheSettings, context: spi.Context
) -> AsyncIterator[spi.ActionCache]:
    """Open the action cache in the folder `settings.path`. As `open_disk_blob_store`."""
    async with open_bounded_folder(
        context.path(settings.path),
        fsync=settings.fsync,
        bounds=_bounds(settings, min_life_seconds=0),
        content=Content(size_is_in_name=False),
    ) as upkeep:
        yield DiskActionCache(upkeep)


def _bounds(settings: _FolderSettings, min_life_seconds: float) -> Bounds:
    if settings.low_water > settings.high_water:
        raise spi.ConfigurationError(
            [f"low_water = {settings.low_water} is above high_water = {settings.high_water}"]
        )
    return Bounds(
        max_bytes=settings.max_bytes,
        min_life_seconds=min_life_seconds,
        high_water=settings.high_water,
        low_water=settings.low_water,
    )


@spi.hookimpl
def stoker_blob_stores() -> Mapping[str, spi.Provider[spi.BlobStore]]:
    """Offer the blob store kind ``disk``."""
    return {"disk": spi.Provider(DiskSettings, open_disk_blob_store, "blobs in a local folder")}


@spi.hookimpl
def stoker_action_caches() -> Mapping[str, spi.Provider[spi.ActionCache]]:
    """Offer the action cache kind ``disk``."""
    return {
        "disk": spi.Provider(
            DiskActionCacheSettings, open_disk_action_cache, "action results in a local folder"
        )
    }
