"""Objects in use stay young, so that a life-cycle rule takes only the others: STO-06."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import obstore
import pytest
import trio
import trio.testing

from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import SHA256, ActionKey, BlobStore, Unavailable
from stoker.testing.blob_store_laws import MIB, blob, read, write
from stoker_storage_s3.bucket import Bucket
from stoker_storage_s3.touching import renew_blob

from .conftest import OpenBlobs, OpenResults
from .proxy import Answer, Proxy
from .seaweed import Seaweed

# Hardly more than a second, which is as finely as S3 tells the time.
SOON = 1.5 / 86_400


async def wait_until_old(seaweed: Seaweed, prefix: str, key: str) -> datetime:
    """Wait until the clock says that an object is older than `SOON`; when it was written."""
    modified = obstore.head(seaweed.client(prefix), key)["last_modified"]
    while (datetime.now(modified.tzinfo) - modified).total_seconds() <= SOON * 86_400:
        await trio.sleep(0.1)
    return modified


async def wait_until_renewed(seaweed: Seaweed, prefix: str, key: str, old: datetime) -> None:
    with trio.fail_after(20):
        while obstore.head(seaweed.client(prefix), key)["last_modified"] <= old:
            await trio.sleep(0.05)
        while any(name.startswith("touch/") for name in seaweed.keys(prefix)):
            await trio.sleep(0.05)


async def find(store: BlobStore, name: str, size_bytes: int) -> None:
    digest, _ = blob(name, size_bytes)
    assert await store.find_missing([digest]) == set()


async def open_and_read(store: BlobStore, name: str, size_bytes: int) -> None:
    digest, data = blob(name, size_bytes)
    assert await read(store, digest) == data


@pytest.mark.parametrize("size_bytes", [100, 11 * MIB])
@pytest.mark.parametrize("use", [find, open_and_read])
async def test_old_blob_in_use_is_renewed_once(
    open_blobs: OpenBlobs,
    proxy: Proxy,
    seaweed: Seaweed,
    prefix: str,
    size_bytes: int,
    use: Callable[[BlobStore, str, int], Awaitable[None]],
) -> None:
    # STO-06
    digest, data = blob("in use", size_bytes)
    key = f"cas/sha256/{digest.hash[:2]}/{digest.hash}-{size_bytes}"
    changes = {"touch_after_days": SOON, "presence_seconds": 0, "endpoint": proxy.endpoint}
    async with open_blobs(**changes) as store:
        await write(store, digest, data)
        await use(store, "in use", size_bytes)
        old = await wait_until_old(seaweed, prefix, key)
        assert not any(request.is_copy for request in proxy.requests), "it was young"
        for _ in range(5):
            await use(store, "in use", size_bytes)
        await wait_until_renewed(seaweed, prefix, key, old)
        assert sum(request.is_copy for request in proxy.requests) == 2
        assert await read(store, digest) == data


async def test_nothing_is_renewed_unless_wanted(
    open_blobs: OpenBlobs, proxy: Proxy, seaweed: Seaweed, prefix: str
) -> None:
    digest, data = blob("left alone", 100)
    async with open_blobs(touch_after_days=0, presence_seconds=0, endpoint=proxy.endpoint) as store:
        await write(store, digest, data)
        key = f"cas/sha256/{digest.hash[:2]}/{digest.hash}-100"
        await wait_until_old(seaweed, prefix, key)
        await find(store, "left alone", 100)
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert not any(request.is_copy for request in proxy.requests)


async def test_blob_too_large_to_be_copied(seaweed: Seaweed, prefix: str) -> None:
    client = seaweed.client(prefix)
    bucket = Bucket("s3://test", client, client, max_connections=4)
    _, data = blob("too large", 100_000)
    obstore.put(client, "large", data, use_multipart=False)
    old = await wait_until_old(seaweed, prefix, "large")
    found = await bucket.head("large")
    assert found is not None
    await renew_blob(bucket, "large", found, copy_limit_bytes=99_999)
    assert obstore.head(client, "large")["last_modified"] > old
    assert bytes(obstore.get(client, "large").bytes()) == data
    assert seaweed.keys(prefix) == ["large"]
    vanished = found._replace(size_bytes=100_001)
    with pytest.raises(Unavailable, match="changed"):
        await renew_blob(bucket, "large", vanished, copy_limit_bytes=99_999)
    assert bytes(obstore.get(client, "large").bytes()) == data


async def test_failed_renewal_harms_nobody(
    open_blobs: OpenBlobs, proxy: Proxy, seaweed: Seaweed, prefix: str
) -> None:
    digest, data = blob("not renewed", 100)
    changes = {"touch_after_days": SOON, "presence_seconds": 0, "endpoint": proxy.endpoint}
    async with open_blobs(**changes) as store:
        await write(store, digest, data)
        key = f"cas/sha256/{digest.hash[:2]}/{digest.hash}-100"
        old = await wait_until_old(seaweed, prefix, key)
        denied = Answer("403 Forbidden", "AccessDenied")
        proxy.choose = lambda request: denied if request.is_copy else None
        await find(store, "not renewed", 100)
        await proxy.begun.wait()
        assert await read(store, digest) == data
        proxy.choose = lambda request: None
        with trio.fail_after(20):
            # The first one may still be on its way out.
            while obstore.head(seaweed.client(prefix), key)["last_modified"] <= old:
                await find(store, "not renewed", 100)


async def test_old_action_result_in_use_is_renewed(
    open_results: OpenResults, seaweed: Seaweed, prefix: str
) -> None:
    # STO-06
    key = ActionKey("main", SHA256.digest(b"an action"))
    result = reapi.ActionResult(stdout_raw=b"kept")
    async with open_results(touch_after_days=SOON) as cache:
        await cache.update(key, result)
        [name] = seaweed.keys(prefix)
        old = await wait_until_old(seaweed, prefix, name)
        assert await cache.get(key) == result
        await wait_until_renewed(seaweed, prefix, name, old)
        assert await cache.get(key) == result


async def test_old_action_result_that_is_looked_at_is_not_renewed(
    open_results: OpenResults, seaweed: Seaweed, prefix: str
) -> None:
    # STO-06: else listing a cache would make all of it young.
    key = ActionKey("main", SHA256.digest(b"action"))
    async with open_results(touch_after_days=SOON) as cache:
        await cache.update(key, reapi.ActionResult(exit_code=3))
        [path] = seaweed.keys(prefix)
        old = await wait_until_old(seaweed, prefix, path)
        assert await cache.peek(key) == reapi.ActionResult(exit_code=3)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert obstore.head(seaweed.client(prefix), path)["last_modified"] == old
