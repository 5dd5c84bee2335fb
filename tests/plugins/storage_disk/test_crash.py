"""A server killed at any moment leaves whole blobs and whole results, and no litter."""

from __future__ import annotations

import importlib.util
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from stoker import spi
from stoker.spi import SHA256, ActionCache, BlobStore
from stoker.testing.blob_store_laws import blob, read, write
from stoker_storage_disk import (
    DiskActionCacheSettings,
    DiskSettings,
    stoker_action_caches,
    stoker_blob_stores,
)

WRITER = Path(__file__).with_name("endless_writer.py")
USER = Path(__file__).with_name("endless_user.py")
ROUNDS = 6


def load_program(program: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(program.stem, program)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_until_killed(program: Path, *arguments: str, lines: int) -> set[str]:
    """Kill the program after so many answers. Returns everything that it was answered."""
    command = [sys.executable, str(program), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        answered = {writer.stdout.readline() for _ in range(lines)}
        writer.kill()
        answered |= set(writer.stdout)
    assert writer.returncode == -9
    # The last line may have been cut short by the kill.
    return {line.strip() for line in answered if line.endswith("\n")}


async def check_blobs(
    store: BlobStore, folder: Path, program: ModuleType, run: str, answered: set[str]
) -> None:
    blobs = {number: program.numbered_blob(run, number) for number in range(program.BLOBS)}
    missing = await store.find_missing([digest for digest, _ in blobs.values()])
    for number, (digest, data) in blobs.items():
        if digest in missing:
            assert str(number) not in answered, "a blob that was confirmed is gone"
        else:
            assert await read(store, digest) == data, "a blob is damaged"
    for file in (folder / "sha256").glob("*/*"):
        digest = SHA256.digest(file.read_bytes())
        assert file.name == f"{digest.hash}-{digest.size_bytes}"


async def check_results(cache: ActionCache, program: ModuleType, answered: set[str]) -> None:
    for number in range(program.RESULTS):
        result = await cache.get(program.numbered_key(number))
        if result is None:
            assert f"r{number}" not in answered, "a result that was confirmed is gone"
        else:
            assert len(set(result.stdout_raw)) <= 1, "a result is damaged"


async def test_killed_at_any_moment(tmp_path: Path) -> None:
    # STO-02, BUB-14
    program = load_program(WRITER)
    context = spi.Context("mine", tmp_path, {})
    confirmed: set[str] = set()
    left_parts = 0
    for number in range(ROUNDS):
        run = f"run {number}"
        answered = run_until_killed(WRITER, str(tmp_path), run, lines=random.randrange(80))
        confirmed |= {line for line in answered if line.startswith("r")}
        left_parts += len(list((tmp_path / "blobs" / "incoming").glob("*")))
        blobs = stoker_blob_stores()["disk"].open(DiskSettings(path="blobs"), context)
        results = stoker_action_caches()["disk"].open(
            DiskActionCacheSettings(path="results"), context
        )
        async with blobs as store, results as cache:
            assert list((tmp_path / "blobs" / "incoming").iterdir()) == []
            assert list((tmp_path / "results" / "incoming").iterdir()) == []
            await check_blobs(store, tmp_path / "blobs", program, run, answered)
            await check_results(cache, program, confirmed)
    assert left_parts, "no kill fell into an upload, so that nothing was tried"


# --- within a bound


def disk_usage(folder: Path) -> int:
    """What the files of a folder that nobody uses take, but for index and folders."""
    return sum(
        path.lstat().st_blocks * 512
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("index.sqlite")
    )


def stored_files(folder: Path) -> set[str]:
    """The names of all files that readers could see."""
    return {
        str(path.relative_to(folder)).removesuffix(".executable")
        for path in (folder / "sha256").rglob("*")
        if path.is_file()
    }


def indexed_files(folder: Path) -> set[str]:
    with closing(sqlite3.connect(folder / "index.sqlite")) as index:
        return {name for (name,) in index.execute("SELECT name FROM files")}


def check_dead_folder(folder: Path, max_bytes: int) -> None:
    """What holds at any instant, even of a server that was just killed."""
    assert disk_usage(folder) <= max_bytes
    assert stored_files(folder) <= indexed_files(folder), "a file that nobody counts"


async def check_bounded_blobs(store: BlobStore, folder: Path, program: ModuleType) -> int:
    """How many blobs there are."""
    assert list((folder / "incoming").iterdir()) == []
    blobs = dict(program.numbered_blob(number) for number in range(program.BLOBS))
    present = blobs.keys() - await store.find_missing(blobs)
    for digest in present:
        assert await read(store, digest) == blobs[digest], "a blob is damaged"
    async with store.scrub() as findings:
        found = {finding.digest async for finding in findings if not finding.problem}
    # What was left above the bound is made room for meanwhile; nothing comes.
    assert blobs.keys() - await store.find_missing(blobs) <= found <= present
    return len(present)


@pytest.mark.parametrize(
    "rounds", [10, pytest.param(200, marks=pytest.mark.slow)], ids=["few", "many"]
)
async def test_killed_at_any_moment_within_a_bound(tmp_path: Path, rounds: int) -> None:
    # STO-01, STO-02, BSW-24
    program = load_program(USER)
    context = spi.Context("mine", tmp_path, {})
    provider = stoker_blob_stores()["disk"]
    seen = {"blobs": 0, "incoming": 0, "partial": 0}
    for _ in range(rounds):
        run_until_killed(USER, str(tmp_path), lines=random.randrange(80))
        for name in ("incoming", "partial"):
            seen[name] += len(list((tmp_path / "blobs" / name).glob("*")))
        if (tmp_path / "results" / "sha256").exists():
            check_dead_folder(tmp_path / "blobs", program.MAX_BYTES)
            check_dead_folder(tmp_path / "results", program.MAX_RESULT_BYTES)
        async with provider.open(program.SETTINGS, context) as store:
            seen["blobs"] += await check_bounded_blobs(store, tmp_path / "blobs", program)
            kept = sum(file.stat().st_size for file in (tmp_path / "blobs" / "partial").iterdir())
            assert kept <= program.MAX_BYTES // 10
    assert all(seen.values()), f"something was never tried: {seen}"
    at_once = msgspec.structs.replace(program.SETTINGS, partial_life_seconds=0.0)
    async with provider.open(at_once, context) as store:
        assert list((tmp_path / "blobs" / "partial").iterdir()) == []
        # All room that is not taken by blobs can be had.
        await write(store, *blob("all of it", program.MAX_BYTES))
