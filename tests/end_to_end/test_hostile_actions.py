"""Actions that do their worst harm neither blobs, nor each other, nor the server."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from stoker.client import RemoteInstance, open_remote, stage_of
from stoker.protos import remote_execution_pb2 as reapi

from .actions import Tree, action_blobs
from .isolation import ISOLATIONS, executor_table, isolating_toml, isolations, needs_root
from .server_process import ServerProcess, open_server_process

TOOL = Path(__file__).with_name("hostile_tool.py")
PYTHON = "/usr/bin/python3"
SECRET = "8f1c0e-secret"
TASKS = ("vandalise", "look")

_numbers = itertools.count()


class Place(NamedTuple):
    """A server, and the folder of all that is its own."""

    server: ServerProcess
    folder: Path

    @property
    def blobs(self) -> Iterator[Path]:
        return (path for path in (self.folder / "cas" / "sha256").rglob("*-*") if path.is_file())


@contextmanager
def open_place(toml: str) -> Iterator[Place]:
    # Not in pytest's own folder, which no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="stoker-"))
    folder.chmod(0o711)
    try:
        with open_server_process(folder / "server", toml, {"STOKER_SENTINEL": SECRET}) as server:
            yield Place(server, folder / "server")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with open_place(isolating_toml(slots=2)) as found:
        yield found


def hostile_tree() -> Tree:
    number = next(_numbers)  # so that no blob is one that an earlier test has seen
    names = re.findall(r"^def (\w+)\(path: str\) -> None", TOOL.read_text(), re.MULTILINE)
    tree = Tree(links={"inputs/link": "write/file"}, folders={"inputs/empty"})
    tree.files = {f"inputs/{name}/file": f"{name} {number}".encode() * 50 for name in names}
    tree.files |= {f"inputs/{name}/other": f"{number} {name}".encode() for name in names}
    tree.files |= {f"flags/{task}": f"{task}\n".encode() for task in TASKS}
    tree.files["tool.py"] = TOOL.read_bytes()
    tree.executables = {f"inputs/{name}/file" for name in names[::2]}
    return tree


async def perform(
    remote: RemoteInstance, isolation: str, task: str, tree: Tree, *, worker: bool
) -> dict[str, object]:
    root, blobs = tree.blobs()
    words = f"@flags/{task}" if worker else task
    platform = {"isolation": isolation}
    if worker:
        platform |= {"persistentWorkerKey": "key", "persistentWorkerProtocol": "json"}
    action, own = action_blobs([PYTHON, "tool.py", words], root, platform=platform)
    await remote.upload_blobs({**blobs, **own})
    response = await remote.run(action)
    said = (await read(remote, response.result.stderr_digest)).decode()
    assert (response.status.code, response.result.exit_code) == (0, 0), (response, said)
    assert response.message == ""  # not run otherwise than asked for
    told: dict[str, object] = json.loads(said)
    return told


async def read(remote: RemoteInstance, digest: reapi.Digest) -> bytes:
    if not digest.size_bytes:
        return b""
    return await remote.read_blob(remote.digest_function.parse(digest))


def states(place: Place) -> dict[Path, tuple[int, ...]]:
    found = {}
    for path in place.blobs:
        status = path.stat()
        owner = (status.st_uid, status.st_gid)
        found[path] = (status.st_ino, status.st_mode, status.st_mtime_ns, status.st_size, *owner)
    return found


def assert_intact(place: Place) -> None:
    """Every blob has the bytes that its name says, and scrubbing agrees."""
    checked = 0
    for path in place.blobs:
        name = path.name.removesuffix(".x")
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name.split("-")[0], path
        assert not os.listxattr(path)
        checked += 1
    assert checked > 50
    command = [sys.executable, "-m", "stoker", "cas", "scrub"]
    config = ["--config", str(place.folder / "stoker.toml")]
    scrub = subprocess.run([*command, *config], capture_output=True, text=True, check=False)
    assert scrub.returncode == 0, scrub.stdout
    assert "blobs checked" in scrub.stdout


def nearby(tree: Tree) -> Tree:
    """Most of it the same."""
    files = dict(tree.files)
    del files["inputs/write_unseen/other"]
    files["inputs/write/file"] = b"another content"
    files["inputs/new/file"] = b"a new one"
    links = {**tree.links, "inputs/empty/link": "nowhere"}
    return Tree(files, tree.executables - {"inputs/write/file"}, links, tree.folders)


@pytest.mark.parametrize("worker", [False, True], ids=["one-shot", "worker"])
@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_vandals_harm_neither_blobs_nor_the_next_action(
    place: Place, isolation: str, worker: bool
) -> None:
    # RUN-02, RUN-25, ISO-07
    tree = hostile_tree()
    async with open_remote(place.server.address) as remote:
        assert await perform(remote, isolation, "look", tree, worker=worker) == tree.contents()
        before = states(place)
        outcomes = await perform(remote, isolation, "vandalise", tree, worker=worker)
        assert await perform(remote, isolation, "look", tree, worker=worker) == tree.contents()
        await perform(remote, isolation, "vandalise", tree, worker=worker)
        other = nearby(tree)
        assert await perform(remote, isolation, "look", other, worker=worker) == other.contents()
        if not worker:
            await perform(remote, isolation, "linger", tree, worker=False)
            assert await perform(remote, isolation, "temporary", tree, worker=False) == []
            assert await perform(remote, isolation, "look", tree, worker=False) == tree.contents()
    after = states(place)
    assert {path: after.get(path) for path in before} == before
    assert_intact(place)
    # It did try: what its inputs' owner may do went well, and what no isolation forbids.
    assert outcomes["replace"] == outcomes["remove_the_folder"] == ""
    if isolation in ("copies", "overlay"):
        assert outcomes["write_after_chmod"] == outcomes["write_through_a_map"] == ""
