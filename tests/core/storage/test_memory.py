"""Stores in memory: the laws, and what is theirs alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker import spi
from stoker.errors import StorageFull
from stoker.spi import SHA256, ActionCache, ActionKey, ActionResult, BlobStore
from stoker.storage.memory import (
    MemoryActionCache,
    MemoryBlobStore,
    MemorySettings,
    open_memory_action_cache,
    open_memory_blob_store,
)
from stoker.storage.verifying import VerifyingBlobStore
from stoker.testing.action_cache_laws import ActionCacheLaws
from stoker.testing.blob_store_laws import BlobStoreLaws, assert_absent, blob, read, write

CONTEXT = spi.Context("mine", Path(), {})


class TestMemoryBlobStore(BlobStoreLaws):
    @pytest.fixture
    async def store(self) -> BlobStore:
        return MemoryBlobStore()


class TestVerifiedMemoryBlobStore(BlobStoreLaws):
    @pytest.fixture
    async def store(self) -> BlobStore:
        return VerifyingBlobStore(MemoryBlobStore())


class TestMemoryActionCache(ActionCacheLaws):
    @pytest.fixture
    async def cache(self) -> ActionCache:
        return MemoryActionCache()


async def test_bound_refuses_what_does_not_fit_and_keeps_the_rest() -> None:
    # STO-01
    store = MemoryBlobStore(max_bytes=250)
    first, data = blob("first", 200)
    second, other = blob("second", 51)
    await write(store, first, data)
    with pytest.raises(StorageFull, match="200 of max_bytes = 250"):
        await write(store, second, other)
    await assert_absent(store, second)
    third, small = blob("third", 50)
    # BUB-10
    failures = await store.write_many({second: other, third: small})
    assert [*failures] == [second]
    assert isinstance(failures[second], StorageFull)
    assert await read(store, first) == data
    assert await read(store, third) == small


async def test_uploads_in_flight_count_and_give_back_their_room() -> None:
    # STO-01
    store = MemoryBlobStore(max_bytes=100)
    first, data = blob("first", 60)
    second, other = blob("second", 60)
    async with store.open_write(first) as writer:
        await writer.write(data)
        with pytest.raises(StorageFull):
            await write(store, second, other)
        assert store.used_bytes == 60
    assert store.used_bytes == 60
    assert await read(store, first) == data


async def test_blob_written_twice_takes_its_room_once() -> None:
    store = MemoryBlobStore(max_bytes=100)
    digest, data = blob("once", 50)
    await write(store, digest, data)
    await store.write_many({digest: data})
    await write(store, digest, data)
    assert store.used_bytes == 50


async def test_bound_of_an_action_cache() -> None:
    # ACU-09
    cache = MemoryActionCache(max_bytes=100)
    key = ActionKey("", SHA256.digest(b"a"))
    await cache.update(key, ActionResult(stdout_raw=b"x" * 90))
    with pytest.raises(StorageFull):
        await cache.update(ActionKey("other", key.action), ActionResult(stdout_raw=b"y" * 90))
    await cache.update(key, ActionResult(stdout_raw=b"z" * 95))
    assert await cache.get(key) == ActionResult(stdout_raw=b"z" * 95)


async def test_entries_are_listed_and_removed() -> None:
    cache = MemoryActionCache(max_bytes=100)
    keys = [ActionKey(name, SHA256.digest(b"a")) for name in ("", "one", "two")]
    for key in keys:
        await cache.update(key, ActionResult(stdout_raw=b"x" * 20))
    async with cache.open_entries() as entries:
        assert {key async for key in entries} == {*keys}
    async with cache.open_entries() as entries:
        await anext(entries)
        await cache.remove([*keys[1:], ActionKey("absent", keys[0].action)])
    async with cache.open_entries() as entries:
        assert [key async for key in entries] == keys[:1]
    assert await cache.get(keys[1]) is None
    # The room is given back.
    await cache.update(keys[0], ActionResult(stdout_raw=b"x" * 90))


async def test_opened_by_settings() -> None:
    settings = MemorySettings(max_bytes=10)
    digest, data = blob("too much", 11)
    async with open_memory_blob_store(settings, CONTEXT) as store:
        assert await store.write_many({digest: data}) != {}
    async with open_memory_action_cache(settings, CONTEXT) as cache:
        with pytest.raises(StorageFull):
            await cache.update(ActionKey("", digest), ActionResult(stdout_raw=data))
