"""What VerifyingBlobStore adds to a store: sizes, hashes and the empty blob."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from stoker.errors import (
    BlobNotFound,
    DataLoss,
    DigestMismatch,
    OffsetOutOfRange,
    StorageFull,
)
from stoker.spi import SHA256, BlobStore, Digest
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.verifying import VerifyingBlobStore
from stoker.testing.blob_store_laws import assert_absent, blob, read, write

LARGE = 600_000  # hashed in a thread


@pytest.fixture
def inner() -> MemoryBlobStore:
    return MemoryBlobStore()


@pytest.fixture
def store(inner: MemoryBlobStore) -> BlobStore:
    return VerifyingBlobStore(inner)


class _Pieces:
    """Written one by one, and counted as the writer accepts them."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.accepted = 0

    async def write_to(
        self, store: BlobStore, digest: Digest, ignoring: type[Exception] = AssertionError
    ) -> None:
        async with store.open_write(digest) as writer:
            for piece in self._pieces:
                with suppress(ignoring):
                    await writer.write(piece)
                    self.accepted += 1


@pytest.mark.parametrize("size_bytes", [10, LARGE])
async def test_wrong_bytes_are_not_published(
    store: BlobStore, inner: MemoryBlobStore, size_bytes: int
) -> None:
    # BSW-09
    digest, _ = blob("announced", size_bytes)
    _, other = blob("sent instead", size_bytes)
    with pytest.raises(DigestMismatch) as caught:
        await write(store, digest, other, piece_bytes=size_bytes)
    assert caught.value.expected == digest
    assert SHA256.digest(other).hash in str(caught.value)
    await assert_absent(inner, digest)
    assert inner.used_bytes == 0


@pytest.mark.parametrize("size_bytes", [10, LARGE])
async def test_too_few_bytes_are_not_published(
    store: BlobStore, inner: MemoryBlobStore, size_bytes: int
) -> None:
    # BSW-09
    digest, data = blob("announced", size_bytes)
    with pytest.raises(DigestMismatch, match=f"{size_bytes - 1} bytes were written"):
        await write(store, digest, data[:-1])
    await assert_absent(inner, digest)


@pytest.mark.parametrize("size_bytes", [10, LARGE])
async def test_one_byte_too_many_is_refused_at_once(
    store: BlobStore, inner: MemoryBlobStore, size_bytes: int
) -> None:
    # BSW-09
    digest, data = blob("announced", size_bytes)
    pieces = _Pieces(data, b"!", b"never asked for")
    with pytest.raises(DigestMismatch):
        await pieces.write_to(store, digest)
    assert pieces.accepted == 1
    await assert_absent(inner, digest)


async def test_ignored_failure_of_the_store_does_not_publish_a_part() -> None:
    inner = MemoryBlobStore(max_bytes=400_000)
    store = VerifyingBlobStore(inner)
    digest, data = blob("does not fit", LARGE)
    pieces = _Pieces(data[:300_000], data[300_000:])
    with pytest.raises(DigestMismatch):
        await pieces.write_to(store, digest, ignoring=StorageFull)
    assert pieces.accepted == 1
    assert inner.used_bytes == 0


async def test_size_is_verified_also_where_the_hash_is_known(
    store: BlobStore, inner: MemoryBlobStore
) -> None:
    # GEN-03
    digest, data = blob("known", 10)
    await write(store, digest, data)
    wrong = SHA256.named(digest.hash, 11)
    with pytest.raises(DigestMismatch):
        await write(store, wrong, data)
    await assert_absent(inner, wrong)


@pytest.mark.parametrize("size_bytes", [10, LARGE])
async def test_batch_stores_the_sound_ones_only(
    store: BlobStore, inner: MemoryBlobStore, size_bytes: int
) -> None:
    # BUB-02
    good, data = blob("good", size_bytes)
    wrong_hash, _ = blob("wrong hash", size_bytes)
    wrong_size = SHA256.named(good.hash, size_bytes + 1)
    failures = await store.write_many(
        {wrong_hash: data, good: data, wrong_size: data, SHA256.empty: b""}
    )
    assert failures.keys() == {wrong_hash, wrong_size}
    assert all(isinstance(error, DigestMismatch) for error in failures.values())
    assert await read(inner, good) == data
    await assert_absent(inner, wrong_hash)
    await assert_absent(inner, wrong_size)


@pytest.mark.parametrize("offset", [-1, 101, 10**12])
async def test_offset_outside_of_the_blob(store: BlobStore, offset: int) -> None:
    # BSR-04: also of an absent blob, as the size is in the name.
    present, data = blob("present", 100)
    absent, _ = blob("absent", 100)
    await write(store, present, data)
    for digest in (present, absent):
        with pytest.raises(OffsetOutOfRange) as caught:
            await read(store, digest, offset)
        assert (caught.value.digest, caught.value.offset) == (digest, offset)
    with pytest.raises(BlobNotFound):
        await read(store, absent, 100)


async def test_empty_blob_is_always_there(store: BlobStore, inner: MemoryBlobStore) -> None:
    # FMB-02, BSR-09, BRB-05
    empty = SHA256.empty
    other, _ = blob("absent", 3)
    assert await store.find_missing([empty]) == set()
    assert await store.find_missing([empty, other, empty]) == {other}
    assert await read(store, empty) == b""
    assert await read(store, empty, 0, 10) == b""
    assert await store.read_many([empty, other]) == {empty: b""}
    assert await inner.find_missing([empty]) == {empty}


async def test_empty_blob_may_be_written_and_is_not_stored(
    store: BlobStore, inner: MemoryBlobStore
) -> None:
    # BSW-22, BUB-05
    empty = SHA256.empty
    await write(store, empty, b"")
    async with store.open_write(empty) as writer:
        await writer.write(b"")
    assert await store.write_many({empty: b""}) == {}
    assert await inner.find_missing([empty]) == {empty}
    with pytest.raises(DigestMismatch):
        await write(store, empty, b"x")
    assert [*await store.write_many({empty: b"x"})] == [empty]


async def test_false_empty_digest_is_not_the_empty_blob(store: BlobStore) -> None:
    # GEN-03
    false = SHA256.named("0" * 64, 0)
    assert await store.find_missing([false]) == {false}
    with pytest.raises(DigestMismatch):
        await write(store, false, b"")
    with pytest.raises(BlobNotFound):
        await read(store, false)


class _Watched(MemoryBlobStore):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Digest] = []

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        self.asked += digests
        return await super().find_missing(digests)


@pytest.mark.parametrize("size_bytes", [10, LARGE])
async def test_error_of_the_store_arrives_as_it_is(size_bytes: int) -> None:
    digest, data = blob("too large", size_bytes)
    store = VerifyingBlobStore(MemoryBlobStore(max_bytes=5))
    with pytest.raises(StorageFull):
        await write(store, digest, data, piece_bytes=size_bytes)


async def test_store_is_asked_once_for_each_digest() -> None:
    # FMB-01
    inner = _Watched()
    first, _ = blob("first", 1)
    second, _ = blob("second", 2)
    missing = await VerifyingBlobStore(inner).find_missing([first, second, first, SHA256.empty])
    assert missing == {first, second}
    assert sorted(inner.asked) == sorted([first, second])


async def test_cancelled_large_write_leaves_nothing(
    store: BlobStore, inner: MemoryBlobStore
) -> None:
    digest, data = blob("cancelled", LARGE)
    with trio.CancelScope() as scope:
        async with store.open_write(digest) as writer:
            scope.cancel()
            await writer.write(data)
    assert scope.cancelled_caught
    assert inner.used_bytes == 0
    await assert_absent(inner, digest)


class Unfaithful(MemoryBlobStore):
    """Holds other bytes than those that were written."""

    def become(self, digest: Digest, data: bytes) -> None:
        self._blobs[digest] = data


@pytest.mark.parametrize("change", [-10, -1, 1, 10])
async def test_blob_that_its_store_cuts_or_prolongs_is_no_blob(change: int) -> None:
    # BSR-19: whatever a store of somebody else's does.
    inner, (digest, data) = Unfaithful(), blob("of another length", 1_000)
    store = VerifyingBlobStore(inner)
    inner.become(digest, (data + bytes(10))[: 1_000 + change])
    with pytest.raises(DataLoss):
        await read(store, digest)
    with pytest.raises(DataLoss):
        await store.read_many([digest])
    assert await read(store, digest, 10, 20) == data[10:30]
    if change < 0:
        with pytest.raises(DataLoss):
            await read(store, digest, 980, 20)


@pytest.mark.parametrize("size_bytes", [0, 9, 11])
async def test_given_file_of_another_size_is_caught(
    store: BlobStore, inner: MemoryBlobStore, tmp_path: Path, size_bytes: int
) -> None:
    digest, _ = blob("given", 10)
    path = tmp_path / "given"
    path.write_bytes(bytes(size_bytes))
    with pytest.raises(DigestMismatch):
        await store.write_file(digest, path)
    await assert_absent(inner, digest)
    assert path.stat().st_size == size_bytes


async def test_given_link_is_no_file(
    store: BlobStore, inner: MemoryBlobStore, tmp_path: Path
) -> None:
    digest, data = blob("behind a link", 10)
    (tmp_path / "real").write_bytes(data)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(DigestMismatch):
        await store.write_file(digest, tmp_path / "link")
    await assert_absent(inner, digest)


async def test_given_empty_file_is_never_passed_on(
    store: BlobStore, inner: MemoryBlobStore, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    await store.write_file(SHA256.empty, tmp_path / "empty")
    assert await inner.find_missing([SHA256.empty]) == {SHA256.empty}
