"""How many requests it takes: STO-05 and FMB-10, counted before a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from stoker.spi import BlobStore, Digest
from stoker.testing.blob_store_laws import blob, read, write
from stoker_storage_s3.digest_index import DigestIndex

from .conftest import OpenBlobs
from .proxy import Hold, Proxy, Request


@pytest.fixture
async def store(open_blobs: OpenBlobs, proxy: Proxy) -> AsyncIterator[BlobStore]:
    async with open_blobs(endpoint=proxy.endpoint) as store:
        proxy.requests.clear()
        yield store


async def build(store: BlobStore, blobs: dict[Digest, bytes], number: int) -> None:
    """What a client does: ask, and upload what is missing, small blobs at once or one by one."""
    missing = await store.find_missing(blobs)
    if number % 2:
        assert await store.write_many({digest: blobs[digest] for digest in missing}) == {}
    else:
        for digest in missing:
            await write(store, digest, blobs[digest])


@pytest.mark.parametrize("count", [50, pytest.param(1_000, marks=pytest.mark.slow)])
async def test_sixty_clients_upload_the_same_blobs_once(
    store: BlobStore, proxy: Proxy, count: int
) -> None:
    # STO-05
    blobs = dict(blob(f"shared {number}", 2_000) for number in range(count))
    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(build, store, blobs, number)
    assert proxy.count("PUT") == count
    assert proxy.count("POST") == 0
    assert await store.read_many(blobs) == blobs


async def test_clients_that_do_not_ask_upload_nothing_twice(store: BlobStore, proxy: Proxy) -> None:
    # STO-05
    blobs = dict(blob(f"unasked {number}", 2_000) for number in range(20))
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(store.write_many, blobs)
    assert proxy.count("PUT") == len(blobs)


async def test_other_servers_uploads_are_seen(
    open_blobs: OpenBlobs, store: BlobStore, proxy: Proxy
) -> None:
    # STO-05: a blob that is there is not uploaded by a server that has never heard of it.
    blobs = dict(blob(f"of another {number}", 2_000) for number in range(20))
    async with open_blobs() as other:
        assert await other.write_many(blobs) == {}
    assert await store.write_many(blobs) == {}
    for digest, data in blobs.items():
        await write(store, digest, data)
    assert proxy.count("PUT") == 0


async def test_servers_that_upload_at_the_same_moment(
    open_blobs: OpenBlobs, store: BlobStore
) -> None:
    # The conditional put: the second is told that the first was faster, which is success.
    digest, data = blob("raced", 2_000)
    async with open_blobs() as other:
        assert await store.find_missing([digest]) == {digest}
        await write(other, digest, data)
        await write(store, digest, data)
    assert await read(store, digest) == data


async def test_asking_for_many_is_one_wave(open_blobs: OpenBlobs, proxy: Proxy) -> None:
    # FMB-10: all requests are under way before the first is answered.
    blobs = dict(blob(f"wave {number}", 10) for number in range(30))
    held = Hold(trio.Event())
    async with open_blobs(endpoint=proxy.endpoint, max_connections=30) as store:
        await store.write_many(dict(list(blobs.items())[:15]))
        proxy.requests.clear()

        def hold(request: Request) -> Hold | None:
            if proxy.count("HEAD") == 15:
                held.released.set()
            return held

        proxy.choose = hold
        assert await store.find_missing(blobs) == set(list(blobs)[15:])
    assert proxy.count("HEAD") == 15


async def test_clients_that_ask_the_same_at_once_share_the_answers(
    store: BlobStore, proxy: Proxy
) -> None:
    # FMB-10
    blobs = dict(blob(f"asked by all {number}", 10) for number in range(20))
    held = Hold(trio.Event())
    proxy.choose = lambda request: held
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(store.find_missing, blobs)
        await proxy.begun.wait()
        await trio.testing.wait_all_tasks_blocked(0.1)
        held.released.set()
    assert proxy.count("HEAD") == len(blobs)


async def test_what_was_seen_is_not_asked_again(store: BlobStore, proxy: Proxy) -> None:
    # FMB-10
    blobs = dict(blob(f"seen {number}", 10) for number in range(10))
    await store.write_many(blobs)
    before = len(proxy.requests)
    assert await store.find_missing(blobs) == set()
    await store.write_many(blobs)
    assert len(proxy.requests) == before


async def test_presence_is_believed_for_a_while(open_blobs: OpenBlobs, proxy: Proxy) -> None:
    digest, data = blob("believed", 10)
    async with open_blobs(endpoint=proxy.endpoint, presence_seconds=0) as store:
        await write(store, digest, data)
        heads = proxy.count("HEAD")
        assert await store.find_missing([digest]) == set()
        assert proxy.count("HEAD") == heads + 1


def test_index_is_bounded_in_number_and_life() -> None:
    now = 0.0
    index = DigestIndex(3, 10.0, lambda: now)
    digests = [blob(f"{number}", 1)[0] for number in range(5)]
    for digest in digests:
        index.add(digest)
    assert len(index) == 3
    assert [index.holds(digest) for digest in digests] == [False, False, True, True, True]
    now = 5.0
    index.add(digests[2])
    index.add(digests[0])
    assert [index.holds(digest) for digest in digests] == [True, False, True, False, True]
    now = 10.0
    assert [index.holds(digest) for digest in digests] == [True, False, True, False, False]
    index.discard(digests[2])
    index.discard(digests[2])
    assert not index.holds(digests[2])
    now = 15.0
    assert not index.holds(digests[0])
    assert len(index) == 0
