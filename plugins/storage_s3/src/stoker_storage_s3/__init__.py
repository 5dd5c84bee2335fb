"""Blobs and action results in buckets: the kinds ``s3``, ``gcs`` and ``azure`` of stoker.

README.md describes the settings, permissions, life-cycle rules and what happens when
a bucket fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import trio

from stoker import spi
from stoker_storage_s3.action_cache import BucketActionCache, renew_entry
from stoker_storage_s3.blob_store import BucketBlobStore
from stoker_storage_s3.opening import open_bucket
from stoker_storage_s3.settings import (
    AzureBlobSettings,
    AzureSettings,
    BlobSettings,
    BucketSettings,
    GcsBlobSettings,
    GcsSettings,
    S3BlobSettings,
    S3Settings,
)
from stoker_storage_s3.touching import Toucher, renew_blob

__all__ = [
    "AzureBlobSettings",
    "AzureSettings",
    "BucketActionCache",
    "BucketBlobStore",
    "GcsBlobSettings",
    "GcsSettings",
    "S3BlobSettings",
    "S3Settings",
    "stoker_action_caches",
    "stoker_blob_stores",
]


@asynccontextmanager
async def open_bucket_blob_store(
    settings: BlobSettings, context: spi.Context
) -> AsyncIterator[spi.BlobStore]:
    """Open the blob store in the bucket that `settings` name, once that has answered.

    Raises ConfigurationError, naming the bucket, when it does not exist or refuses access, and
    Unavailable when it does not answer.
    """
    bucket = await open_bucket(settings, context)
    toucher = Toucher(bucket, settings.touch_after_days, partial(renew_blob, bucket))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(toucher.run)
        yield BucketBlobStore(bucket, settings, toucher, nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_bucket_action_cache(
    settings: BucketSettings, context: spi.Context
) -> AsyncIterator[spi.ActionCache]:
    """Open the action cache in a bucket. As `open_bucket_blob_store`."""
    bucket = await open_bucket(settings, context)
    toucher = Toucher(bucket, settings.touch_after_days, partial(renew_entry, bucket))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(toucher.run)
        yield BucketActionCache(bucket, toucher)
        nursery.cancel_scope.cancel()


@spi.hookimpl
def stoker_blob_stores() -> Mapping[str, spi.Provider[spi.BlobStore]]:
    """Offer the blob store kinds ``s3``, ``gcs`` and ``azure``."""
    return {
        "s3": spi.Provider(S3BlobSettings, open_bucket_blob_store, "blobs in an S3 bucket"),
        "gcs": spi.Provider(
            GcsBlobSettings, open_bucket_blob_store, "blobs in Google Cloud Storage"
        ),
        "azure": spi.Provider(
            AzureBlobSettings, open_bucket_blob_store, "blobs in Azure Blob Storage"
        ),
    }


@spi.hookimpl
def stoker_action_caches() -> Mapping[str, spi.Provider[spi.ActionCache]]:
    """Offer the action cache kinds ``s3``, ``gcs`` and ``azure``."""
    return {
        "s3": spi.Provider(S3Settings, open_bucket_action_cache, "action results in an S3 bucket"),
        "gcs": spi.Provider(
            GcsSettings, open_bucket_action_cache, "action results in Google Cloud Storage"
        ),
        "azure": spi.Provider(
            AzureSettings, open_bucket_action_cache, "action results in Azure Blob Storage"
        ),
    }
