"""Write to the stores in the folder given until killed; say what was answered. A program.

Each line on stdout is the number of a blob, or ``r`` and the number of an action result, that
the store has confirmed. The second argument makes the blobs of one run differ from another's.
"""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

import trio

from stoker import spi
from stoker.spi import SHA256, ActionKey, ActionResult, Digest
from stoker.storage.verifying import VerifyingBlobStore
from stoker.testing.blob_store_laws import blob, write
from stoker_storage_disk import (
    DiskActionCacheSettings,
    DiskSettings,
    stoker_action_caches,
    stoker_blob_stores,
)

BLOBS = 300
RESULTS = 10


def numbered_blob(run: str, number: int) -> tuple[Digest, bytes]:
    """A third of them large enough for a part file of several pieces."""
    return blob(f"{run} {number}", 300_000 + number if number % 3 == 0 else 1 + number * 37)


def numbered_key(number: int) -> ActionKey:
    return ActionKey("main", SHA256.digest(b"%d" % number))


def some_result(generation: int) -> ActionResult:
    """A result whose damage would show: one byte, many times."""
    return ActionResult(stdout_raw=bytes([generation % 256]) * (generation % 50_000))


async def write_blobs(store: spi.BlobStore, run: str) -> None:
    while True:
        numbers = random.sample(range(BLOBS), 4)
        if numbers[0] % 2:
            digest, data = numbered_blob(run, numbers[0])
            await write(store, digest, data, piece_bytes=100_000)
            del numbers[1:]
        else:
            assert not await store.write_many(dict(numbered_blob(run, n) for n in numbers))
        print(*numbers, sep="\n", flush=True)


async def write_results(cache: spi.ActionCache) -> None:
    for generation in itertools.count(random.randrange(1_000_000)):
        number = generation % RESULTS
        await cache.update(numbered_key(number), some_result(generation))
        print(f"r{number}", flush=True)


async def main(folder: Path, run: str) -> None:
    context = spi.Context("mine", folder, {})
    blobs = stoker_blob_stores()["disk"].open(DiskSettings(path="blobs"), context)
    results = stoker_action_caches()["disk"].open(DiskActionCacheSettings(path="results"), context)
    async with blobs as store, results as cache, trio.open_nursery() as nursery:
        nursery.start_soon(write_results, cache)
        for _ in range(6):
            nursery.start_soon(write_blobs, VerifyingBlobStore(store), run)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])
