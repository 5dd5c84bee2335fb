"""Blobs and action results in folders of a local disk: the kinds ``disk`` of stoker.

README.md describes the settings, the layout on the disk and what survives which mishap.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from stoker import spi
from stoker_storage_disk.action_cache import DiskActionCache
from stoker_storage_disk.blob_store import DiskBlobStore
from stoker_storage_disk.folder import open_folder

__all__ = [
    "DiskActionCache",
    "DiskBlobStore",
    "DiskSettings",
    "stoker_action_caches",
    "stoker_blob_stores",
]


class DiskSettings(spi.Settings, frozen=True):
    """Settings of the kind ``disk``, for blob stores and for action caches."""

    path: str
    """The folder to use, and to create if need be. Each table needs one of its own."""
    fsync: bool = False
    """Whether a write is answered only once it would survive a loss of power."""


@asynccontextmanager
async def open_disk_blob_store(
    settings: DiskSettings, context: spi.Context
) -> AsyncIterator[spi.BlobStore]:
    """Open the blob store in the folder `settings.path`, creating it if need be.

    Raises ConfigurationError when another server uses the folder, or it cannot be used at all.
    """
    async with open_folder(context.path(settings.path), fsync=settings.fsync) as folder:
        yield DiskBlobStore(folder)


@asynccontextmanager
async def open_disk_action_cache(
    settings: DiskSettings, context: spi.Context
) -> AsyncIterator[spi.ActionCache]:
    """Open the action cache in the folder `settings.path`. As `open_disk_blob_store`."""
    async with open_folder(context.path(settings.path), fsync=settings.fsync) as folder:
        yield DiskActionCache(folder)


@spi.hookimpl
def stoker_blob_stores() -> Mapping[str, spi.Provider[spi.BlobStore]]:
    """Offer the blob store kind ``disk``."""
    return {"disk": spi.Provider(DiskSettings, open_disk_blob_store, "blobs in a local folder")}


@spi.hookimpl
def stoker_action_caches() -> Mapping[str, spi.Provider[spi.ActionCache]]:
    """Offer the action cache kind ``disk``."""
    return {
        "disk": spi.Provider(
            DiskSettings, open_disk_action_cache, "action results in a local folder"
        )
    }
