"""The disk store: blobs in and out, a start with a million blobs, and eviction.

Blobs of 4 KiB go in and out in one batch, larger ones as streams in pieces of 1 MiB. "Disk store"
is the store alone in this process, hashing included; "gRPC" is the same store in a server of its
own, and stoker's client in this process. Plain files are written under another name and renamed,
and never hashed. All is in the system's cache, nothing is synced to the disk.

Of the million blobs there is only the index: a million rows as the store writes them, and one file.
That is all that a start looks at after an orderly end. Nothing is said of a start without an index,
for which all files have to be listed. Time is that from the opening until the first answer, in
a new process; its memory is the most that it ever had resident. Against both stands a limit.

Eviction is what the first write has to wait for in a store that was opened anew with a bound of a
tenth of what it holds. Against it, as many files are unlinked in a plain loop.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import trio

from bench.measurement import Cost, Pair, Row, cost_here, in_turns
from bench.servers import open_stoker
from bench.transfers import (
    LARGE_MIB,
    PIECE_BYTES,
    SMALL_BYTES,
    Blobs,
    new_blobs,
    open_disk_store,
    read_batch,
    read_files,
    read_streams,
    write_batch,
    write_files,
    write_streams,
)
from stoker.client.far_side import RemoteSettings
from stoker.client.store import open_remote_blob_store
from stoker.digest import Digest
from stoker.spi import BlobStore, Context
from stoker_storage_disk import DiskSettings, stoker_blob_stores
from stoker_storage_disk.index import Index, IndexedFile, now_ms

FILES = "plain files"
START_SECONDS = 1.0
MEMORY_BYTES = 200e6
_ROWS_AT_ONCE = 20_000

Move = Callable[[BlobStore, Blobs], Awaitable[None]]


class _Size(NamedTuple):
    """Blobs of one size, and how they go in and out of a store."""

    what: str
    number: int
    size_bytes: int
    write: Move
    read: Move


def measure(*, quick: bool) -> list[Row]:
    """Rows for the store alone and through gRPC, for a start, and for eviction."""
    return [
        *trio.run(_measure_transfers, quick),
        *_measure_start(20_000 if quick else 1_000_000, rounds=2 if quick else 5),
        trio.run(_measure_eviction, 1_000 if quick else 10_000, 2 if quick else 5),
    ]


# --- in and out


async def _measure_transfers(quick: bool) -> list[Row]:
    mib, rounds = (4, 2) if quick else (LARGE_MIB, 5)
    sizes = [
        _Size("blobs of 4 KiB", 100 if quick else 2_000, SMALL_BYTES, write_batch, read_batch),
        _Size(f"blob of {mib} MiB", 1, mib * PIECE_BYTES, write_streams, read_streams),
    ]
    with _temporary_folder() as folder, open_stoker("disk") as server:
        settings = RemoteSettings(target=server.address)
        async with (
            open_disk_store(folder / "store") as alone,
            open_remote_blob_store(settings, Context("remote", folder, {})) as remote,
        ):
            comparison = _Comparison(folder / "files", alone, remote, rounds)
            return [row for size in sizes for row in await comparison.rows(size)]


class _Comparison:
    def __init__(self, files: Path, alone: BlobStore, remote: BlobStore, rounds: int) -> None:
        files.mkdir()
        self._files = files
        self._alone = alone
        self._remote = remote
        self._rounds = rounds

    async def rows(self, size: _Size) -> list[Row]:
        def new() -> Blobs:
            return new_blobs(size.number, size.size_bytes)

        async def write_to(store: BlobStore) -> Cost:
            blobs = new()
            return await cost_here(lambda: size.write(store, blobs))

        async def read_from(store: BlobStore) -> Cost:
            return await cost_here(lambda: size.read(store, known))

        known = new()
        await size.write(self._alone, known)
        await size.write(self._remote, known)
        write_files(self._files, known)
        writes = await in_turns(
            self._rounds,
            lambda: write_to(self._alone),
            lambda: write_to(self._remote),
            lambda: self._cost_of_files(write_files, new()),
        )
        reads = await in_turns(
            self._rounds,
            lambda: read_from(self._alone),
            lambda: read_from(self._remote),
            lambda: self._cost_of_files(read_files, known),
        )
        return [
            Pair(ours, costs[-1]).wall_row(
                f"{size.what}, {way}, {route}", FILES, unit=unit, per_second=per_second
            )
            for unit, per_second in [("ms", 1e3) if size.number == 1 else ("µs", 1e6 / size.number)]
            for way, costs in (("in", writes), ("out", reads))
            for route, ours in zip(("disk store", "gRPC"), costs[:2], strict=True)
        ]

    async def _cost_of_files(self, work: Callable[[Path, Blobs], None], blobs: Blobs) -> Cost:
        return await cost_here(lambda: trio.to_thread.run_sync(work, self._files, blobs))


# --- start


def _measure_start(count: int, rounds: int) -> list[Row]:
    with _temporary_folder() as folder:
        _fill_index(folder, count)
        digest = trio.run(_write_one, folder)
        starts = [_start(folder, digest) for _ in range(rounds)]
    seconds, resident_bytes = zip(*starts, strict=True)
    return [
        Row(
            what=f"start with {count:,} blobs",
            unit="ms",
            ours=[value * 1e3 for value in seconds],
            against="the limit",
            theirs=[START_SECONDS * 1e3] * rounds,
            at_most=1.0,
        ),
        Row(
            what=f"memory with {count:,} blobs",
            unit="MB",
            ours=[value / 1e6 for value in resident_bytes],
            against="the limit",
            theirs=[MEMORY_BYTES / 1e6] * rounds,
            at_most=1.0,
        ),
    ]


def _fill_index(folder: Path, count: int) -> None:
    # In the order of the primary key, which is the quickest to insert.
    names = iter(sorted(hashlib.sha256(b"%d" % number).hexdigest() for number in range(count)))
    index, used_ms = Index(str(folder)), now_ms()
    while some := list(islice(names, _ROWS_AT_ONCE)):
        index.add_found(
            [IndexedFile(f"sha256/{name[:2]}/{name}-4096", 4096, used_ms, 0) for name in some]
        )
        index.checkpoint()
    index.mark_complete(complete=True)
    index.close()


async def _write_one(folder: Path) -> Digest:
    async with open_disk_store(folder) as store:
        blobs = new_blobs(1, SMALL_BYTES)
        await write_batch(store, blobs)
    return next(iter(blobs))


def _start(folder: Path, digest: Digest) -> tuple[float, int]:
    program = str(Path(__file__).with_name("first_answer.py"))
    command = [sys.executable, program, str(folder), digest.hash, str(digest.size_bytes)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, resident_bytes = finished.stdout.split()
    return float(seconds), int(resident_bytes)


# --- eviction


async def _measure_eviction(count: int, rounds: int) -> Row:
    evicted = count - count // 10 + 1
    store, plain = await in_turns(
        rounds, lambda: _cost_of_eviction(count, evicted), lambda: _cost_of_unlinking(evicted)
    )
    return Pair(store, plain).wall_row(
        f"evict {evicted:,} blobs", "unlink", unit="µs", per_second=1e6 / evicted
    )


async def _cost_of_eviction(count: int, evicted: int) -> Cost:
    with _temporary_folder() as folder:
        async with open_disk_store(folder) as store:
            await write_batch(store, new_blobs(count, SMALL_BYTES))
        one = new_blobs(1, SMALL_BYTES)

        async def write_into_a_tenth() -> None:
            # Nothing is evicted but what has to be.
            settings = DiskSettings(
                path=str(folder),
                max_bytes=count // 10 * SMALL_BYTES,
                min_life_seconds=0,
                high_water=1,
                low_water=1,
            )
            provider = stoker_blob_stores()["disk"]
            async with provider.open(settings, Context("bounded", folder, {})) as store:
                await write_batch(store, one)

        cost = await cost_here(write_into_a_tenth)
        left = sum(1 for _ in folder.glob("sha256/*/*"))
        # The store makes a hundredth of its bound more room than was asked for, which is a
        # thousandth of what is evicted here.
        assert 0 <= count + 1 - evicted - left <= count // 500
        return cost


async def _cost_of_unlinking(count: int) -> Cost:
    with _temporary_folder() as folder:
        paths = [folder / f"{number % 256:02x}" / str(number) for number in range(count)]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(SMALL_BYTES))

        def unlink() -> None:
            for path in paths:
                path.unlink()

        return await cost_here(lambda: trio.to_thread.run_sync(unlink))


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as name:
        yield Path(name)
