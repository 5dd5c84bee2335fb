"""Blobs whose bytes have changed on the disk: found by reading or by scrubbing."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from stoker import spi
from stoker.spi import BlobStore, DataLoss, Digest, ScrubFinding
from stoker.testing.blob_store_laws import assert_absent, blob, read, write
from stoker_storage_disk import DiskSettings, stoker_blob_stores

CONTEXT = spi.Context("mine", Path("/nonexistent"), {})
KIB = 1024


def open_store(path: Path, **settings: Any) -> AbstractAsyncContextManager[BlobStore]:
    return stoker_blob_stores()["disk"].open(DiskSettings(path=str(path), **settings), CONTEXT)


def file_of(folder: Path, digest: Digest) -> Path:
    return folder / "sha256" / digest.hash[:2] / f"{digest.hash}-{digest.size_bytes}"


def spoil(file: Path, offset: int = -1) -> None:
    """Change one byte, and at no moment the size, which the filling of the index looks at."""
    data = file.read_bytes()
    mode = file.stat().st_mode
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.seek(offset % len(data))
        opened.write(bytes([data[offset] ^ 1]))
    file.chmod(mode)


# --- verify_reads


@pytest.mark.parametrize("size_bytes", [1, 64 * KIB, 64 * KIB + 1, 3_000_000])
@pytest.mark.parametrize("max_bytes", [1_000_000, 70_000])
async def test_damage_is_told_before_the_last_byte(
    tmp_path: Path, size_bytes: int, max_bytes: int
) -> None:
    # STO-08, BSR-19
    digest, data = blob("damaged", size_bytes)
    async with open_store(tmp_path, verify_reads=True) as store:
        await write(store, digest, data)
        assert await read(store, digest) == data
        spoil(file_of(tmp_path, digest), 0)
        got = b""
        async with store.open_read(digest) as reader:
            while len(got) < size_bytes - max_bytes and size_bytes > 64 * KIB:
                got += await reader.read(max_bytes)
            with pytest.raises(DataLoss) as caught:
                await reader.read(max_bytes)
            assert caught.value.digest == digest
            with pytest.raises(DataLoss):
                await reader.read(1)
        await assert_absent(store, digest)
        await write(store, digest, data)
        assert await read(store, digest) == data


async def test_damaged_ones_of_many_are_left_out(tmp_path: Path) -> None:
    # BRB-08
    blobs = dict(blob(f"{number}", 5_000 * (1 + number)) for number in range(20))
    bad = list(blobs)[::3]
    async with open_store(tmp_path, verify_reads=True) as store:
        await store.write_many(blobs)
        for digest in bad:
            spoil(file_of(tmp_path, digest))
        with capture_logs() as logs:
            assert (await store.read_many(blobs)).keys() == blobs.keys() - bad
        removed = {log["path"] for log in logs if log["event"] == "damaged file removed"}
        assert removed == {str(file_of(tmp_path, digest)) for digest in bad}
        assert await store.find_missing(blobs) == {*bad}


async def test_ranges_are_not_verified(tmp_path: Path) -> None:
    digest, data = blob("damaged", 200 * KIB)
    async with open_store(tmp_path, verify_reads=True) as store:
        await write(store, digest, data)
        spoil(file_of(tmp_path, digest))
        assert await read(store, digest, 10, 1_000) == data[10:1_010]
        assert await read(store, digest, 0, 1_000) == data[:1_000]
        with pytest.raises(DataLoss):
            await read(store, digest, 0, 200 * KIB)


# --- scrub


async def scrub(store: BlobStore) -> list[ScrubFinding]:
    async with store.scrub() as findings:
        return [finding async for finding in findings]


async def test_scrub_drops_what_is_damaged(tmp_path: Path) -> None:
    # STO-08
    blobs = dict(blob(f"{number}", 1 + 40_000 * number) for number in range(40))
    changed, short, *_ = blobs
    async with open_store(tmp_path) as store:
        assert await scrub(store) == []
        await store.write_many(blobs)
        assert {(f.digest, f.problem) for f in await scrub(store)} == {
            (digest, "") for digest in blobs
        }
        spoil(file_of(tmp_path, changed))
        file_of(tmp_path, short).chmod(0o600)
        file_of(tmp_path, short).write_bytes(b"half")
        findings = {finding.digest: finding.problem for finding in await scrub(store)}
        assert findings.keys() == blobs.keys()
        assert {digest for digest, damage in findings.items() if damage} == {changed, short}
        assert "hash to" in findings[changed]
        assert "4 bytes" in findings[short]
        assert await store.find_missing(blobs) == {changed, short}
        assert all(finding.problem == "" for finding in await scrub(store))


async def test_scrub_looks_at_executable_copies(tmp_path: Path) -> None:
    digest, data = blob("program", 100 * KIB)
    async with open_store(tmp_path) as store:
        await write(store, digest, data)
        async with store.open_executable_paths([digest]) as paths:
            spoil(paths[digest])
        findings = await scrub(store)
        assert len(findings) == 2
        assert [finding.problem == "" for finding in findings].count(False) == 1
        assert await read(store, digest) == data
        async with store.open_executable_paths([digest]) as paths:
            assert paths[digest].read_bytes() == data


async def test_scrub_may_be_left(tmp_path: Path) -> None:
    blobs = dict(blob(f"{number}", 1_000) for number in range(2_000))
    async with open_store(tmp_path) as store:
        await store.write_many(blobs)
        async with store.scrub() as findings:
            async for finding in findings:
                assert finding.problem == ""
                break
        assert await store.find_missing(blobs) == set()


async def test_scrubbing_is_no_use(tmp_path: Path) -> None:
    settings = {"max_bytes": 10 * 4096, "min_life_seconds": 1_000.0, "high_water": 1.0}
    blobs = dict(blob(f"{number}", 4096) for number in range(9))
    async with open_store(tmp_path, **settings) as store:
        await store.write_many(blobs)
    age_uses(tmp_path)
    async with open_store(tmp_path, **settings) as store:
        assert len(await scrub(store)) == 9
        await write(store, *blob("new", 9 * 4096))
        assert await store.find_missing(blobs) >= {*list(blobs)[:8]}


def age_uses(folder: Path) -> None:
    """Make all of the past longer ago."""
    import sqlite3  # noqa: PLC0415
    from contextlib import closing  # noqa: PLC0415

    with closing(sqlite3.connect(folder / "index.sqlite")) as index, index:
        index.execute("UPDATE files SET used_ms = used_ms - 5000000")
