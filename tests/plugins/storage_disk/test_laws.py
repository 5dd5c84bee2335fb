"""The disk store and the disk action cache keep the laws, bare and as a server uses them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stoker import spi
from stoker.spi import ActionCache, BlobStore
from stoker.storage.verifying import VerifyingBlobStore
from stoker.testing.action_cache_laws import ActionCacheLaws
from stoker.testing.blob_store_laws import BlobStoreLaws
from stoker_storage_disk import (
    DiskSettings,
    stoker_action_caches,
    stoker_blob_stores,
)


def context(folder: Path) -> spi.Context:
    return spi.Context("mine", folder, {})


@pytest.fixture(params=[False, True], ids=["fast", "fsync"])
def settings(request: pytest.FixtureRequest) -> DiskSettings:
    return DiskSettings(path="blobs", fsync=request.param)


class TestDiskBlobStore(BlobStoreLaws):
    @pytest.fixture
    async def store(self, tmp_path: Path, settings: DiskSettings) -> AsyncIterator[BlobStore]:
        provider = stoker_blob_stores()["disk"]
        async with provider.open(settings, context(tmp_path)) as store:
            yield store
        assert list((tmp_path / "blobs" / "incoming").iterdir()) == []


class TestVerifiedDiskBlobStore(BlobStoreLaws):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[BlobStore]:
        provider = stoker_blob_stores()["disk"]
        async with provider.open(DiskSettings(path="blobs"), context(tmp_path)) as store:
            yield VerifyingBlobStore(store)


class TestDiskActionCache(ActionCacheLaws):
    @pytest.fixture
    async def cache(self, tmp_path: Path, settings: DiskSettings) -> AsyncIterator[ActionCache]:
        provider = stoker_action_caches()["disk"]
        async with provider.open(settings, context(tmp_path)) as cache:
            yield cache
        assert list((tmp_path / "blobs" / "incoming").iterdir()) == []
