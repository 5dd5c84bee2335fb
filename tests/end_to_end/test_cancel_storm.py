"""Thousands of actions that are cancelled at any moment leave nothing behind."""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from google.longrunning import operations_pb2

from stoker.client import Operations, RemoteInstance, open_remote, stage_of
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import RpcError, StatusCode, open_channel

from .actions import Tree, action_blobs
from .isolation import isolating_toml, isolations
from .remains import (
    children,
    command_lines,
    descendants,
    descriptors,
    groups,
    marked,
    mountinfo,
    wait_ended,
)
from .server_process import open_server_process
from .test_hostile_actions import Place, open_place

pytestmark = pytest.mark.slow

ACTIONS = int(os.environ.get("STOKER_STORM_ACTIONS", "2000"))
AT_ONCE = 32
SLOTS = 4
KEPT_ROOTS = 3
MAX_WORKERS = 2
MARK = f"STORM=storm-{os.getpid()}"
OPEN_FOR_A_WORKER = 10
PATIENCE_SECONDS = 60
STORE = """
max_bytes = 20000000
min_life_seconds = 0
"""
TOML = isolating_toml(
    slots=SLOTS,
    store=STORE,
    settings=f"limits.kept_roots = {KEPT_ROOTS}\nworkers.max_workers = {MAX_WORKERS}",
)

# One that speaks JSON, and is slow at times.
WORKER = b"""
import json, sys, time
for line in sys.stdin:
    words = json.loads(line)["arguments"]
    time.sleep(float(words[0]))
    open(words[1], "w").write("made")
    print(json.dumps({"exitCode": 0, "output": ""}), flush=True)
"""

ENDING_SCRIPTS = (
    "echo made >out",
    "mkdir -p deep/er && echo made >deep/er/more && cp a/file out",
    "rm -r a; echo y >b/file2; sleep 0.0$((RANDOM_NUMBER % 9)); echo made >out",
    "(while :; do :; done) & sleep 0.05; echo made >out",
)
SCRIPTS = (
    *ENDING_SCRIPTS,
    "sleep 100",
    "trap '' TERM; (setsid sleep 100 &); echo x >out; sleep 100",
)


def trees() -> list[Tree]:
    """Some that are like each other, and some that are not."""
    found = []
    for number in range(6):
        files = {f"a/{name}": f"{name}".encode() for name in range(number * 5)}
        files |= {"a/file": b"same", "b/file2": f"{number}".encode(), "worker.py": WORKER}
        files |= {"fast": b"0\nout", "slow": b"0.1\nout"}
        found.append(Tree(files, links={"b/link": "../a/file"}, folders={"empty"}))
    return found


class Storm:
    """Actions of all kinds, each ended in some way."""

    def __init__(self, remote: RemoteInstance, seed: int) -> None:
        self.remote = remote
        self.outcomes: Counter[str] = Counter()
        self.uploaded: set[Digest] = set()
        self.left = ACTIONS
        self._random = random.Random(seed)
        self._trees = [tree.blobs() for tree in trees()]

    async def upload_trees(self) -> None:
        for _, blobs in self._trees:
            await self.remote.upload_blobs(blobs)
            self.uploaded |= blobs.keys()

    async def rage(self) -> None:
        """Actions, one after the other, until enough were started."""
        while self.left:
            self.left -= 1
            await self.one(self.left)

    async def one(self, number: int) -> None:
        how = self._random.choice(("ended", *["cancelled", "left"] * 4))
        action = await self._upload_action(number, SCRIPTS if how != "ended" else ENDING_SCRIPTS)
        # Some are not to have begun, some to be in the midst of it, and some to be at their end.
        seconds = self._random.choice((0, 0.02, 0.1, 0.3)) * self._random.random()
        async with self.remote.execute(action) as operations:
            if how == "left" and self._random.random() < 0.3:
                with trio.move_on_after(seconds):
                    await self._follow(operations)
            else:
                await operations.__anext__()
                with trio.move_on_after(math.inf if how == "ended" else seconds):
                    await self._follow(operations)
                if how == "cancelled":
                    await self.remote.cancel(operations.name)
        self.outcomes[how] += 1

    async def _follow(self, operations: Operations) -> None:
        async for operation in operations:
            if operation.done:
                self._note_end(operation)

    def _note_end(self, operation: operations_pb2.Operation) -> None:
        response = reapi.ExecuteResponse()
        operation.response.Unpack(response)
        # A kept root must never be found in a state that an action cannot start from.
        assert response.status.code == 0, response
        self.outcomes[f"exit code {response.result.exit_code}"] += 1

    async def _upload_action(self, number: int, scripts: Sequence[str]) -> Digest:
        root, _ = self._random.choice(self._trees)
        platform = {"isolation": self._random.choice(isolations())}
        environment = {"STORM": MARK.partition("=")[2], "RANDOM_NUMBER": str(number)}
        if self._random.random() < 0.25:
            platform |= {"persistentWorkerKey": "key", "persistentWorkerProtocol": "json"}
            del environment["RANDOM_NUMBER"]
            speed = self._random.choice(("@fast", "@slow"))
            arguments = ["/usr/bin/python3", "worker.py", speed]
        else:
            arguments = ["sh", "-c", self._random.choice(scripts)]
        action, blobs = action_blobs(
            arguments, root, outputs=["out"], platform=platform, environment=environment
        )
        await self.remote.upload_blobs(blobs)
        return action


async def wait_until(holds: Callable[[], bool], tell: Callable[[], object]) -> None:
    """Look again and again at what no event tells; what is there instead is in the failure."""
    with trio.move_on_after(PATIENCE_SECONDS):
        while not holds():
            await trio.sleep(0.05)
        return
    pytest.fail(f"still there: {tell()}")


async def fill_all_slots(remote: RemoteInstance) -> None:
    """Have every slot of every executor at work at once: none may have been lost."""
    async with trio.open_nursery() as nursery:
        waiting = SLOTS * len(isolations())
        full = trio.Event()

        async def occupy(isolation: str, number: int) -> None:
            nonlocal waiting
            action, blobs = action_blobs(
                ["sleep", "100"],
                platform={"isolation": isolation},
                environment={"STORM": MARK.partition("=")[2], "SLOT": str(number)},
            )
            await remote.upload_blobs(blobs)
            async with remote.execute(action) as operations:
                async for operation in operations:
                    assert not operation.done
                    if stage_of(operation) == reapi.ExecutionStage.EXECUTING:
                        waiting -= 1
                        break
                if not waiting:
                    full.set()
                await full.wait()
                await remote.cancel(operations.name)

        with trio.fail_after(PATIENCE_SECONDS):
            for isolation in isolations():
                for number in range(SLOTS):
                    nursery.start_soon(occupy, isolation, number)
            await full.wait()


async def unfinished_operations(address: str) -> list[str]:
    found: list[str] = []
    token = ""
    async with open_channel(address) as channel:
        while True:
            page = await channel.unary_unary(
                "/google.longrunning.Operations/ListOperations",
                operations_pb2.ListOperationsRequest(name="operations", page_token=token),
                operations_pb2.ListOperationsResponse,
            )
            found += [operation.name for operation in page.operations if not operation.done]
            token = page.next_page_token
            if not token:
                return found


def folders(place: Place) -> dict[str, list[Path]]:
    """The folders of roots, by what they are for and by executor."""
    found: dict[str, list[Path]] = {}
    for kind in ("actions", "workers"):
        for path in place.folder.glob(f"stoker-state/executors/*/life-*/{kind}/*"):
            # The logs of workers are in a folder that stays.
            if path.is_dir() and path.name != "logs":
                found.setdefault(f"{path.parents[2].name} {kind}", []).append(path)
    return found


def at_work(pid: int) -> dict[int, str]:
    """All processes of a server but the launchers, with their command lines."""
    return command_lines(descendants(pid) - children(pid))


def mounts(place: Place, pid: int | str = "self") -> set[str]:
    """What a process sees of the mounts that the server may have made: others test beside us."""
    return {line for line in mountinfo(pid) if str(place.folder) in line}


def idle_workers(launcher: int) -> int:
    """How many persistent workers a launcher has."""
    lines = command_lines(descendants(launcher)).values()
    return sum("worker.py" in line and "bwrap" not in line for line in lines)


def has_few_folders(place: Place) -> bool:
    bounds = {"actions": KEPT_ROOTS, "workers": MAX_WORKERS}
    return all(len(paths) <= bounds[name.split()[1]] for name, paths in folders(place).items())


async def pinned(remote: RemoteInstance, blobs: set[Digest]) -> set[Digest]:
    """Those of `blobs` that stay when far more is uploaded than the store may hold."""
    rng = random.Random(1)
    for _ in range(60):
        data = rng.randbytes(1_000_000)
        await remote.upload_blobs({SHA256.digest(data): data})
    return blobs - await remote.find_missing(blobs) - {SHA256.empty}


async def test_a_storm_leaves_nothing_behind() -> None:
    # RUN-19, RUN-22, OPS-08, OPS-18, ISO-09
    with open_place(TOML) as place:
        pid = place.server.process.pid
        async with open_remote(place.server.address) as remote:
            storm = Storm(remote, seed=1)
            await storm.upload_trees()
            await fill_all_slots(remote)  # whatever is opened at first use is open now
        await wait_until(lambda: not at_work(pid), lambda: at_work(pid))
        open_before = Counter(descriptors(pid))
        below_before = descendants(pid)
        seen_before = {process: mounts(place, process) for process in (pid, *below_before)}
        launchers_before = {process: Counter(descriptors(process)) for process in below_before}
        async with open_remote(place.server.address) as remote:
            storm.remote = remote
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(storm.rage)
            assert (
                min(storm.outcomes[how] for how in ("exit code 0", "cancelled", "left"))
                > ACTIONS / 50
            )
            await fill_all_slots(remote)
        most = MAX_WORKERS * len(isolations())

        def is_idle() -> bool:
            return all("worker.py" in line for line in at_work(pid).values()) and (
                marked(MARK).keys() <= at_work(pid).keys() and has_few_folders(place)
            )

        await wait_until(is_idle, lambda: (at_work(pid), marked(MARK), folders(place)))
        assert await unfinished_operations(place.server.address) == []
        idle = {process for process, line in marked(MARK).items() if "bwrap" not in line}
        assert len(idle) <= most
        assert mounts(place) == set()
        assert {process: mounts(place, process) for process in (pid, *below_before)} == seen_before
        # Each worker may have a group in each hierarchy; nothing else has one.
        numbers = {path.rpartition("/")[2] for path in groups(pid) if "/stoker-" in path}
        assert sum(number.isdigit() for number in numbers) <= most, groups(pid)
        grown = Counter(descriptors(pid)) - open_before
        # Two pipes for each worker, and some sockets that come and go.
        assert sum(grown.values()) <= 2 * most + 4, grown

        def most_opened() -> int:
            return max(
                sum((Counter(descriptors(process)) - opened).values())
                - OPEN_FOR_A_WORKER * idle_workers(process)
                for process, opened in launchers_before.items()
            )

        # A launcher has the files of an idle worker's groups open, and at times those of others.
        await wait_until(lambda: most_opened() <= 4, most_opened)
        assert not list(place.folder.rglob("*.part"))
        async with open_remote(place.server.address) as remote:
            assert await pinned(remote, storm.uploaded) == set()
    assert marked(MARK) == {}
    assert groups(pid) == []
    assert mounts(place) == set()


async def test_nothing_outlives_a_server_that_is_killed() -> None:
    # RUN-22, ISO-09, STO-02
    with open_place(TOML) as place:
        pid = place.server.process.pid
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storm_until_killed, place)
            await wait_until(lambda: len(at_work(pid)) > 2 * SLOTS, lambda: at_work(pid))
            below = descendants(pid)
            place.server.kill()
            # What was started in between has the mark.
            below |= marked(MARK).keys()
            assert await trio.to_thread.run_sync(wait_ended, below, PATIENCE_SECONDS) == set()
            nursery.cancel_scope.cancel()
        assert marked(MARK) == {}
        assert groups(pid) == []
        assert mounts(place) == set()
        lives = set(place.folder.glob("stoker-state/executors/*/life-*"))
        assert lives
        with open_server_process(place.folder, TOML) as server:
            async with open_remote(server.address) as remote:
                await fill_all_slots(remote)
                storm = Storm(remote, seed=3)
                await storm.upload_trees()
                async with trio.open_nursery() as nursery:
                    for number in range(3 * SLOTS):
                        nursery.start_soon(storm.one, number)
            await wait_until(lambda: not any(path.exists() for path in lives), lambda: lives)
        assert marked(MARK) == {}
        assert groups(server.process.pid) == []


async def storm_until_killed(place: Place) -> None:
    with suppress_lost_server():
        async with open_remote(place.server.address) as remote:
            storm = Storm(remote, seed=2)
            await storm.upload_trees()
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(storm.rage)


@contextmanager
def suppress_lost_server() -> Iterator[None]:
    """The end of a server is all that may go wrong."""
    try:
        yield
    except BaseExceptionGroup as group:
        _, others = group.split(is_loss)
        if others is not None:
            raise others from None
    except RpcError as error:
        if not is_loss(error):
            raise


def is_loss(error: BaseException) -> bool:
    return isinstance(error, RpcError) and error.code is StatusCode.UNAVAILABLE
