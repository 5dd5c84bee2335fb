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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
import trio

from stoker.client import Operations, RemoteInstance, open_remote, response_of, stage_of
from stoker.digest import SHA256
from stoker.protos import remote_execution_pb2 as reapi

from .actions import Tree, action_blobs
from .isolation import ISOLATIONS, executor_table, isolating_toml, needs_bubblewrap, needs_root
from .remains import marked
from .server_process import ServerProcess, open_server_process

pytestmark = pytest.mark.slow

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
) -> object:
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
    return json.loads(said)


async def read(remote: RemoteInstance, digest: reapi.Digest) -> bytes:
    if not digest.size_bytes:
        return b""
    return await remote.read_blob(remote.digest_function.parse(digest))


def states(place: Place) -> dict[Path, tuple[int, ...]]:
    found: dict[Path, tuple[int, ...]] = {}
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
        assert isinstance(outcomes, dict)
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


async def spy(place: Place, remote: RemoteInstance, isolation: str) -> dict[str, bool]:
    """What one action finds of what is none of its business, while another one runs beside it."""
    tree = Tree({"tool.py": TOOL.read_bytes()})
    secret = Tree({"input": f"{SECRET} {isolation}".encode()})
    root, blobs = secret.blobs()
    script = f"echo {SECRET} >made; mkfifo $TMPDIR/fifo; read line <$TMPDIR/fifo; ls >&2"
    victim, own = action_blobs(
        ["sh", "-c", script],
        root,
        platform={"isolation": isolation},
        environment={"HIDDEN": SECRET},
    )
    await remote.upload_blobs({**blobs, **own})
    state = place.folder / "stoker-state" / "executors" / isolation
    async with remote.execute(victim) as operations:
        await operations.__anext__()
        fifo = await appearance(state, "life-*/actions/*/tmp/fifo")
        places: dict[str, list[Path]] = {
            "root": [path for path in fifo.parents[1].rglob("*") if path.is_dir()],
            "store": [path.parent for path in place.blobs if SECRET.encode() in path.read_bytes()],
            "configuration": [place.folder],
            "environment": [],
        }
        given = [str(path) for paths in places.values() for path in paths]
        root, blobs = tree.blobs()
        action, own = action_blobs(
            [PYTHON, "tool.py", "spy", *given], root, platform={"isolation": isolation}
        )
        await remote.upload_blobs({**blobs, **own})
        response = await remote.run(action)
        assert (response.status.code, response.result.exit_code) == (0, 0), response
        seen = json.loads(await read(remote, response.result.stderr_digest))
        fifo.write_text("go on\n")
        told = await end_of(operations)
        listing = (await read(remote, told.result.stderr_digest)).decode().split()
    found = {
        route: any(SECRET in seen.get(str(path), "") for path in paths)
        for route, paths in places.items()
    }
    found["configuration"] = "[server]" in seen.get(str(place.folder), "")
    found["environment"] = any(SECRET in text for name, text in seen.items() if "/proc/" in name)
    found["planted"] = "planted" in listing
    return found


async def end_of(operations: Operations) -> reapi.ExecuteResponse:
    """How an action ended."""
    response = reapi.ExecuteResponse()
    async for operation in operations:
        if operation.done:
            response = response_of(operation)
    return response


async def appearance(folder: Path, pattern: str) -> Path:
    """A file that an action is about to make."""
    with trio.fail_after(60):
        while not (found := list(folder.glob(pattern))):
            await trio.sleep(0.02)
    return found[0]


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_sandbox_shows_nothing_of_the_server_nor_of_other_actions(
    place: Place, isolation: str
) -> None:
    # ISO-07, ISO-08, RUN-10
    secret = SECRET.encode()
    (place.folder / "stoker.toml").chmod(0o600)
    async with open_remote(place.server.address) as remote:
        await remote.upload_blobs({SHA256.digest(secret): secret})
        found = await spy(place, remote, isolation)
    if isolation in ("as-laid", "overlay"):
        assert not any(found.values()), found
    elif isolation == "copies" and os.geteuid() == 0:
        assert all(found.values()), f"the spy sees nothing, even where it may: {found}"


GREEDY = "held = [bytearray(b'1' * 2**20) for _ in range(1000)]"
FORKING = "import os\nwhile True: os.fork()"
FORKING_ON = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(5):
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        break
print("begun", flush=True)
time.sleep(1000)
"""
PROCESSES = 64
LIMITS_TOML = isolating_toml(
    slots=2,
    settings=f"limits.max_processes = {PROCESSES}",
    more={
        "bounded": executor_table("bounded", 2, strategy="bounded")
        + '[strategies.bounded]\nkind = "local"\nmax_memory_bytes = 314572800\n'
    },
)


class Misdeed(NamedTuple):
    arguments: list[str]
    told: str
    """Part of what the client is told, of limit and executor."""
    exit_code: int | None
    status: int = 0
    platform: Mapping[str, str] = MappingProxyType({})
    timeout_seconds: int | None = None


MISDEEDS = {
    "fork bomb": Misdeed(
        [PYTHON, "-c", FORKING],
        f"on executor EXECUTOR: out of processes: the limit is {PROCESSES}",
        exit_code=1,
    ),
    "fork bomb that goes on": Misdeed(
        [PYTHON, "-c", FORKING_ON], "2 s", exit_code=None, status=4, timeout_seconds=2
    ),
    "all memory": Misdeed(
        [PYTHON, "-c", GREEDY],
        "on executor EXECUTOR: out of memory: the limit is 209715200 bytes",
        exit_code=137,
        platform={"memory": "200MiB"},
    ),
    "large output": Misdeed(
        ["truncate", "-s", "100G", "out"], "executor EXECUTOR", exit_code=0, status=9
    ),
    "deaf to TERM": Misdeed(
        [PYTHON, "-c", STUBBORN], "1 s", exit_code=None, status=4, timeout_seconds=1
    ),
}


@pytest.fixture(scope="module")
def limited() -> Iterator[Place]:
    with open_place(LIMITS_TOML) as found:
        yield found


async def do(
    remote: RemoteInstance, executor: str, misdeed: Misdeed, mark: str
) -> reapi.ExecuteResponse:
    action, blobs = action_blobs(
        misdeed.arguments,
        outputs=["out"],
        platform={"isolation": executor, **misdeed.platform},
        environment={"MISDEED": mark},
        timeout_seconds=misdeed.timeout_seconds,
        do_not_cache=False,
    )
    await remote.upload_blobs(blobs)
    response = await remote.run(action)
    assert not response.cached_result
    assert await remote.action_result(action) is None
    return response


@contextmanager
def neighbour_script(place: Place) -> Iterator[tuple[str, Path]]:
    """A script that ends well once the file is there."""
    let_on = place.folder / f"let-on-{next(_numbers)}"
    yield f"while [ ! -e {let_on} ]; do sleep 0.02; done; echo well", let_on


async def assert_harmless(
    place: Place, executor: str, beside: str, misdeed: Misdeed
) -> reapi.ExecuteResponse:
    """Do it while a neighbour runs on the executor `beside`."""
    mark = f"misdeed-{os.getpid()}-{next(_numbers)}"
    async with open_remote(place.server.address) as remote:
        with neighbour_script(place) as (script, let_on):
            neighbour, blobs = action_blobs(["sh", "-c", script], platform={"isolation": beside})
            await remote.upload_blobs(blobs)
            async with remote.execute(neighbour) as operations:
                async for operation in operations:
                    if stage_of(operation) == reapi.ExecutionStage.EXECUTING:
                        break
                response = await do(remote, executor, misdeed, mark)
                assert marked(mark) == {}
                let_on.touch()
                told = await end_of(operations)
        said = await read(remote, told.result.stdout_digest)
    assert (told.status.code, told.result.exit_code, said) == (0, 0, b"well\n"), told
    assert place.server.process.poll() is None
    return response


@needs_root  # for the control groups
@pytest.mark.parametrize("isolation", ["copies", pytest.param("overlay", marks=needs_bubblewrap)])
@pytest.mark.parametrize("name", MISDEEDS)
async def test_misdeeds_end_with_a_clear_result(limited: Place, name: str, isolation: str) -> None:
    # RUN-19, RUN-21, RUN-22, RUN-23, OUT-25, ISO-06
    misdeed = MISDEEDS[name]
    response = await assert_harmless(limited, isolation, "copies", misdeed)
    assert response.status.code == misdeed.status, response
    told = f"{response.message}\n{response.status.message}"
    assert misdeed.told.replace("EXECUTOR", isolation) in told
    assert isolation in told
    if misdeed.exit_code is not None:
        assert response.result.exit_code == misdeed.exit_code
    if name == "deaf to TERM":
        async with open_remote(limited.server.address) as remote:
            assert await read(remote, response.result.stdout_digest) in (b"begun\n", b"begun\n" * 6)


@needs_root
async def test_all_memory_of_all_actions_is_bounded_without_being_asked(limited: Place) -> None:
    # RUN-23, ISO-06
    greedy = Misdeed([PYTHON, "-c", GREEDY], "", exit_code=137)
    response = await assert_harmless(limited, "bounded", "bounded", greedy)
    assert (response.status.code, response.result.exit_code) == (0, 137), response
    assert "on executor bounded: out of memory: the limit of all actions" in response.message
    assert "314572800 bytes" in response.message
