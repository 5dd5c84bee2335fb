"""Blobs of several parts: uploaded while they come in, or not at all. S3 takes no part < 5 MiB."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing

from stoker.spi import SHA256, BlobStore, Digest, DigestMismatch
from stoker.storage.verifying import VerifyingBlobStore
from stoker.testing.blob_store_laws import MIB, assert_absent, blob, read, same, write

from .conftest import OpenBlobs
from .proxy import Hold, Proxy, Request
from .seaweed import Seaweed

PART = 5 * MIB


class _Failure(Exception):
    pass


@pytest.fixture
async def store(open_blobs: OpenBlobs, proxy: Proxy, seaweed: Seaweed) -> AsyncIterator[BlobStore]:
    async with open_blobs(part_bytes=PART, endpoint=proxy.endpoint) as store:
        yield store
    assert seaweed.uploads() == []


async def fail_behind(
    store: BlobStore,
    digest: Digest,
    data: bytes,
    before_failing: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
) -> None:
    async with store.open_write(digest) as writer:
        await writer.write(data)
        await before_failing()
        raise _Failure


def parts(requests: list[Request]) -> list[Request]:
    return [r for r in requests if r.method == "PUT" and "partNumber=" in r.path]


@pytest.mark.parametrize("size_bytes", [PART, PART + 1, 2 * PART, 3 * PART + 7])
@pytest.mark.parametrize("piece_bytes", [MIB + 1, 20 * MIB])
async def test_what_is_written_is_read(
    store: BlobStore, proxy: Proxy, size_bytes: int, piece_bytes: int
) -> None:
    # STO-05, BSW-05
    digest, data = blob("large", size_bytes)
    await write(store, digest, data, piece_bytes)
    assert await store.find_missing([digest]) == set()
    assert same(await read(store, digest), data)
    assert same(await read(store, digest, PART - 1, 3), data[PART - 1 : PART + 2])
    assert same(await read(store, digest, size_bytes - 1), data[-1:])
    assert len(parts(proxy.requests)) == (-(-size_bytes // PART) if size_bytes > PART else 0)


async def test_parts_leave_before_the_blob_is_whole(store: BlobStore, proxy: Proxy) -> None:
    # Bounded memory: what is full goes, and the writer waits for it.
    digest, data = blob("in flight", 8 * PART)
    async with store.open_write(digest) as writer:
        for start in range(0, 7 * PART, MIB):
            await writer.write(data[start : start + MIB])
        # Seven parts are full. One is sent at once, and one waits in the thread that sends it.
        assert len(parts(proxy.requests)) >= 5
        await assert_absent(store, digest)
        await writer.write(data[7 * PART :])
    assert same(await read(store, digest), data)


@pytest.mark.parametrize("written", [1, PART, 2 * PART + 1, 3 * PART - 1, 3 * PART])
async def test_exception_leaves_neither_object_nor_parts(
    store: BlobStore, seaweed: Seaweed, written: int
) -> None:
    # STO-05
    digest, data = blob("fails", 3 * PART)
    with pytest.raises(_Failure):
        await fail_behind(store, digest, data[:written])
    assert seaweed.uploads() == []
    await assert_absent(store, digest)
    await write(store, digest, data)
    assert same(await read(store, digest), data)


async def test_upload_is_aborted_behind_its_last_part(
    store: BlobStore, proxy: Proxy, seaweed: Seaweed
) -> None:
    # STO-05: a part that arrives behind the request to abort would stay, and be paid for.
    digest, data = blob("slow part", 2 * PART)
    held = Hold(trio.Event())
    proxy.choose = lambda request: held if "partNumber=" in request.path else None

    async def fail() -> None:
        with pytest.raises(_Failure):
            await fail_behind(store, digest, data[:PART], proxy.begun.wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await proxy.begun.wait()
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert proxy.count("DELETE") == 0
        held.released.set()
    assert proxy.count("DELETE") == 1
    assert seaweed.uploads() == []


async def test_wrong_bytes_leave_neither_object_nor_parts(
    store: BlobStore, seaweed: Seaweed
) -> None:
    digest, data = blob("announced", 3 * PART)
    verifying = VerifyingBlobStore(store)
    with pytest.raises(DigestMismatch):
        await write(verifying, digest, data[:-1] + b"?")
    with pytest.raises(DigestMismatch):
        await write(verifying, digest, data[:-1])
    assert seaweed.uploads() == []
    await assert_absent(store, digest)


async def test_cancellation_leaves_neither_object_nor_parts(
    store: BlobStore, seaweed: Seaweed
) -> None:
    # GEN-26
    digest, data = blob("cancelled", 4 * PART)
    with trio.CancelScope() as scope:
        async with store.open_write(digest) as writer:
            await writer.write(data[: 3 * PART])
            scope.cancel()
            await writer.write(data[3 * PART :])
    assert scope.cancelled_caught
    assert seaweed.uploads() == []
    await assert_absent(store, digest)


async def test_writers_of_one_blob_upload_it_once(store: BlobStore, proxy: Proxy) -> None:
    # STO-05, BSW-21
    digest, data = blob("contended", 3 * PART)
    async with trio.open_nursery() as nursery:
        for piece_bytes in (MIB, 2 * MIB, 3 * MIB, PART, 20 * MIB):
            nursery.start_soon(write, store, digest, data, piece_bytes)
    assert len(parts(proxy.requests)) == 3
    assert same(await read(store, digest), data)


async def test_those_who_wait_go_on_when_the_first_writer_fails(
    store: BlobStore, proxy: Proxy
) -> None:
    digest, data = blob("abandoned", 2 * PART)
    async with trio.open_nursery() as nursery:

        async def let_others_begin() -> None:
            for _ in range(4):
                nursery.start_soon(write, store, digest, data)
            await trio.testing.wait_all_tasks_blocked(0.1)

        with pytest.raises(_Failure):
            await fail_behind(store, digest, data[:PART], let_others_begin)
    assert same(await read(store, digest), data)
    assert len(parts(proxy.requests)) <= 1 + 2


async def test_a_writer_that_stalls_holds_nobody_up_for_long(
    open_blobs: OpenBlobs, seaweed: Seaweed
) -> None:
    digest, data = blob("stalled", 2 * PART)
    async with open_blobs(part_bytes=PART, shared_upload_seconds=0.1) as store:

        async def write_too() -> None:
            await write(store, digest, data)
            assert same(await read(store, digest), data)

        with pytest.raises(_Failure), trio.fail_after(20):
            await fail_behind(store, digest, data[:PART], write_too)
        assert same(await read(store, digest), data), "an aborted upload takes nothing away"
    assert seaweed.uploads() == []


async def test_large_blob_that_is_there_is_not_uploaded(store: BlobStore, proxy: Proxy) -> None:
    # STO-05
    digest, data = blob("twice", 2 * PART)
    await write(store, digest, data)
    before = len(proxy.requests)
    await write(store, digest, data)
    assert len(proxy.requests) == before


async def test_reads_of_many_windows(store: BlobStore, proxy: Proxy) -> None:
    # BSR-04
    digest, data = blob("windows", 30 * MIB)
    await write(store, digest, data)
    for offset, limit in ((0, None), (MIB - 1, 2 * MIB), (9 * MIB - 1, 2), (29 * MIB, None)):
        end = len(data) if limit is None else offset + limit
        assert same(await read(store, digest, offset, limit), data[offset:end])


async def test_cancelled_reads_lose_nothing(store: BlobStore) -> None:
    digest, data = blob("read in spite", 20 * MIB)
    await write(store, digest, data)
    pieces = []
    async with store.open_read(digest) as reader:
        while True:
            with trio.move_on_after(0.001):
                pieces.append(await reader.read(MIB))
                if not pieces[-1]:
                    break
    assert same(b"".join(pieces), data)


async def test_reader_that_leaves_early(store: BlobStore) -> None:
    digest, data = blob("left", 20 * MIB)
    await write(store, digest, data)
    async with store.open_read(digest) as reader:
        for _ in range(3):
            assert await reader.read(MIB)
    assert same(await read(store, digest), data)


async def test_parts_grow_with_the_blob() -> None:
    from stoker_storage_s3.writing import fitting_part_bytes  # noqa: PLC0415

    assert fitting_part_bytes(8 * MIB, 9_999 * 8 * MIB) == 8 * MIB
    terabyte = 10**12
    assert -(-terabyte // fitting_part_bytes(8 * MIB, terabyte)) <= 10_000
    assert SHA256.named("0" * 64, terabyte).size_bytes == terabyte
