"""Collecting the outputs of an action into a disk store, against plain files.

An output directory of 10,000 files of 1 KiB in 500 folders, and one large output. Ours is all that
comes after the command: the outputs are found, hashed and stored, their Tree is written down, and
the store is asked what it lacks. The plain program reads each file, hashes it, and renames it to
its hash; "copied" copies it instead, as for what a persistent worker left. The files lie on the
store's file system, so that large ones are moved. All is in the system's cache, nothing is synced
to the disk. Where they are moved, each round begins with new files, which are not in its figures.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import trio

from bench.measurement import Cost, Pair, Row, cost_here, in_turns
from bench.transfers import PIECE_BYTES, open_disk_store
from stoker.digest import SHA256
from stoker.execution.output_limits import OutputBudget
from stoker.execution.outputs import collect_outputs
from stoker.execution.uploads import Uploads
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobStore

SMALL_BYTES = 1024
FOLDERS = 500
LARGE_MIB = 500


class _Outputs(NamedTuple):
    """What an action left, and how it is collected."""

    what: str
    unit: str
    per_second: float
    make: Callable[[Path], None]
    gives_files: bool


def measure(*, quick: bool) -> list[Row]:
    """Rows for many small outputs, a large one that is moved, and one that is copied."""
    files, mib, rounds = (200, 4, 2) if quick else (10_000, LARGE_MIB, 5)

    def make_small(folder: Path) -> None:
        _make_small(folder, files)

    def make_large(folder: Path) -> None:
        _make_large(folder, mib)

    sorts = [
        _Outputs(f"{files:,} outputs of 1 KiB", "µs", 1e6 / files, make_small, gives_files=True),
        _Outputs(f"output of {mib} MiB, moved", "ms", 1e3, make_large, gives_files=True),
        _Outputs(f"output of {mib} MiB, copied", "ms", 1e3, make_large, gives_files=False),
    ]
    return [trio.run(_measure, outputs, rounds) for outputs in sorts]


async def _measure(outputs: _Outputs, rounds: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as name:
        folder = Path(name)
        async with open_disk_store(folder / "store") as store:
            pair = Pair(
                *await in_turns(
                    rounds,
                    lambda: _cost_of_collecting(store, folder, outputs),
                    lambda: _cost_of_plain_files(folder, outputs),
                )
            )
    return pair.wall_row(
        outputs.what,
        "sha256 and rename" if outputs.gives_files else "sha256 and copy",
        unit=outputs.unit,
        per_second=outputs.per_second,
    )


async def _cost_of_collecting(store: BlobStore, folder: Path, outputs: _Outputs) -> Cost:
    root = folder / "root"
    outputs.make(root)
    budget = OutputBudget(executor="bench", max_files=10**6, max_bytes=2**40)
    command = reapi.Command(output_paths=["out"])

    async def collect() -> None:
        uploads = Uploads(SHA256, store, gives_files=outputs.gives_files)
        await collect_outputs(root, command, uploads, budget)
        await uploads.publish()

    cost = await cost_here(collect)
    shutil.rmtree(root)
    return cost


async def _cost_of_plain_files(folder: Path, outputs: _Outputs) -> Cost:
    root, target = folder / "root", folder / "plain"
    outputs.make(root)
    target.mkdir()
    put = os.rename if outputs.gives_files else shutil.copyfile
    cost = await cost_here(lambda: trio.to_thread.run_sync(_put_all, root / "out", target, put))
    shutil.rmtree(root)
    shutil.rmtree(target)
    return cost


def _put_all(output: Path, target: Path, put: Callable[[str, str], object]) -> None:
    buffer = memoryview(bytearray(PIECE_BYTES))
    for path in _files(output):
        hasher = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                hasher.update(buffer[:count])
        put(str(path), f"{target}/{hasher.hexdigest()}")


def _files(output: Path) -> Iterator[Path]:
    if output.is_file():
        yield output
        return
    for top, _, names in os.walk(output):
        yield from (Path(top, name) for name in names)


def _make_small(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / "out" / f"{number % FOLDERS:03}" / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(SMALL_BYTES))


def _make_large(folder: Path, mib: int) -> None:
    folder.mkdir()
    with (folder / "out").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(PIECE_BYTES))
