"""Files that are given to the disk store: moved where that is sound, else copied."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stoker import spi
from stoker.spi import SHA256, BlobStore, DigestMismatch, StorageFull, Unavailable
from stoker.testing.blob_store_laws import assert_absent, blob, read, same
from stoker_storage_disk import DiskSettings, stoker_blob_stores

DIGEST, DATA = blob("given", 1_000_000)


@asynccontextmanager
async def open_store(folder: Path, **settings: Any) -> AsyncIterator[BlobStore]:
    provider = stoker_blob_stores()["disk"]
    context = spi.Context("mine", folder, {})
    async with provider.open(DiskSettings(path="blobs", **settings), context) as store:
        yield store
    assert list((folder / "blobs" / "incoming").iterdir()) == []


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "given"
    path.write_bytes(DATA)
    return path


async def inode_of_blob(store: BlobStore) -> int:
    async with store.open_paths([DIGEST]) as paths:
        return paths[DIGEST].stat().st_ino


@pytest.mark.parametrize("fsync", [False, True])
async def test_a_given_file_is_moved(given: Path, tmp_path: Path, fsync: bool) -> None:
    inode = given.stat().st_ino
    async with open_store(tmp_path, fsync=fsync) as store:
        await store.write_file(DIGEST, given)
        assert await inode_of_blob(store) == inode
        assert not given.exists()
    async with open_store(tmp_path) as store:
        assert same(await read(store, DIGEST), DATA)
        async with store.open_paths([DIGEST]) as paths:
            assert paths[DIGEST].stat().st_mode & 0o7777 == 0o444


async def test_a_file_with_two_names_is_copied(given: Path, tmp_path: Path) -> None:
    os.link(given, tmp_path / "other")
    before = given.stat()
    async with open_store(tmp_path) as store:
        await store.write_file(DIGEST, given)
        assert await inode_of_blob(store) != before.st_ino
    after = given.stat()
    assert (after.st_mode, after.st_ctime_ns) == (before.st_mode, before.st_ctime_ns)


async def test_a_blob_that_is_there_keeps_its_file(given: Path, tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.write_many({DIGEST: DATA})
        inode = await inode_of_blob(store)
        await store.write_file(DIGEST, given)
        assert await inode_of_blob(store) == inode
        assert given.exists()


@pytest.mark.parametrize("size_bytes", [0, 999_999, 1_000_001])
async def test_a_file_of_another_size(given: Path, tmp_path: Path, size_bytes: int) -> None:
    os.truncate(given, size_bytes)
    async with open_store(tmp_path) as store:
        with pytest.raises(DigestMismatch):
            await store.write_file(DIGEST, given)
        await assert_absent(store, DIGEST)
    assert given.stat().st_size == size_bytes


async def test_what_is_no_file_is_refused(given: Path, tmp_path: Path) -> None:
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(given)
    os.mkfifo(fifo)
    async with open_store(tmp_path) as store:
        with pytest.raises(Unavailable):
            await store.write_file(DIGEST, link)
        with pytest.raises(DigestMismatch):
            await store.write_file(DIGEST, fifo)
        await assert_absent(store, DIGEST)


@pytest.mark.parametrize("names", [1, 2])
async def test_moved_and_copied_files_count(tmp_path: Path, names: int) -> None:
    async with open_store(tmp_path, max_bytes=10_000_000, min_life_seconds=3600) as store:
        for number in range(3):
            digest, data = blob(f"given {number}", 3_000_000)
            path = tmp_path / str(number)
            path.write_bytes(data)
            if names == 2:
                os.link(path, tmp_path / f"other {number}")
            await store.write_file(digest, path)
        digest, data = blob("one too many", 3_000_000)
        path = tmp_path / "one too many"
        path.write_bytes(data)
        with pytest.raises(StorageFull):
            await store.write_file(digest, path)
        assert same(path.read_bytes(), data), "it stays where it is"
        await assert_absent(store, digest)
        # What was refused has left nothing in the count.
        small = os.urandom(900_000)
        assert await store.write_many({SHA256.digest(small): small}) == {}


async def test_what_can_never_fit_stays(given: Path, tmp_path: Path) -> None:
    async with open_store(tmp_path, max_bytes=500_000) as store:
        with pytest.raises(StorageFull):
            await store.write_file(DIGEST, given)
    assert same(given.read_bytes(), DATA)


async def test_older_blobs_give_way_to_a_given_file(given: Path, tmp_path: Path) -> None:
    async with open_store(tmp_path, max_bytes=1_500_000, min_life_seconds=0) as store:
        digest, data = blob("older", 900_000)
        await store.write_many({digest: data})
        await store.write_file(DIGEST, given)
        assert await store.find_missing([digest, DIGEST]) == {digest}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files to another user")
async def test_another_users_file_becomes_the_servers(given: Path, tmp_path: Path) -> None:
    os.chown(given, 65534, 65534)
    given.chmod(0o6777)
    async with open_store(tmp_path) as store:
        await store.write_file(DIGEST, given)
        async with store.open_paths([DIGEST]) as paths:
            status = paths[DIGEST].stat()
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    assert status.st_mode & 0o7777 == 0o444
