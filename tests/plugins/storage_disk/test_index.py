"""The index of the disk store may be lost, damaged or wrong: files decide."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from stoker import spi
from stoker.spi import (
    ActionKey,
    ActionResult,
    BlobStore,
    ConfigurationError,
    StorageFull,
    Unavailable,
)
from stoker.testing.blob_store_laws import assert_absent, blob, read, write
from stoker_storage_disk import (
    DiskActionCacheSettings,
    DiskSettings,
    stoker_action_caches,
    stoker_blob_stores,
)
from stoker_storage_disk.index import Index

CONTEXT = spi.Context("mine", Path("/nonexistent"), {})
KIB = 1024
MIB = 1024 * 1024


def open_store(path: Path, **settings: Any) -> AbstractAsyncContextManager[BlobStore]:
    defaults = {"min_life_seconds": 0.0, "high_water": 1.0, "low_water": 1.0}
    return stoker_blob_stores()["disk"].open(
        DiskSettings(path=str(path), **(defaults | settings)), CONTEXT
    )


def file_of(folder: Path, digest: spi.Digest) -> Path:
    return folder / "sha256" / digest.hash[:2] / f"{digest.hash}-{digest.size_bytes}"


def index_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("index.sqlite*"))


def rows(folder: Path) -> dict[str, int]:
    """The index of a folder that nobody has open: names and sizes."""
    with closing(sqlite3.connect(folder / "index.sqlite")) as index:
        found = dict(index.execute("SELECT name, size_bytes FROM files"))
        ((total,),) = index.execute("SELECT total FROM facts")
    assert total == sum(found.values())
    return found


def files(folder: Path) -> dict[str, int]:
    """What the index should say."""
    return {
        str(path.relative_to(folder)): -(-path.stat().st_size // 4096) * 4096
        for path in (folder / "sha256").rglob("*")
        if path.is_file()
    }


def delete(folder: Path) -> None:
    for path in index_files(folder):
        path.unlink()


def truncate(folder: Path) -> None:
    os.truncate(folder / "index.sqlite", (folder / "index.sqlite").stat().st_size // 2)


def empty(folder: Path) -> None:
    os.truncate(folder / "index.sqlite", 0)


def fill_with_garbage(folder: Path) -> None:
    for path in index_files(folder):
        path.write_bytes(b"garbage!" * (path.stat().st_size // 8))


def spoil_pages(folder: Path) -> None:
    """All but the first page, so that opening it works."""
    with (folder / "index.sqlite").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xee" * (file.seek(0, os.SEEK_END) - 4096))


def replace_by_another(folder: Path) -> None:
    delete(folder)
    with closing(sqlite3.connect(folder / "index.sqlite")) as other, other:
        other.execute("CREATE TABLE something (else_ TEXT)")


def lose_power(folder: Path) -> None:
    """The machine went down with the store open: the last commits are lost."""
    with closing(sqlite3.connect(folder / "index.sqlite")) as index, index:
        index.execute("UPDATE facts SET opened_by = 'another boot'")
        index.execute("DELETE FROM files WHERE name IN (SELECT name FROM files LIMIT 3)")
        index.execute("INSERT INTO files VALUES ('sha256/00/00-1', 4096, 0, 0)")


DAMAGE = (
    delete,
    truncate,
    empty,
    fill_with_garbage,
    spoil_pages,
    replace_by_another,
    lose_power,
)


async def write_some(store: BlobStore) -> dict[spi.Digest, bytes]:
    blobs = dict(blob(f"{number}", 1 + 500 * number) for number in range(60))
    assert await store.write_many(blobs) == {}
    return blobs


@pytest.mark.parametrize("damage", DAMAGE)
async def test_index_is_made_anew_from_the_files(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    # STO-02, STO-03
    async with open_store(tmp_path) as store:
        blobs = await write_some(store)
    assert rows(tmp_path) == files(tmp_path)
    damage(tmp_path)
    async with open_store(tmp_path, max_bytes=MIB) as store:
        # While it is being made, and after.
        for _ in range(3):
            assert await store.find_missing(blobs) == set()
            assert await store.read_many(blobs) == blobs
        used = sum(files(tmp_path).values())
        digest, data = blob("new", MIB - used)
        # It fits exactly, or not at all, if the count is wrong.
        async with store.open_paths(blobs):
            await write(store, digest, data)
            async with store.open_paths([digest]):
                with pytest.raises(StorageFull):
                    await write(store, *blob("one more", 1))
        await wait_until_filled(tmp_path)
    assert rows(tmp_path) == files(tmp_path)


async def wait_until_filled(folder: Path) -> None:
    """Wait until the index says of itself that it knows every file."""
    with closing(sqlite3.connect(folder / "index.sqlite")) as index:
        while index.execute("SELECT complete FROM facts").fetchall() != [(1,)]:
            await trio.sleep(0.01)


@pytest.mark.parametrize("damage", DAMAGE)
async def test_bound_holds_over_damage(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    # STO-01
    for number in range(3):
        async with open_store(tmp_path, max_bytes=MIB) as store:
            for other in range(12):
                await write(store, *blob(f"{number} {other}", 130 * KIB))
                assert sum(files(tmp_path).values()) <= MIB
        damage(tmp_path)


@pytest.mark.parametrize("damage", [delete, truncate, empty, fill_with_garbage, spoil_pages])
async def test_damage_under_an_open_store(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    async with open_store(tmp_path, max_bytes=2 * MIB) as store:
        blobs = await write_some(store)
        damage(tmp_path)
        for number in range(40):
            digest, data = blob(f"new {number}", 100 * KIB)
            await write(store, digest, data)
            assert await read(store, digest) == data
            assert sum(files(tmp_path).values()) <= 2 * MIB
        assert (await store.read_many(blobs)).items() <= blobs.items()
    async with open_store(tmp_path, max_bytes=2 * MIB) as store:
        digest, data = blob("new 39", 100 * KIB)
        assert await read(store, digest) == data
        await wait_until_filled(tmp_path)
    assert rows(tmp_path) == files(tmp_path)


async def test_entries_without_a_file_are_dropped(tmp_path: Path) -> None:
    # STO-03, FMB-09
    async with open_store(tmp_path) as store:
        blobs = await write_some(store)
        gone = list(blobs)[::2]
        for digest in gone:
            file_of(tmp_path, digest).unlink()
        assert await store.find_missing(blobs) == {*gone}
    assert rows(tmp_path) == files(tmp_path)


async def test_room_of_blobs_deleted_by_hand(tmp_path: Path) -> None:
    # STO-03: also of those that nobody ever asked for again.
    async with open_store(tmp_path, max_bytes=MIB) as store:
        for number in range(10):
            await write(store, *blob(f"old {number}", 100 * KIB))
        shutil.rmtree(tmp_path / "sha256")
        new = [blob(f"new {number}", 100 * KIB) for number in range(10)]
        for digest, data in new:
            await write(store, digest, data)
        assert await store.find_missing([digest for digest, _ in new]) == set()


async def test_files_put_in_by_hand_are_served(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        digest, data = blob("by hand", 1_000)
        file_of(tmp_path, digest).parent.mkdir(parents=True)
        file_of(tmp_path, digest).write_bytes(data)
        assert await store.find_missing([digest]) == set()
        assert await read(store, digest) == data
        async with store.scrub() as findings:
            assert [finding async for finding in findings] == [spi.ScrubFinding(digest, "", 1)]
    assert rows(tmp_path) == files(tmp_path)


async def test_folder_of_a_stoker_without_index(tmp_path: Path) -> None:
    blobs = dict(blob(f"{number}", 1_000) for number in range(20))
    for digest, data in blobs.items():
        file_of(tmp_path, digest).parent.mkdir(parents=True, exist_ok=True)
        file_of(tmp_path, digest).write_bytes(data)
    short, _ = blob("cut short", 5_000)
    file_of(tmp_path, short).parent.mkdir(parents=True, exist_ok=True)
    file_of(tmp_path, short).write_bytes(b"half")
    (tmp_path / "sha256" / "notes.txt").write_text("not a blob")
    async with open_store(tmp_path, max_bytes=MIB) as store:
        assert await store.read_many(blobs) == blobs
        await assert_absent(store, short)
        await write(store, *blob("new", 10))
    assert (tmp_path / "sha256" / "notes.txt").exists()


async def test_results_outlive_their_index(tmp_path: Path) -> None:
    settings = DiskActionCacheSettings(path=str(tmp_path), max_bytes=MIB)
    provider = stoker_action_caches()["disk"]
    keys = [ActionKey("a", spi.SHA256.digest(b"%d" % number)) for number in range(20)]
    async with provider.open(settings, CONTEXT) as cache:
        for key in keys:
            await cache.update(key, ActionResult(stdout_raw=bytes(10 * KIB)))
    expected = rows(tmp_path)
    delete(tmp_path)
    async with provider.open(settings, CONTEXT) as cache:
        for key in keys:
            assert await cache.get(key) is not None
        # 240 KiB are in use, the room left takes this one and no more.
        await cache.update(keys[0], ActionResult(stdout_raw=bytes(700 * KIB)))
        for key in keys[1:]:
            assert await cache.get(key) is not None
        await wait_until_filled(tmp_path)
    assert rows(tmp_path).keys() == expected.keys()


async def test_many_blobs(tmp_path: Path) -> None:
    """Twenty thousand: all are there after the index is lost, and eviction takes the oldest."""
    digests = [spi.SHA256.digest(b"%d" % number) for number in range(20_000)]
    blobs = {digest: b"%d" % number for number, digest in enumerate(digests)}
    async with open_store(tmp_path) as store:
        assert await store.write_many(blobs) == {}
    delete(tmp_path)
    async with open_store(tmp_path, max_bytes=20_000 * 4096) as store:
        assert await store.find_missing(digests) == set()
        await wait_until_filled(tmp_path)
        await write(store, *blob("new", 4_000 * 4096))
        missing = await store.find_missing(digests)
        assert 4_000 <= len(missing) <= 4_500
    assert len(rows(tmp_path)) == 20_001 - len(missing)


async def test_reads_need_no_index(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        blobs = await write_some(store)
        with closing(sqlite3.connect(tmp_path / "index.sqlite")) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await store.read_many(blobs) == blobs
            assert await store.find_missing(blobs) == set()
            other.execute("ROLLBACK")


def test_log_stays_short_under_a_load_that_never_pauses(tmp_path: Path) -> None:
    # Measured once: 500 MB after twenty seconds.
    index = Index(str(tmp_path))
    log = tmp_path / "index.sqlite-wal"
    longest = 0

    def write_steadily() -> None:
        for number in range(8_000):
            index.add({f"sha256/{number:064x}-1": 4096})

    writer = threading.Thread(target=write_steadily)
    writer.start()
    while writer.is_alive():
        index.checkpoint()
        longest = max(longest, log.stat().st_size)
    writer.join()
    index.close()
    assert longest < 48 * MIB


async def test_damaged_index_that_cannot_be_removed_is_told(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await write_some(store)
    fill_with_garbage(tmp_path)
    (tmp_path / "index.sqlite-shm").mkdir()
    with pytest.raises(ConfigurationError, match=r"index\.sqlite-shm"):
        async with open_store(tmp_path):
            pytest.fail("opened")


async def test_files_from_the_future_are_evicted(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_bytes=MIB) as store:
        old = dict([blob("old", 700 * KIB)])
        assert await store.write_many(old) == {}
    # Their times are all that is left to go by.
    delete(tmp_path)
    os.utime(file_of(tmp_path, *old), (4e9, 4e9))
    async with open_store(tmp_path, max_bytes=MIB) as store:
        await write(store, *blob("new", 700 * KIB))
        assert await store.find_missing(old) == {*old}


async def test_clock_that_is_set_back_while_the_store_is_open(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_bytes=MIB) as store:
        old = dict([blob("old", 700 * KIB)])
        assert await store.write_many(old) == {}
        with trio.fail_after(60), closing(sqlite3.connect(tmp_path / "index.sqlite")) as index:
            index.execute("UPDATE files SET used_ms = 4e12")
            index.commit()
            while index.execute("SELECT used_ms FROM files").fetchall() == [(4e12,)]:
                await trio.sleep(0.01)
        await write(store, *blob("new", 700 * KIB))
        assert await store.find_missing(old) == {*old}


async def test_file_that_cannot_be_looked_at_keeps_no_index_from_filling(tmp_path: Path) -> None:
    async with open_store(tmp_path, max_bytes=MIB) as store:
        blobs = await write_some(store)
    delete(tmp_path)
    unreadable, _ = blob("unreadable", 1)
    file_of(tmp_path, unreadable).parent.mkdir(exist_ok=True)
    file_of(tmp_path, unreadable).symlink_to(file_of(tmp_path, unreadable))
    async with open_store(tmp_path, max_bytes=MIB) as store:
        # It needs room, and so waits for the index.
        with trio.fail_after(60):
            await write(store, *blob("large", 1000 * KIB))
        assert len(await store.read_many(blobs)) < len(blobs)


async def test_writes_are_refused_while_the_folder_cannot_be_read(tmp_path: Path) -> None:
    # STO-04: nothing is written within a bound of which nobody knows how much is used.
    async with open_store(tmp_path) as store:
        sound, data = blob("sound", 1000)
        await write(store, sound, data)
    delete(tmp_path)
    remove = make_unreadable(tmp_path / "sha256" / "aa")
    async with open_store(tmp_path, max_bytes=MIB) as store:
        with trio.fail_after(60), pytest.raises(Unavailable, match="File name too long"):
            await write(store, *blob("new", 1000))
        assert await read(store, sound) == data
        remove()
        new, data = blob("new", 1000)
        with trio.fail_after(60):
            while await store.find_missing([new]):
                # It is tried again about once a second.
                with suppress(Unavailable):
                    await write(store, new, data)
                await trio.sleep(0.01)


def make_unreadable(folder: Path) -> Callable[[], None]:
    """A folder in which no user at all can list what is inside; returns what mends that."""
    folder.mkdir(parents=True, exist_ok=True)
    top = os.open(folder, os.O_RDONLY)
    inner = os.dup(top)
    for _ in range(20):
        os.mkdir("n" * 250, dir_fd=inner)
        below = os.open("n" * 250, os.O_RDONLY, dir_fd=inner)
        os.close(inner)
        inner = below
    os.close(inner)

    def remove() -> None:
        shutil.rmtree("n" * 250, dir_fd=top)
        os.close(top)

    return remove
