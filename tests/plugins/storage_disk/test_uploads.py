"""Uploads that were broken off: kept over restarts, counted, and forgotten in time."""

from __future__ import annotations

import errno
import os
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

from stoker import spi
from stoker.spi import (
    BlobStore,
    Digest,
    InvalidRequest,
    StorageFull,
    Unavailable,
    UploadInProgress,
)
from stoker.testing.blob_store_laws import assert_absent, blob, read, upload_rest, write
from stoker_storage_disk import DiskSettings, stoker_blob_stores

CONTEXT = spi.Context("mine", Path("/nonexistent"), {})
KIB = 1024
MIB = 1024 * 1024


def open_store(path: Path, **settings: Any) -> AbstractAsyncContextManager[BlobStore]:
    defaults = {"min_life_seconds": 0.0, "high_water": 1.0, "low_water": 1.0}
    return stoker_blob_stores()["disk"].open(
        DiskSettings(path=str(path), **(defaults | settings)), CONTEXT
    )


def partial(folder: Path) -> list[Path]:
    return list((folder / "partial").iterdir())


class _BrokenOff(Exception):
    """Stands for a connection that is lost."""


async def break_off(store: BlobStore, digest: Digest, data: bytes, name: str = "one") -> None:
    with pytest.raises(_BrokenOff):
        await _break_off(store, digest, data, name)


async def _break_off(store: BlobStore, digest: Digest, data: bytes, name: str) -> None:
    async with store.open_upload(digest, name) as upload:
        await upload.write(data)
        raise _BrokenOff


@pytest.mark.parametrize("fsync", [False, True])
@pytest.mark.parametrize("kept_bytes", [1, 100 * KIB, 900 * KIB])
async def test_uploads_outlive_the_store(tmp_path: Path, kept_bytes: int, fsync: bool) -> None:
    # BSQ-06, BSW-17
    digest, data = blob("continued", MIB)
    async with open_store(tmp_path, fsync=fsync) as store:
        await break_off(store, digest, data[:kept_bytes])
        assert await store.uploaded_bytes(digest, "one") == kept_bytes
    async with open_store(tmp_path, fsync=fsync) as store:
        assert await store.uploaded_bytes(digest, "one") == kept_bytes
        await assert_absent(store, digest)
        assert await upload_rest(store, digest, data) == kept_bytes
        assert await read(store, digest) == data
    assert partial(tmp_path) == []


async def test_bytes_of_an_upload_that_is_open(tmp_path: Path) -> None:
    # BSQ-02: held is what a crash of the server would leave.
    digest, data = blob("open", MIB)
    async with open_store(tmp_path) as store, store.open_upload(digest, "one") as upload:
        await upload.write(data[: 600 * KIB])
        held = await store.uploaded_bytes(digest, "one")
        assert held == partial(tmp_path)[0].stat().st_size == 600 * KIB
        with pytest.raises(UploadInProgress):
            async with store.open_upload(digest, "one"):
                pytest.fail("opened twice")
        await upload.write(data[600 * KIB :])


async def test_discarded_uploads_leave_nothing(tmp_path: Path) -> None:
    # BSW-09
    digest, data = blob("bad", 800 * KIB)
    async with open_store(tmp_path, max_bytes=MIB) as store:
        for _ in range(5):
            with pytest.raises(InvalidRequest):
                await _refuse(store, digest, data)
            assert partial(tmp_path) == []
        await write(store, digest, data)


async def _refuse(store: BlobStore, digest: Digest, data: bytes) -> None:
    async with store.open_upload(digest, "one") as upload:
        await upload.write(data)
        raise InvalidRequest("it is no good")


async def test_untouched_upload_leaves_nothing(tmp_path: Path) -> None:
    digest, _ = blob("nothing", 800 * KIB)
    async with open_store(tmp_path) as store:
        await break_off(store, digest, b"")
        assert partial(tmp_path) == []


# --- room


async def test_kept_uploads_count_and_give_way_last(tmp_path: Path) -> None:
    # STO-01, BSW-24
    digest, data = blob("kept", 600 * KIB)
    other, more = blob("other", 400 * KIB)
    large, most = blob("large", 900 * KIB)
    async with open_store(tmp_path, max_bytes=MIB, partial_max_bytes=MIB) as store:
        await break_off(store, digest, data[: 500 * KIB])
        await write(store, other, more)
    async with open_store(tmp_path, max_bytes=MIB, partial_max_bytes=MIB) as store:
        next_one, rest = blob("next", 300 * KIB)
        await write(store, next_one, rest)
        # The blob had to go, as the upload counts.
        assert await store.find_missing([other]) == {other}
        assert await store.uploaded_bytes(digest, "one") == 500 * KIB
        await write(store, large, most)
        assert await store.uploaded_bytes(digest, "one") == 0
        assert partial(tmp_path) == []
        assert await read(store, large) == most
        await write(store, *blob("all of it", MIB))


async def test_upload_without_room_keeps_what_it_has(tmp_path: Path) -> None:
    digest, data = blob("large", 900 * KIB)
    pinned, some = blob("pinned", 400 * KIB)
    settings = {"max_bytes": MIB, "partial_max_bytes": MIB}
    async with open_store(tmp_path, **settings) as store:
        await write(store, pinned, some)
        async with store.open_read(pinned):
            with pytest.raises(StorageFull):
                await upload_rest(store, digest, data, piece_bytes=300 * KIB)
        assert await store.uploaded_bytes(digest, "one") == 600 * KIB
        assert await upload_rest(store, digest, data) == 600 * KIB
        assert await read(store, digest) == data


async def test_all_that_are_kept_have_a_bound(tmp_path: Path) -> None:
    # BSW-24: a tenth of max_bytes; the ones left first go.
    digests = [blob(f"{number}", 300 * KIB) for number in range(10)]
    async with open_store(tmp_path, max_bytes=10 * MIB) as store:
        for digest, data in digests:
            await break_off(store, digest, data[: 200 * KIB])
        kept = [await store.uploaded_bytes(digest, "one") for digest, _ in digests]
        assert kept == [0] * 5 + [200 * KIB] * 5
        # One that is larger may be uploaded, but not be kept.
        large, data = blob("large", 2 * MIB)
        async with store.open_upload(large, "one") as upload:
            await upload.write(data)
        await break_off(store, *blob("large too", 2 * MIB))
        assert partial(tmp_path) == []


# --- life


async def test_old_uploads_are_forgotten_at_the_start(tmp_path: Path) -> None:
    # BSW-24
    digest, data = blob("old", 300 * KIB)
    young, more = blob("young", 300 * KIB)
    async with open_store(tmp_path) as store:
        await break_off(store, digest, data[:1_000])
    (file,) = partial(tmp_path)
    async with open_store(tmp_path) as store:
        await break_off(store, young, more[:1_000])
    hour_ago = time.time() - 3_600
    os.utime(file, (hour_ago, hour_ago))
    async with open_store(tmp_path, partial_life_seconds=1_800.0) as store:
        assert await store.uploaded_bytes(digest, "one") == 0
        assert await store.uploaded_bytes(young, "one") == 1_000
        assert len(partial(tmp_path)) == 1


async def test_old_uploads_are_forgotten_while_serving(tmp_path: Path) -> None:
    # BSW-24
    digest, data = blob("old", 300 * KIB)
    async with open_store(tmp_path, partial_life_seconds=0.05) as store:
        async with store.open_upload(digest, "one") as upload:
            await break_off(store, digest, data[:1_000], "other")
            while await store.uploaded_bytes(digest, "other"):
                await trio.sleep(0.01)
            # One that is open does not grow old.
            await upload.write(data)
        assert partial(tmp_path) == []


async def test_upload_that_was_about_to_be_published(tmp_path: Path) -> None:
    # STO-02: the server ended between taking the right to write away and giving the name.
    digest, data = blob("nearly", 300 * KIB)
    async with open_store(tmp_path) as store:
        await break_off(store, digest, data)
    (file,) = partial(tmp_path)
    file.chmod(0o444)
    async with open_store(tmp_path) as store:
        assert await upload_rest(store, digest, data) == len(data)
        assert await read(store, digest) == data


async def test_upload_that_is_published_is_kept_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file has its name, but the disk fails when the folder is to be synced.
    digest, data = blob("published in spite", 600 * KIB)
    other, more = blob("needs the room", 300 * KIB)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "stands for a broken disk")

    (tmp_path / "sha256" / digest.hash[:2]).mkdir(parents=True)
    async with open_store(tmp_path, fsync=True, max_bytes=MIB) as store:
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail)
            with pytest.raises(Unavailable):
                await upload_rest(store, digest, data)
        assert await store.find_missing([digest]) == set()
        assert await store.uploaded_bytes(digest, "one") == 0
        assert partial(tmp_path) == []
        await write(store, other, more)
        assert await store.find_missing([digest]) == set(), "there is room for both"
