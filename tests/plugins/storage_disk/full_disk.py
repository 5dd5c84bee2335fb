"""Fill the small file system at the path given, and see what the stores there do. A program."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from stoker import spi
from stoker.spi import SHA256, ActionKey, ActionResult, StorageFull
from stoker.testing.blob_store_laws import assert_absent, blob, read, write
from stoker_storage_disk import (
    DiskActionCacheSettings,
    DiskSettings,
    stoker_action_caches,
    stoker_blob_stores,
)

CONTEXT = spi.Context("mine", Path(sys.argv[1]), {})


async def main() -> None:
    blobs = stoker_blob_stores()["disk"].open(DiskSettings(path="blobs"), CONTEXT)
    results = stoker_action_caches()["disk"].open(DiskActionCacheSettings(path="results"), CONTEXT)
    async with blobs as store, results as cache:
        first, data = blob("fits", 700_000)
        large, too_much = blob("does not fit", 800_000)
        await write(store, first, data)
        with pytest.raises(StorageFull, match="incoming"):
            await write(store, large, too_much)
        await assert_absent(store, large)
        small, little = blob("small", 1_000)
        failures = await store.write_many({large: too_much, small: little})
        assert [*failures] == [large]
        assert isinstance(failures[large], StorageFull)
        # The space that failed uploads took has been given back.
        assert list((Path(sys.argv[1]) / "blobs" / "incoming").iterdir()) == []
        assert await read(store, first) == data
        assert await read(store, small) == little

        key = ActionKey("", SHA256.digest(b"action"))
        await cache.update(key, ActionResult(stdout_raw=b"old"))
        with pytest.raises(StorageFull):
            await cache.update(key, ActionResult(stdout_raw=bytes(800_000)))
        assert await cache.get(key) == ActionResult(stdout_raw=b"old")
    print("all is well")


trio.run(main)
