"""Use very many blobs of a store whose disk, at the path given, is full to the byte. A program."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import trio

from stoker import spi
from stoker.spi import SHA256, StorageFull
from stoker.testing.blob_store_laws import blob
from stoker_storage_disk import DiskSettings, ledger, stoker_blob_stores

DISK = Path(sys.argv[1])
# As many uses that they have to be noted at once, which takes room. Fewer than with the true
# bound: what matters is that it is passed.
ledger.MANY = 2_000
BLOBS = {SHA256.digest(b"%d" % number): b"%d" % number for number in range(ledger.MANY + 1)}


def fill_disk() -> Path:
    filler = DISK / "filler"
    with filler.open("wb", buffering=0) as opened, suppress(OSError):
        while opened.write(bytes(4096)):
            pass
    return filler


async def main() -> None:
    provider = stoker_blob_stores()["disk"]
    settings = DiskSettings(path="blobs", min_life_seconds=0)
    async with provider.open(settings, spi.Context("mine", DISK, {})) as store:
        assert await store.write_many(BLOBS) == {}
        filler = fill_disk()
        for _ in range(2):
            assert await store.find_missing(BLOBS.keys()) == set()
        assert await store.read_many(BLOBS) == BLOBS
        absent, data = blob("absent", 10)
        assert isinstance((await store.write_many({absent: data}))[absent], StorageFull)
        filler.unlink()
        assert await store.write_many({absent: data}) == {}
    print("all is well")


trio.run(main)
