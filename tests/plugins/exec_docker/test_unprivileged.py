"""A server without root's rights, whose user may open the engine's socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.docker_engine import BUSYBOX
from tests.unprivileged import NOBODY, unprivileged_python

TOML = """
[server]
listen = ["127.0.0.1:0"]
[blob_stores.main]
kind = "disk"
path = "cas"
[action_caches.main]
kind = "disk"
path = "actions"
[strategies.boxes]
kind = "docker"
endpoint = "{endpoint}"
default_image = "{image}"
pull = "never"
[executors.boxes]
strategy = "boxes"
slots = 2
properties = {{ dockerReuse = "*", dockerNetwork = "*", dockerRunAsRoot = "*", dockerUser = "*" }}
[instances.""]
blob_store = "main"
action_cache = "main"
executors = ["boxes"]
"""


@pytest.fixture
def open_endpoint(endpoint: str) -> Iterator[str]:
    """The engine, with a socket that our user's group may open."""
    socket = Path(endpoint.removeprefix("unix://"))
    if "DOCKER_HOST" in os.environ:
        pytest.skip("rights to the engine's socket are not ours to change")
    socket.parent.chmod(0o711)
    os.chown(socket, 0, NOBODY)
    yield endpoint
    os.chown(socket, 0, 0)


@contextmanager
def serving(folder: Path, endpoint: str) -> Iterator[str]:
    """The address of a server that ends with the context, in good order."""
    command, environment = unprivileged_python("grpc", "stoker.cli", "stoker_exec_docker")
    (folder / "stoker.toml").write_text(TOML.format(endpoint=endpoint, image=BUSYBOX))
    os.chown(folder, NOBODY, NOBODY)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "-m", "stoker", "serve", "--port-file", "address"],
            cwd=folder,
            env=environment,
            stderr=log,
        )
    try:
        while not (folder / "address").exists():
            assert server.poll() is None, (folder / "log").read_text()
            trio.run(trio.sleep, 0.05)
        yield (folder / "address").read_text().strip()
    finally:
        server.terminate()
        assert server.wait(60) == 0


def execute(address: str, input_root: Path, *arguments: str) -> dict[str, Any]:
    """What `stoker run` tells."""
    command = [sys.executable, "-m", "stoker", "run", "--server", address, "--json"]
    done = subprocess.run(
        [*command, "--input-root", str(input_root), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_actions_run_as_the_servers_user_and_are_refused_more(  # ISO-03, ISO-04
    open_endpoint: str, tmp_path: Path
) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "word").write_text("word\n")
    # Below the folder of a test another user may not go.
    with tempfile.TemporaryDirectory(prefix="su-", ignore_cleanup_errors=True) as name:
        with serving(Path(name), open_endpoint) as address:
            script = "id -u; echo more >> word; mkdir made; echo 2 > made/two; chmod 500 made"
            made = execute(address, inputs, "--output", "made", "--", "sh", "-c", script)
            assert (made["exit_code"], made["stdout"]) == (0, f"{NOBODY}\n")
            assert (inputs / "made" / "two").read_text() == "2\n"
            # What it did to its copy of an input is nobody else's concern.
            again = ["--no-cache", "--property", "dockerReuse=True", "--", "cat", "word"]
            assert execute(address, inputs, *again)["stdout"] == "word\n"
            refused = execute(address, inputs, "--property", "dockerUser=4711", "--", "true")
            assert refused["status"]["code"] == "FAILED_PRECONDITION"
            assert "dockerUser=4711" in refused["status"]["message"]
            late = execute(address, inputs, "--timeout", "1", "--", "sleep", "1000")
            assert late["status"]["code"] == "DEADLINE_EXCEEDED"
        left = subprocess.run(
            ["docker", "-H", open_endpoint, "ps", "--all", "--quiet"],
            capture_output=True,
            check=True,
        )
        assert left.stdout == b""
        folders = Path(name, "stoker-state", "executors", "boxes").iterdir()
        assert [each.name for each in folders] == ["lock"]
