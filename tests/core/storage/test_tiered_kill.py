"""A server that writes back is killed, and takes its uploads up again."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from stoker.client import open_remote
from stoker.testing.blob_store_laws import blob
from stoker.testing.server import MEMORY_ONLY, open_test_server

TOML = """
[server]
listen = ["127.0.0.1:0"]
drain_seconds = 0.0
[blob_stores.near]
kind = "disk"
path = "cas"
[blob_stores.far]
kind = "remote"
target = "{address}"
[blob_stores.both]
kind = "tiered"
near = "near"
far = "far"
writes = "back"
journal = "uploads"
[action_caches.main]
kind = "memory"
[instances.""]
blob_store = "both"
action_cache = "main"
"""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port_file = folder / "address"
    port_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "stoker", "serve", "--port-file", str(port_file)]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        while not port_file.exists():
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError("the server did not come up")
        yield process, port_file.read_text().strip()
    finally:
        process.terminate()
        process.wait(30)


async def test_killed_before_its_uploads(tmp_path: Path) -> None:  # STO-02, STO-07
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        far_address = f"127.0.0.1:{probe.getsockname()[1]}"
    (tmp_path / "stoker.toml").write_text(TOML.format(address=far_address))
    blobs = dict(blob(f"waiting {size}", size) for size in (10, 100_000, 3_000_000))
    # The far server is not there, so that everything waits.
    with serving(tmp_path) as (process, address):
        async with open_remote(address) as near:
            await near.upload_blobs(blobs)
            assert await near.find_missing(blobs) == set()
        process.kill()
        process.wait()
    far_toml = f'{MEMORY_ONLY}[server]\nlisten = ["{far_address}"]\n'
    async with open_test_server(far_toml, tmp_path / "far"), open_remote(far_address) as far:
        assert await far.find_missing(blobs) == blobs.keys()
        with serving(tmp_path):
            while await far.find_missing(blobs):
                await trio.sleep(0.02)
        for digest, data in blobs.items():
            assert await far.read_blob(digest) == data
    assert (tmp_path / "uploads").read_bytes() == b""
