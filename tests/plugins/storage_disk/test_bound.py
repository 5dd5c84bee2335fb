"""The size bound of the disk store: what it counts, what is evicted for it, and what is not."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from stoker import spi
from stoker.spi import (
    SHA256,
    ActionKey,
    ActionResult,
    BlobStore,
    ConfigurationError,
    Digest,
    StorageFull,
)
from stoker.testing.blob_store_laws import blob, read, write
from stoker_storage_disk import (
    DiskActionCacheSettings,
    DiskSettings,
    stoker_action_caches,
    stoker_blob_stores,
)

CONTEXT = spi.Context("mine", Path("/nonexistent"), {})
KIB = 1024
MIB = 1024 * 1024


def open_store(path: Path, **settings: Any) -> AbstractAsyncContextManager[BlobStore]:
    """A store of 1 MiB that promises nothing, but for what `settings` say."""
    defaults = {"max_bytes": MIB, "min_life_seconds": 0.0, "high_water": 1.0, "low_water": 1.0}
    return stoker_blob_stores()["disk"].open(
        DiskSettings(path=str(path), **(defaults | settings)), CONTEXT
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[BlobStore]:
    async with open_store(tmp_path) as store:
        yield store


def disk_usage(folder: Path) -> int:
    """What the files in `folder` take on the disk, but for the index and the folders."""
    return sum(
        path.lstat().st_blocks * 512
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("index.sqlite")
    )


async def fill(store: BlobStore, name: str, count: int, size_bytes: int) -> list[Digest]:
    """Write blobs one after the other, so that the first is used first."""
    digests = []
    for number in range(count):
        digest, data = blob(f"{name} {number}", size_bytes)
        await write(store, digest, data)
        digests.append(digest)
        # Uses in the same millisecond have no order.
        await trio.sleep(0.002)
    return digests


async def present(store: BlobStore, digests: Iterable[Digest]) -> set[Digest]:
    asked = set(digests)
    return asked - await store.find_missing(asked)


async def test_longest_unused_is_evicted(store: BlobStore, tmp_path: Path) -> None:
    # STO-01
    digests = await fill(store, "old", 10, 100 * KIB)
    new = await fill(store, "new", 3, 100 * KIB)
    assert disk_usage(tmp_path) <= MIB
    left = await present(store, [*digests, *new])
    assert left >= {*new}
    # Whatever had to go was older than whatever stayed.
    assert left == {*[*digests, *new][-len(left) :]}
    assert len(left) >= 9


@pytest.mark.parametrize("used_by", ["find_missing", "read", "read_many", "open_paths", "write"])
async def test_use_extends_life(store: BlobStore, tmp_path: Path, used_by: str) -> None:
    # FMB-03, BSR-21, ACG-03
    used, *others = await fill(store, "old", 10, 100 * KIB)
    await use(store, used, used_by)
    await trio.sleep(0.002)
    await fill(store, "new", 5, 100 * KIB)
    assert await store.find_missing([used, *others[:4]]) == {*others[:4]}


async def use(store: BlobStore, digest: Digest, how: str) -> None:
    if how == "find_missing":
        assert await store.find_missing([digest]) == set()
    elif how == "read":
        await read(store, digest)
    elif how == "read_many":
        assert digest in await store.read_many([digest])
    elif how == "write":
        await write(store, digest, await read_file(store, digest))
    else:
        async with store.open_paths([digest]) as paths:
            assert paths


async def read_file(store: BlobStore, digest: Digest) -> bytes:
    async with store.open_paths([digest]) as paths:
        return await trio.Path(paths[digest]).read_bytes()


async def test_order_of_use_outlives_the_store(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        digests = await fill(store, "old", 10, 100 * KIB)
        await read(store, digests[0])
    async with open_store(tmp_path) as store:
        await fill(store, "new", 2, 100 * KIB)
        assert (await store.find_missing(digests)) <= {*digests[1:5]}
        assert digests[0] in await present(store, digests)


async def test_uploads_in_flight_count(store: BlobStore, tmp_path: Path) -> None:
    # STO-01
    old = await fill(store, "old", 5, 100 * KIB)
    digest, data = blob("large", 900 * KIB)
    async with store.open_write(digest) as writer:
        await writer.write(data[: 800 * KIB])
        assert disk_usage(tmp_path) <= MIB
        assert len(await present(store, old)) == 2
        other, more = blob("other", 300 * KIB)
        # It would fit only if the other upload were not counted.
        with pytest.raises(StorageFull, match="max_bytes = 1048576"):
            await write(store, other, more)
        await writer.write(data[800 * KIB :])
    assert await read(store, digest) == data
    await write(store, other, more)
    assert disk_usage(tmp_path) <= MIB


async def test_failed_uploads_give_their_room_back(store: BlobStore) -> None:
    for number in range(10):
        digest, data = blob(f"{number}", 700 * KIB)
        with trio.CancelScope() as scope:
            async with store.open_write(digest) as writer:
                await writer.write(data)
                scope.cancel()
                await trio.lowlevel.checkpoint()
    digest, data = blob("at last", MIB)
    await write(store, digest, data)
    assert await read(store, digest) == data


async def test_blob_larger_than_the_bound(store: BlobStore) -> None:
    # BSW-23: told at once, and nothing is evicted in vain.
    old = await fill(store, "old", 3, 100 * KIB)
    digest, data = blob("too large", MIB + 1)
    with pytest.raises(StorageFull, match="do not fit"):
        async with store.open_write(digest):
            pytest.fail("the writer of a blob that cannot fit was opened")
    failures = await store.write_many({digest: data})
    assert isinstance(failures[digest], StorageFull)
    assert await store.find_missing(old) == set()


async def test_small_blobs_count_as_whole_blocks(store: BlobStore, tmp_path: Path) -> None:
    blobs = dict(blob(f"{number}", 1) for number in range(256))
    assert await store.write_many(blobs) == {}
    for number in range(1_000):
        assert await store.write_many(dict([blob(f"more {number}", 2_000)])) == {}
    assert disk_usage(tmp_path) <= MIB


async def test_many_writers_at_the_bound(store: BlobStore, tmp_path: Path) -> None:
    # STO-01
    async def write_one(name: str, size_bytes: int) -> None:
        digest, data = blob(name, size_bytes)
        await write(store, digest, data, piece_bytes=70_000)
        assert (await store.read_many([digest])).get(digest, data) == data

    for number in range(30):
        async with trio.open_nursery() as nursery:
            for size_bytes in (1, 5_000, 20_001, 100_000, 150_000):
                nursery.start_soon(write_one, f"{number} {size_bytes}", size_bytes)
                nursery.start_soon(write_one, f"{number // 2} again {size_bytes}", size_bytes)
        assert disk_usage(tmp_path) <= MIB
    assert disk_usage(tmp_path) > MIB // 2


# --- what is not evicted


async def test_blob_that_is_read_stays(store: BlobStore, tmp_path: Path) -> None:
    # BSR-18, STO-01: it takes its room as long as it is open, so it does not count as evicted.
    digest, data = blob("read", 600 * KIB)
    await write(store, digest, data)
    other, more = blob("other", 600 * KIB)
    async with store.open_read(digest) as reader:
        pieces = [await reader.read(10)]
        with pytest.raises(StorageFull, match="nothing may be evicted"):
            await write(store, other, more)
        assert await store.find_missing([digest]) == set()
        while piece := await reader.read(100_000):
            pieces.append(piece)
    assert b"".join(pieces) == data
    await write(store, other, more)
    assert await store.find_missing([digest, other]) == {digest}


async def test_blob_whose_path_is_open_stays(store: BlobStore) -> None:
    # STO-01
    pinned = await fill(store, "pinned", 6, 100 * KIB)
    async with store.open_paths(pinned), store.open_paths(pinned[:1]):
        await fill(store, "new", 20, 100 * KIB)
        assert await store.find_missing(pinned) == set()
    await fill(store, "newer", 10, 100 * KIB)
    assert await present(store, pinned) == set()


@pytest.mark.parametrize("reopened", [False, True])
async def test_promise_is_kept(tmp_path: Path, reopened: bool) -> None:
    # FMB-03: rather than evict what was promised, writes are refused; reads go on.
    async with open_store(tmp_path, min_life_seconds=1000.0) as store:
        digests = await fill(store, "promised", 9, 100 * KIB)
    for _ in range(3 if reopened else 1):
        async with open_store(tmp_path, min_life_seconds=1000.0) as store:
            digest, data = blob("too much", 300 * KIB)
            with pytest.raises(StorageFull, match="min_life_seconds"):
                await write(store, digest, data)
            failures = await store.write_many({digest: data})
            assert isinstance(failures[digest], StorageFull)
            assert await store.find_missing([digest, *digests]) == {digest}
            await read(store, digests[0])


async def test_only_what_was_asked_for_is_promised(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        old = await fill(store, "old", 9, 100 * KIB)
    age_uses(tmp_path, seconds=5_000)
    async with open_store(tmp_path, min_life_seconds=1000.0) as store:
        # The longest unused of all; the answer alone keeps it.
        assert await store.find_missing(old[:1]) == set()
        new = await fill(store, "new", 8, 100 * KIB)
        assert await present(store, [*old, *new]) >= {old[0], *new}
        with pytest.raises(StorageFull):
            await fill(store, "newest", 4, 100 * KIB)


def age_uses(folder: Path, seconds: int) -> None:
    """Make all of the past longer ago."""
    import sqlite3  # noqa: PLC0415
    from contextlib import closing  # noqa: PLC0415

    with closing(sqlite3.connect(folder / "index.sqlite")) as index, index:
        index.execute("UPDATE files SET used_ms = used_ms - ?", [seconds * 1000])


async def test_clock_that_was_set_back_promises_nothing_for_ever(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        old = await fill(store, "old", 9, 100 * KIB)
    age_uses(tmp_path, seconds=-1_000_000)
    async with open_store(tmp_path) as store:
        await fill(store, "new", 10, 100 * KIB)
        assert await present(store, old) == set()


# --- eviction ahead of need


async def test_eviction_in_the_background(tmp_path: Path) -> None:
    async with open_store(tmp_path, high_water=0.8, low_water=0.5) as store:
        await fill(store, "some", 9, 100 * KIB)
        while disk_usage(tmp_path) > 0.8 * MIB:
            await trio.sleep(0.01)
        assert disk_usage(tmp_path) <= 0.5 * MIB


async def test_bound_that_was_lowered(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        digests = await fill(store, "some", 10, 100 * KIB)
    async with open_store(tmp_path, max_bytes=300 * KIB, high_water=0.9, low_water=0.8) as store:
        while disk_usage(tmp_path) > 300 * KIB:
            await trio.sleep(0.01)
        assert await present(store, digests) == {*digests[-2:]}


async def test_marks_the_wrong_way_round(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="low_water"):
        async with open_store(tmp_path, high_water=0.5, low_water=0.6):
            pytest.fail("opened")


# --- executable copies


async def test_executable_copies_are_made_when_asked_for(store: BlobStore, tmp_path: Path) -> None:
    digest, data = blob("program", 100 * KIB)
    absent, _ = blob("absent", 100 * KIB)
    await write(store, digest, data)
    assert disk_usage(tmp_path) == 100 * KIB
    for _ in range(2):
        async with store.open_executable_paths([digest, absent]) as paths:
            assert paths.keys() == {digest}
            assert await trio.Path(paths[digest]).read_bytes() == data
            assert paths[digest].stat().st_mode & 0o777 == 0o555
        assert disk_usage(tmp_path) == 200 * KIB
    async with store.open_paths([digest]) as paths:
        assert paths[digest].stat().st_mode & 0o777 == 0o444


async def test_executable_copies_count_and_go_with_their_blobs(
    store: BlobStore, tmp_path: Path
) -> None:
    programs = await fill(store, "program", 4, 100 * KIB)
    async with store.open_executable_paths(programs) as paths:
        assert len(paths) == 4
        # 800 KiB are pinned.
        digest, data = blob("too much", 300 * KIB)
        with pytest.raises(StorageFull):
            await write(store, digest, data)
    await fill(store, "new", 10, 100 * KIB)
    assert disk_usage(tmp_path) <= MIB
    assert await present(store, programs) == set()
    assert not list(tmp_path.rglob("*.executable"))


async def test_executable_copy_for_which_there_is_no_room(store: BlobStore) -> None:
    digest, data = blob("large program", 700 * KIB)
    await write(store, digest, data)
    async with store.open_executable_paths([digest]) as paths:
        assert paths == {}
    assert await read(store, digest) == data


async def test_many_ask_for_one_executable_copy(store: BlobStore, tmp_path: Path) -> None:
    digest, data = blob("program", 100 * KIB)
    await write(store, digest, data)

    async def ask() -> None:
        async with store.open_executable_paths([digest]) as paths:
            assert await trio.Path(paths[digest]).read_bytes() == data

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(ask)
    assert disk_usage(tmp_path) == 200 * KIB
    # Counted once: all of the rest is free.
    await fill(store, "rest", 8, 100 * KIB)
    assert await store.find_missing([digest]) == set()


# --- action results


async def test_results_are_bounded_too(tmp_path: Path) -> None:
    settings = DiskActionCacheSettings(path=str(tmp_path), max_bytes=400 * KIB, high_water=1.0)
    keys = [ActionKey("", SHA256.digest(b"%d" % number)) for number in range(300)]
    async with stoker_action_caches()["disk"].open(settings, CONTEXT) as cache:
        for number, key in enumerate(keys):
            await cache.update(key, ActionResult(stdout_raw=os.urandom(100 + 20 * number)))
            if number % 10 == 0:
                assert disk_usage(tmp_path) <= 400 * KIB
                assert await cache.get(keys[0]) is not None
                await trio.sleep(0.002)
        assert await cache.get(keys[-1]) is not None
        assert await cache.get(keys[1]) is None
        with pytest.raises(StorageFull):
            await cache.update(keys[0], ActionResult(stdout_raw=bytes(MIB)))
        assert await cache.get(keys[0]) is not None


async def test_results_that_shrink_give_room_back(tmp_path: Path) -> None:
    settings = DiskActionCacheSettings(path=str(tmp_path), max_bytes=400 * KIB)
    key, other = (ActionKey("", SHA256.digest(name)) for name in (b"one", b"other"))
    async with stoker_action_caches()["disk"].open(settings, CONTEXT) as cache:
        for _ in range(5):
            await cache.update(key, ActionResult(stdout_raw=bytes(190 * KIB)))
            await cache.update(key, ActionResult(stdout_raw=b"small"))
        await cache.update(other, ActionResult(stdout_raw=bytes(300 * KIB)))
        assert await cache.get(key) == ActionResult(stdout_raw=b"small")


async def test_results_that_are_looked_at_are_not_used(tmp_path: Path) -> None:
    settings = DiskActionCacheSettings(path=str(tmp_path), max_bytes=40 * KIB, high_water=1.0)
    keys = [ActionKey("", SHA256.digest(b"%d" % number)) for number in range(11)]
    async with stoker_action_caches()["disk"].open(settings, CONTEXT) as cache:
        for key in keys[:10]:
            await cache.update(key, ActionResult(exit_code=1))
            await trio.sleep(0.002)  # so that the index can tell which came first
        async with cache.open_entries() as entries:
            async for key in entries:
                assert await cache.peek(key) is not None
        assert await cache.peek(keys[0]) is not None
        await cache.update(keys[10], ActionResult(exit_code=1))
        assert await cache.peek(keys[0]) is None, "it was the longest unused"
        assert await cache.peek(keys[2]) is not None
