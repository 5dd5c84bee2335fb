"""Use a store with a small bound in every way until killed, and check all that it says. A program.

A line on stdout is the name of something that was done. What is wrong ends the program.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import trio

from stoker import spi
from stoker.spi import (
    SHA256,
    ActionKey,
    ActionResult,
    BlobNotFound,
    BlobStore,
    Digest,
    StorageFull,
    UploadInProgress,
)
from stoker.testing.blob_store_laws import blob, read, upload_rest, write
from stoker_storage_disk import (
    DiskActionCacheSettings,
    DiskSettings,
    stoker_action_caches,
    stoker_blob_stores,
)

BLOBS = 300
MAX_BYTES = 780 * 4096
"""A tenth of all the blobs."""
MAX_RESULT_BYTES = 400_000
SETTINGS = DiskSettings(path="blobs", max_bytes=MAX_BYTES, min_life_seconds=0.0)
RESULT_SETTINGS = DiskActionCacheSettings(path="results", max_bytes=MAX_RESULT_BYTES)


class _BrokenOff(Exception):
    """Stands for a connection that is lost."""


def numbered_blob(number: int) -> tuple[Digest, bytes]:
    """A third of them large enough for a part file of several pieces."""
    return blob(f"{number}", 300_000 + number if number % 3 == 0 else 1 + number * 37)


def some_blob() -> tuple[Digest, bytes]:
    return numbered_blob(random.randrange(BLOBS))


async def write_one(store: BlobStore) -> None:
    digest, data = some_blob()
    await write(store, digest, data, piece_bytes=100_000)


async def write_many(store: BlobStore) -> None:
    blobs = dict(some_blob() for _ in range(5))
    for error in (await store.write_many(blobs)).values():
        assert isinstance(error, StorageFull)


async def upload(store: BlobStore) -> None:
    digest, data = some_blob()
    name = random.choice("ab")
    if random.random() < 0.5:
        await upload_rest(store, digest, data, name)
    else:
        with suppress(_BrokenOff):
            await break_off(store, digest, data[: len(data) * 2 // 3], name)


async def break_off(store: BlobStore, digest: Digest, data: bytes, name: str) -> None:
    async with store.open_upload(digest, name) as upload:
        await upload.write(data[upload.offset :])
        raise _BrokenOff


async def read_one(store: BlobStore) -> None:
    digest, data = some_blob()
    assert await read(store, digest) == data


async def read_many(store: BlobStore) -> None:
    blobs = dict(some_blob() for _ in range(20))
    assert (await store.read_many(blobs)).items() <= blobs.items()


async def use_paths(store: BlobStore) -> None:
    blobs = dict(some_blob() for _ in range(3))
    ask = random.choice((store.open_paths, store.open_executable_paths))
    async with ask(blobs) as paths:
        for digest, path in paths.items():
            assert await trio.Path(path).read_bytes() == blobs[digest]


async def keep_on(use: Callable[[BlobStore], Awaitable[None]], store: BlobStore) -> None:
    while True:
        with suppress(BlobNotFound, StorageFull, UploadInProgress):
            await use(store)
            print(use.__name__, flush=True)


async def write_results(cache: spi.ActionCache) -> None:
    while True:
        number = random.randrange(40)
        key = ActionKey("main", SHA256.digest(b"%d" % number))
        result = await cache.get(key)
        assert result is None or len(set(result.stdout_raw)) <= 1
        stdout = bytes([random.randrange(256)]) * random.randrange(40_000)
        await cache.update(key, ActionResult(stdout_raw=stdout))
        print("write_results", flush=True)


async def main(folder: Path) -> None:
    context = spi.Context("mine", folder, {})
    blobs = stoker_blob_stores()["disk"].open(SETTINGS, context)
    results = stoker_action_caches()["disk"].open(RESULT_SETTINGS, context)
    async with blobs as store, results as cache, trio.open_nursery() as nursery:
        nursery.start_soon(write_results, cache)
        for use in (write_one, write_many, upload, upload, read_one, read_many, use_paths):
            nursery.start_soon(keep_on, use, store)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
