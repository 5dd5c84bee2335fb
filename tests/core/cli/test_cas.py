"""`stoker cas` as a program, on a whole server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from stoker.digest import SHA256
from stoker.testing.server import MEMORY_ONLY, open_test_server

Stoker = Callable[..., Awaitable["subprocess.CompletedProcess[bytes]"]]


@pytest.fixture
async def cas(tmp_path: Path) -> AsyncIterator[Stoker]:
    async with open_test_server(MEMORY_ONLY, tmp_path) as server:

        async def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
            return await trio.run_process(
                [sys.executable, "-m", "stoker", "cas", *map(str, arguments)],
                env={**os.environ, "STOKER_SERVER": server.address},
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )

        yield run


@pytest.mark.slow
async def test_what_was_put_can_be_found_and_got(cas: Stoker, tmp_path: Path) -> None:
    contents = [b"one", b"", b"one", os.urandom(6_000_000)]
    files = [tmp_path / str(number) for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    put = await cas("put", *files)
    digests = put.stdout.decode().split()
    assert digests == [str(SHA256.digest(content)) for content in contents]
    found = await cas("find", *digests)
    assert (found.returncode, found.stdout.decode().split("\n")[:-1]) == (
        0,
        [f"present {digest}" for digest in digests],
    )
    for digest, content in zip(digests, contents, strict=True):
        got = await cas("get", digest)
        assert (got.returncode, got.stdout, got.stderr) == (0, content, b"")
        assert (await cas("get", digest, "-o", tmp_path / "back")).returncode == 0
        assert (tmp_path / "back").read_bytes() == content


async def test_a_missing_blob_is_told(cas: Stoker) -> None:
    absent = SHA256.digest(b"absent")
    found = await cas("find", absent, SHA256.empty)
    assert (found.returncode, found.stdout.decode()) == (
        1,
        f"missing {absent}\npresent {SHA256.empty}\n",
    )
    got = await cas("get", absent)
    assert (got.returncode, got.stdout) == (1, b"")
    assert absent.hash in got.stderr.decode()
    assert got.stderr.startswith(b"Error: ")


@pytest.mark.parametrize("text", ["abc", "abc/3", f"{'A' * 64}/3", f"{'a' * 64}/-1"])
async def test_a_digest_that_is_none_is_wrong_usage(cas: Stoker, text: str) -> None:
    got = await cas("get", text)
    assert got.returncode == 2
    assert b"DIGEST" in got.stderr


async def test_a_server_that_is_not_there_is_named(cas: Stoker, tmp_path: Path) -> None:
    got = await cas("find", "--server", f"unix:{tmp_path}/nobody", SHA256.empty)
    assert got.returncode == 1
    assert b"nobody" in got.stderr
    assert b"Traceback" not in got.stderr
