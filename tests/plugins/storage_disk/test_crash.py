"""A server killed at any moment leaves whole blobs and whole results, and no litter."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from stoker import spi
from stoker.spi import SHA256, ActionCache, BlobStore
from stoker.testing.blob_store_laws import read
from stoker_storage_disk import (
    DiskActionCacheSettings,
    DiskSettings,
    stoker_action_caches,
    stoker_blob_stores,
)

PROGRAM = Path(__file__).with_name("endless_writer.py")
ROUNDS = 15


def load_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("endless_writer", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_until_killed(folder: Path, run: str, lines: int) -> set[str]:
    """Kill the writer after so many answers. Returns everything that it was answered."""
    command = [sys.executable, str(PROGRAM), str(folder), run]
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
    program = load_program()
    context = spi.Context("mine", tmp_path, {})
    confirmed: set[str] = set()
    left_parts = 0
    for number in range(ROUNDS):
        run = f"run {number}"
        answered = write_until_killed(tmp_path, run, random.randrange(120))
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
