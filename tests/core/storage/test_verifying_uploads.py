"""Uploads that go on, as VerifyingBlobStore and the store in memory keep them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, suppress

import pytest
import trio

from stoker.digest import DIGEST_FUNCTIONS, DigestFunction
from stoker.errors import DigestMismatch, StorageFull, UploadInProgress
from stoker.spi import SHA256, BlobReader, BlobStore, BlobUpload, Digest
from stoker.storage import memory
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.verifying import VerifyingBlobStore
from stoker.testing.blob_store_laws import assert_absent, blob, read, write

LARGE = 3_000_000  # hashed in a thread while it is written


class _Broken(Exception):
    """The connection of a client, say."""


class Unkeeping(MemoryBlobStore):
    """As a store of an older plugin: uploads are what the base class makes of them."""

    def open_upload(  # type: ignore[override] # any context manager will do
        self, digest: Digest, upload: str
    ) -> AbstractAsyncContextManager[BlobUpload]:
        return BlobStore.open_upload(self, digest, upload)

    async def uploaded_bytes(self, digest: Digest, upload: str) -> int:
        return await BlobStore.uploaded_bytes(self, digest, upload)


@pytest.fixture
def inner() -> MemoryBlobStore:
    return MemoryBlobStore()


@pytest.fixture
def store(inner: MemoryBlobStore) -> BlobStore:
    return VerifyingBlobStore(inner)


async def break_off(store: BlobStore, digest: Digest, data: bytes, upload: str = "u") -> None:
    with suppress(_Broken):
        async with store.open_upload(digest, upload) as writer:
            await writer.write(data)
            raise _Broken


async def go_on(
    store: BlobStore, digest: Digest, data: bytes, expected: int, piece_bytes: int = 400_000
) -> None:
    async with store.open_upload(digest, "u") as writer:
        assert writer.offset == expected
        for start in range(expected, len(data), piece_bytes):
            await writer.write(data[start : start + piece_bytes])


@pytest.mark.parametrize("function", DIGEST_FUNCTIONS, ids=str)
@pytest.mark.parametrize("size_bytes", [10, 600_000, LARGE])
async def test_upload_goes_on(
    store: BlobStore, inner: MemoryBlobStore, size_bytes: int, function: DigestFunction
) -> None:
    # BSW-17
    data = blob("goes on", size_bytes)[1]
    digest = function.digest(data)
    await break_off(store, digest, data[: size_bytes // 3])
    assert await store.uploaded_bytes(digest, "u") == size_bytes // 3
    await assert_absent(inner, digest)
    await go_on(store, digest, data, size_bytes // 3)
    assert await read(store, digest) == data
    assert await store.uploaded_bytes(digest, "u") == 0
    assert inner.used_bytes == size_bytes


async def test_upload_that_was_all_there_needs_no_more(store: BlobStore) -> None:
    digest, data = blob("all there", LARGE)
    await break_off(store, digest, data)
    await go_on(store, digest, data, LARGE)
    assert await read(store, digest) == data


async def test_cancellation_keeps_what_was_written(store: BlobStore) -> None:
    digest, data = blob("cancelled", LARGE)
    with trio.CancelScope() as scope:
        async with store.open_upload(digest, "u") as writer:
            await writer.write(data[:1_000_000])
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    await go_on(store, digest, data, 1_000_000)
    assert await read(store, digest) == data


@pytest.mark.parametrize("size_bytes", [10, LARGE])
async def test_wrong_kept_bytes_are_told_and_dropped(
    store: BlobStore, inner: MemoryBlobStore, size_bytes: int
) -> None:
    # BSW-09
    digest, data = blob("wrong at first", size_bytes)
    await break_off(store, digest, bytes(size_bytes // 2))
    with pytest.raises(DigestMismatch):
        await go_on(store, digest, data, size_bytes // 2)
    await assert_absent(inner, digest)
    assert inner.used_bytes == 0
    await go_on(store, digest, data, 0)
    assert await read(store, digest) == data


@pytest.mark.parametrize("size_bytes", [10, LARGE])
async def test_restart_begins_at_nothing(store: BlobStore, size_bytes: int) -> None:
    # BSW-18
    digest, data = blob("again", size_bytes)
    await break_off(store, digest, bytes(size_bytes // 2))
    async with store.open_upload(digest, "u") as writer:
        await writer.restart()
        assert writer.offset == 0
        await writer.write(data)
    assert await read(store, digest) == data


async def test_more_than_was_announced_is_refused(store: BlobStore, inner: MemoryBlobStore) -> None:
    digest, data = blob("too much", 100)
    await break_off(store, digest, data[:60])
    with pytest.raises(DigestMismatch, match="at least 101 bytes"):
        async with store.open_upload(digest, "u") as writer:
            await writer.write(data[60:] + b"!")
    assert inner.used_bytes == 0


async def test_kept_bytes_may_be_read(store: BlobStore) -> None:
    digest, data = blob("looked at", 100)
    await break_off(store, digest, data[:60])
    async with store.open_upload(digest, "u") as writer:
        assert await writer.read_kept(10, 5) == data[10:15]
        assert await writer.read_kept(50, 50) == data[50:60]
        assert await writer.read_kept(60, 5) == b""
        await writer.write(data[60:])


async def test_one_upload_is_for_one_task(store: BlobStore) -> None:
    # BSW-21
    digest, data = blob("contended", 100)
    async with store.open_upload(digest, "u") as writer:
        with pytest.raises(UploadInProgress) as caught:
            await break_off(store, digest, data)
        assert caught.value.digest == digest
        await break_off(store, digest, data[:5], upload="other")
        await writer.write(data)
    assert await read(store, digest) == data
    assert await store.uploaded_bytes(digest, "other") == 5


async def test_empty_blob_by_upload(store: BlobStore, inner: MemoryBlobStore) -> None:
    # BSW-22
    async with store.open_upload(SHA256.empty, "u") as writer:
        await writer.write(b"")
    assert await store.uploaded_bytes(SHA256.empty, "u") == 0
    with pytest.raises(DigestMismatch):
        await break_off(store, SHA256.empty, b"x")
    assert await inner.find_missing([SHA256.empty]) == {SHA256.empty}


async def test_store_without_uploads_of_its_own() -> None:
    store = VerifyingBlobStore(Unkeeping())
    digest, data = blob("plain", LARGE)
    await break_off(store, digest, data[:1_000])
    assert await store.uploaded_bytes(digest, "u") == 0
    await go_on(store, digest, data, 0)
    assert await read(store, digest) == data


class Unreadable(MemoryBlobStore):
    """A store that one can only write to."""

    def open_read(  # type: ignore[override] # any context manager will do
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AbstractAsyncContextManager[BlobReader]:
        raise AssertionError(f"{digest} was read")


@pytest.mark.parametrize("size_bytes", [10, LARGE])
async def test_what_is_written_is_not_read_again(size_bytes: int) -> None:
    # BSW-25
    store = VerifyingBlobStore(Unreadable())
    digest, data = blob("written once", size_bytes)
    await write(store, digest, data)
    other, content = blob("uploaded once", size_bytes)
    await go_on(store, other, content, 0)
    assert await store.find_missing([digest, other]) == set()


# --- what memory keeps


async def test_kept_uploads_make_room_for_what_comes() -> None:
    store = MemoryBlobStore(max_bytes=1_000)
    blobs = [blob(f"kept {number}", 400) for number in range(3)]
    for digest, data in blobs[:2]:
        await break_off(store, digest, data)
    assert store.used_bytes == 800
    digest, data = blobs[2]
    await write(store, digest, data)
    assert [await store.uploaded_bytes(d, "u") for d, _ in blobs[:2]] == [0, 400]
    assert store.used_bytes == 800
    huge, content = blob("huge", 1_001)
    with pytest.raises(StorageFull):
        await write(store, huge, content)
    assert await read(store, digest) == data


async def test_kept_uploads_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    # BSW-24
    monkeypatch.setattr(memory, "MAX_KEPT_UPLOADS", 3)
    store = MemoryBlobStore()
    blobs = [blob(f"one of many {number}", 10) for number in range(5)]
    for digest, data in blobs:
        await break_off(store, digest, data[:7])
    assert [await store.uploaded_bytes(d, "u") for d, _ in blobs] == [0, 0, 7, 7, 7]
    assert store.used_bytes == 21


async def test_upload_that_finds_no_room_is_kept() -> None:
    store = MemoryBlobStore(max_bytes=100)
    digest, data = blob("no room", 200)
    with pytest.raises(StorageFull):
        await go_on(store, digest, data, 0, piece_bytes=90)
    assert await store.uploaded_bytes(digest, "u") == 90
    assert store.used_bytes == 90
