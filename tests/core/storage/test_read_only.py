"""Read-only stores and caches, composed by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker import spi
from stoker.errors import FailedPrecondition
from stoker.spi import SHA256, ActionKey, ActionResult
from stoker.storage.memory import MemoryActionCache, MemoryBlobStore
from stoker.storage.read_only import (
    ReadOnlyActionCacheSettings,
    ReadOnlyBlobStoreSettings,
    open_read_only_action_cache,
    open_read_only_blob_store,
)
from stoker.testing.blob_store_laws import assert_absent, blob, read, write


async def test_blob_store_reads_and_refuses_to_write(tmp_path: Path) -> None:
    inner = MemoryBlobStore()
    held, data = blob("held", 100)
    refused, other = blob("refused", 100)
    await write(inner, held, data)
    context = spi.Context("window", Path(), {"blob_stores": {"house": inner}})
    settings = ReadOnlyBlobStoreSettings(of="house")
    async with open_read_only_blob_store(settings, context) as store:
        assert await store.find_missing([held, refused]) == {refused}
        assert await read(store, held, 10, 20) == data[10:30]
        assert await store.read_many([held, refused]) == {held: data}
        async with store.open_paths([held]) as paths:
            assert paths == {}
        async with store.open_executable_paths([held]) as paths:
            assert paths == {}
        with pytest.raises(FailedPrecondition, match="'window' is read-only"):
            store.open_upload(refused, "an upload")
        with pytest.raises(FailedPrecondition, match="'window' is read-only"):
            await write(store, refused, other)
        (tmp_path / "given").write_bytes(other)
        with pytest.raises(FailedPrecondition, match="'window' is read-only"):
            await store.write_file(refused, tmp_path / "given")
        failures = await store.write_many({refused: other})
        assert isinstance(failures[refused], FailedPrecondition)
    await assert_absent(inner, refused)


async def test_action_cache_reads_and_refuses_to_update() -> None:
    inner = MemoryActionCache()
    key = ActionKey("", SHA256.digest(b"a"))
    await inner.update(key, ActionResult(stdout_raw=b"kept"))
    context = spi.Context("window", Path(), {"action_caches": {"house": inner}})
    settings = ReadOnlyActionCacheSettings(of="house")
    async with open_read_only_action_cache(settings, context) as cache:
        assert await cache.get(key) == ActionResult(stdout_raw=b"kept")
        with pytest.raises(FailedPrecondition, match="'window' is read-only"):
            await cache.update(key, ActionResult(stdout_raw=b"new"))
    assert await inner.get(key) == ActionResult(stdout_raw=b"kept")
