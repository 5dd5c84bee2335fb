"""A server that is killed while somebody reads what an action prints (OPS-16, LOG-06)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from .server_process import LOCAL, open_server_process

pytestmark = pytest.mark.slow

STEPWISE = """exec 3<"$0"
while read word <&3 && [ "$word" != end ]; do echo "$word"; done"""


def read(stream: IO[bytes] | None, count: int) -> bytes:
    assert stream is not None
    return stream.read(count)


def test_a_server_that_is_killed_in_the_midst(tmp_path: Path) -> None:
    """The action is run again, and what it prints is shown from its beginning, told apart."""
    toml = LOCAL.replace('"127.0.0.1:0"', f'"unix:{tmp_path}/socket"')
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
    (tmp_path / "inputs").mkdir()
    with open_server_process(tmp_path / "server", toml) as server:
        command = f"{sys.executable} -m stoker run --server unix:{tmp_path}/socket"
        inputs = ("--input-root", str(tmp_path / "inputs"))
        client = subprocess.Popen(
            [*command.split(), *inputs, "--", "sh", "-c", STEPWISE, str(fifo)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.write(words, b"one\n")
        assert read(client.stdout, 4) == b"one\n"
        server.kill()
    with open_server_process(tmp_path / "server", toml):
        os.write(words, b"two\n")
        assert read(client.stdout, 4) == b"two\n"
        os.write(words, b"more\nend\n")
        rest, err = client.communicate(timeout=60)
    os.close(words)
    assert (client.returncode, rest) == (0, b"more\n"), err
    assert b"Warning: the action is run again" in err
