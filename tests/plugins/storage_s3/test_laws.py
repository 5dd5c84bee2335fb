"""The bucket store and cache keep the laws on a real S3 server, bare and as a server uses them.

The laws' blobs fit into one put; test_large_blobs.py has those that do not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stoker.spi import ActionCache, BlobStore
from stoker.storage.verifying import VerifyingBlobStore
from stoker.testing.action_cache_laws import ActionCacheLaws
from stoker.testing.blob_store_laws import BlobStoreLaws

from .conftest import OpenBlobs, OpenResults


class TestBucketBlobStore(BlobStoreLaws):
    @pytest.fixture
    async def store(self, open_blobs: OpenBlobs) -> AsyncIterator[BlobStore]:
        async with open_blobs() as store:
            yield store


@pytest.mark.slow
class TestBucketBlobStoreThatRemembersNothing(BlobStoreLaws):
    @pytest.fixture
    async def store(self, open_blobs: OpenBlobs) -> AsyncIterator[BlobStore]:
        async with open_blobs(presence_seconds=0, max_connections=8) as store:
            yield store


@pytest.mark.slow
class TestVerifiedBucketBlobStore(BlobStoreLaws):
    @pytest.fixture
    async def store(self, open_blobs: OpenBlobs) -> AsyncIterator[BlobStore]:
        async with open_blobs() as store:
            yield VerifyingBlobStore(store)


class TestBucketActionCache(ActionCacheLaws):
    @pytest.fixture
    async def cache(self, open_results: OpenResults) -> AsyncIterator[ActionCache]:
        async with open_results() as cache:
            yield cache
