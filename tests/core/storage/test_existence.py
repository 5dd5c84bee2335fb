"""What is remembered of a slow store, and for how long (FMB-08)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from stoker import spi
from stoker.errors import BlobNotFound, StorageFull
from stoker.spi import BlobStore, BlobUpload, Digest
from stoker.storage.existence import (
    ExistenceBlobStore,
    ExistenceSettings,
    open_existence_blob_store,
)
from stoker.storage.memory import MemoryBlobStore
from stoker.testing.blob_store_laws import BlobStoreLaws, blob, read, write


class Slow(MemoryBlobStore):
    """Notes what it is asked for, and loses blobs when told to."""

    def __init__(self, max_bytes: int | None = None) -> None:
        super().__init__(max_bytes)
        self.asked: list[Digest] = []

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        self.asked += digests
        return await super().find_missing(digests)

    def lose(self, digest: Digest) -> None:
        del self._blobs[digest]


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def store(slow: Slow) -> BlobStore:
    return ExistenceBlobStore(slow, seconds=60.0, max_digests=100)


class TestExistence(BlobStoreLaws):
    @pytest.fixture
    async def store(self) -> AsyncIterator[BlobStore]:
        context = spi.Context("quick", Path(), {"blob_stores": {"slow": MemoryBlobStore()}})
        async with open_existence_blob_store(ExistenceSettings(of="slow"), context) as store:
            yield store


async def test_present_is_remembered_and_absent_is_not(store: BlobStore, slow: Slow) -> None:
    digest, data = blob("appears", 10)
    for _ in range(2):
        assert await store.find_missing([digest]) == {digest}
    await write(slow, digest, data)
    for _ in range(3):
        assert await store.find_missing([digest, digest]) == set()
    assert slow.asked == [digest] * 3


async def test_a_given_file_is_remembered(store: BlobStore, slow: Slow, tmp_path: Path) -> None:
    digest, data = blob("given", 10)
    (tmp_path / "given").write_bytes(data)
    await store.write_file(digest, tmp_path / "given")
    assert await store.find_missing([digest]) == set()
    assert slow.asked == []


async def test_what_vanishes_counts_as_present_for_its_life_only(
    store: BlobStore, slow: Slow, autojump_clock: trio.testing.MockClock
) -> None:
    # FMB-08
    digest, data = blob("vanishes", 10)
    await write(store, digest, data)
    slow.lose(digest)
    await trio.sleep(59)
    # Being asked for does not make the memory live longer.
    assert await store.find_missing([digest]) == set()
    await trio.sleep(2)
    assert await store.find_missing([digest]) == {digest}


@pytest.mark.parametrize("how", ["open_read", "read_many"])
async def test_reading_in_vain_corrects_the_memory(store: BlobStore, slow: Slow, how: str) -> None:
    # FMB-08
    digest, data = blob("vanishes", 10)
    await store.write_many({digest: data})
    slow.lose(digest)
    if how == "read_many":
        assert await store.read_many([digest]) == {}
    else:
        with pytest.raises(BlobNotFound):
            await read(store, digest)
    assert await store.find_missing([digest]) == {digest}


async def test_every_way_of_writing_is_remembered(store: BlobStore, slow: Slow) -> None:
    written, batched, uploaded = (blob(name, 10) for name in ("written", "batched", "uploaded"))
    await write(store, *written)
    await store.write_many(dict([batched]))
    async with store.open_upload(uploaded[0], "u") as upload:
        await upload.write(uploaded[1])
    assert await store.find_missing([written[0], batched[0], uploaded[0]]) == set()
    assert slow.asked == []


async def test_failed_writes_are_not_remembered() -> None:
    slow = Slow(max_bytes=5)
    store = ExistenceBlobStore(slow, seconds=60.0, max_digests=100)
    digest, data = blob("too large", 10)
    with pytest.raises(StorageFull):
        await write(store, digest, data)
    assert [*await store.write_many({digest: data})] == [digest]
    assert await store.find_missing([digest]) == {digest}


async def test_memory_is_bounded_and_forgets_the_oldest(slow: Slow) -> None:
    store = ExistenceBlobStore(slow, seconds=60.0, max_digests=10)
    blobs = dict(blob(str(number), 10) for number in range(15))
    for digest, data in blobs.items():
        await write(store, digest, data)
    assert await store.find_missing(blobs) == set()
    assert slow.asked == [*blobs][:5]


class _Housed(MemoryBlobStore):
    """Has files, and keeps uploads, in name at least."""

    @asynccontextmanager
    async def open_paths(self, digests: Collection[Digest]) -> AsyncIterator[dict[Digest, Path]]:
        yield dict.fromkeys(digests, Path("plain"))

    @asynccontextmanager
    async def open_executable_paths(
        self, digests: Collection[Digest]
    ) -> AsyncIterator[dict[Digest, Path]]:
        yield dict.fromkeys(digests, Path("executable"))

    @asynccontextmanager
    async def open_upload(self, digest: Digest, upload: str) -> AsyncIterator[BlobUpload]:
        async with super().open_upload(digest, upload) as writer:
            writer.offset = 7
            yield writer

    async def uploaded_bytes(self, digest: Digest, upload: str) -> int:
        return 7


async def test_files_and_uploads_are_those_of_the_store() -> None:
    digest, data = blob("x", 7)
    store = ExistenceBlobStore(_Housed(), seconds=60.0, max_digests=10)
    async with store.open_paths([digest]) as plain, store.open_executable_paths([digest]) as other:
        assert (plain[digest], other[digest]) == (Path("plain"), Path("executable"))
    assert await store.uploaded_bytes(digest, "u") == 7
    async with store.open_upload(digest, "u") as upload:
        assert upload.offset == 7
        await upload.write(data)
