"""Blobs in and out of a store, whichever it is, and the same bytes in and out of plain files."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from stoker.digest import SHA256, Digest
from stoker.spi import BlobStore, Context
from stoker.storage.verifying import VerifyingBlobStore
from stoker_storage_disk import DiskSettings, stoker_blob_stores

PIECE_BYTES = 1024 * 1024
SMALL_BYTES = 4096
LARGE_MIB = 64

Blobs = Mapping[Digest, bytes]


def new_blobs(count: int, size_bytes: int) -> Blobs:
    """Blobs that nobody has seen before."""
    contents = (os.urandom(size_bytes) for _ in range(count))
    return {SHA256.digest(data): data for data in contents}


@asynccontextmanager
async def open_disk_store(folder: Path) -> AsyncIterator[BlobStore]:
    """The disk store in `folder`, hashing what comes in, as it is in a server."""
    settings = DiskSettings(path=str(folder))
    async with stoker_blob_stores()["disk"].open(settings, Context("disk", folder, {})) as store:
        yield VerifyingBlobStore(store)


# --- a store


async def write_batch(store: BlobStore, blobs: Blobs) -> None:
    """Small blobs, as many a call as come at once."""
    assert await store.write_many(blobs) == {}


async def read_batch(store: BlobStore, blobs: Blobs) -> None:
    """Small blobs, as many a call as are wanted at once."""
    found = await store.read_many(blobs)
    assert len(found) == len(blobs)


async def write_streams(store: BlobStore, blobs: Blobs) -> None:
    """Large blobs, one after the other, in pieces of 1 MiB."""
    for digest, data in blobs.items():
        whole = memoryview(data)
        async with store.open_write(digest) as writer:
            for start in range(0, len(whole), PIECE_BYTES):
                await writer.write(whole[start : start + PIECE_BYTES])


async def read_streams(store: BlobStore, blobs: Blobs) -> None:
    """Large blobs, one after the other, in pieces of up to 1 MiB."""
    for digest in blobs:
        received = 0
        async with store.open_read(digest) as reader:
            while data := await reader.read(PIECE_BYTES):
                received += len(data)
        assert received == digest.size_bytes


# --- plain files


def write_files(folder: Path, blobs: Blobs) -> None:
    """Each blob to a temporary file, which then gets its name."""
    for digest, data in blobs.items():
        temporary = folder / "temporary"
        temporary.write_bytes(data)
        temporary.rename(folder / digest.hash)


def read_files(folder: Path, blobs: Blobs) -> None:
    """What `write_files` has written, in pieces of up to 1 MiB."""
    for digest in blobs:
        with (folder / digest.hash).open("rb", buffering=0) as file:
            while file.read(PIECE_BYTES):
                pass
