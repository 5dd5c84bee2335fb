"""Thousands of actions on persistent workers that fail in every way: none gets a wrong result.

With STOKER_CHAOS_ACTIONS=10000 as many of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from stoker.client import RemoteInstance, open_remote
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import StatusCode

from .actions import Tree, action_blobs
from .remains import children, command_lines, descendants
from .server_process import LOCAL, ServerProcess, open_server_process
from .test_cancel_storm import wait_until

pytestmark = pytest.mark.slow

ACTIONS = int(os.environ.get("STOKER_CHAOS_ACTIONS", "1200"))
SLOTS = 4
AT_ONCE = 12
FLAT_BYTES = 24 * 2**20
"""How much the server may grow from the middle to the end."""

TOML = LOCAL.replace("slots = 2", f"slots = {SLOTS}\ncpus = 1000").replace(
    "[instances",
    """[scheduler]
retention_seconds = 1.0  # what is kept by design must not pass for a leak
[executors.local.workers]
max_workers = 6
max_workers_per_key = 2
idle_seconds = 2
max_worker_memory_bytes = "200MiB"
max_requests = 100
cancel_grace_seconds = 0.2
shutdown_grace_seconds = 0.2
[instances""",
    1,
)

TOOL = Path(__file__).with_name("chaotic_tool.py").read_bytes()
PYTHON = "/usr/bin/python3"
MOODS = ("crash", "kill", "hang", "garbage", "half", "leak", "wrong-id", "twice", "close")
"""A hang is told by the action's time running out: it is the one that fails an action."""

MODES: Mapping[str, Mapping[str, str]] = {
    "singleplex": {},
    "cancellable": {"supports-worker-cancellation": "1"},
    "multiplex": {"supports-multiplex-workers": "1"},
    "sandboxed": {"supports-multiplex-workers": "1", "supports-multiplex-sandboxing": "1"},
}


class Work(NamedTuple):
    """An action, and what it must come to."""

    action: Digest
    mood: str
    content: bytes


class Chaos:
    """Actions of all moods, and what became of them."""

    def __init__(self, remote: RemoteInstance, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.begun = 0
        self.end = ACTIONS
        self._remote = remote
        self._random = random.Random(seed)

    async def rage(self) -> None:
        """Actions, one after the other, until enough were run."""
        while self.begun < self.end:
            self.begun += 1
            await self._one(await self._upload(self.begun))

    async def _upload(self, number: int) -> Work:
        mood = self._random.choice(MOODS) if self._random.random() < 0.15 else "well"
        mode = self._random.choice([*MODES])
        content = f"{number}".encode()
        # Unsandboxed multiplex has its requests in one folder: each has names of its own.
        source, target, flags = f"in{number}", f"out{number}", f"flags{number}"
        files = {"tool.py": TOOL, source: content, flags: f"{source}\n{target}\n{mood}\n".encode()}
        root, inputs = Tree(files).blobs()
        action, blobs = action_blobs(
            [PYTHON, "tool.py", f"@{flags}"],
            root,
            outputs=[target],
            platform={
                "persistentWorkerKey": "key",
                "persistentWorkerProtocol": "json",
                **MODES[mode],
            },
            timeout_seconds=1 if mood == "hang" else 30,
            do_not_cache=False,
        )
        await self._remote.upload_blobs(inputs | blobs)
        return Work(action, mood, content)

    async def _one(self, work: Work) -> None:
        response = await self._remote.run(work.action)
        assert not response.cached_result
        if response.status.code:
            # Whoever shares a process with one that hangs is not to blame, and must not suffer.
            assert work.mood == "hang", response
            assert response.status.code == StatusCode.DEADLINE_EXCEEDED.value, response
            self.outcomes["deadline"] += 1
            return
        await self._check(work, response)
        how = "one-shot" if "without a persistent worker" in response.message else "worker"
        self.outcomes[how if how == "one-shot" or not response.message else "tried again"] += 1

    async def _check(self, work: Work, response: reapi.ExecuteResponse) -> None:
        result, right = response.result, hashlib.sha256(work.content).hexdigest()
        assert result.exit_code == 0, response
        assert [file.digest.hash for file in result.output_files] == [
            SHA256.digest(right.encode()).hash
        ], response
        digest = SHA256.parse(result.stderr_digest)
        assert await self._remote.read_blob(digest) == f"done {right}".encode()


def resident_bytes(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def told(folder: Path) -> dict[str, Any]:
    """What `stoker workers` says of the one executor."""
    command = [sys.executable, "-m", "stoker", "workers", "--json", "--config"]
    output = subprocess.check_output([*command, str(folder / "stoker.toml")], text=True)
    (executor,) = map(json.loads, output.splitlines())
    assert isinstance(executor, dict)
    return executor


def processes(server: ServerProcess) -> dict[int, str]:
    """All below the server but its launchers."""
    pid = server.process.pid
    return command_lines(descendants(pid) - children(pid))


async def test_no_action_gets_a_wrong_result(tmp_path: Path) -> None:
    # PWK-06, PWK-09, PWK-10, PWK-15, PWK-16, RUN-24
    with open_server_process(tmp_path, TOML) as server:
        pid = server.process.pid
        async with open_remote(server.address) as remote:
            chaos = Chaos(remote, seed=1)
            middle = 0
            for end in (ACTIONS // 2, ACTIONS):
                chaos.end = end
                async with trio.open_nursery() as nursery:
                    for _ in range(AT_ONCE):
                        nursery.start_soon(chaos.rage)
                middle = middle or resident_bytes(pid)
                assert chaos.outcomes.total() == end
        assert resident_bytes(pid) - middle < FLAT_BYTES
        assert chaos.outcomes["worker"] > ACTIONS * 0.6, chaos.outcomes
        assert chaos.outcomes["tried again"] > 0, chaos.outcomes
        await wait_until(lambda: not processes(server), lambda: processes(server))
        executor = told(tmp_path)
    assert (executor["places"], executor["waiting"]) == (0, 0)
    assert executor["ended"].keys() >= {"failed", "expired"}, executor["ended"]
    assert [key["workers"] for key in executor["keys"]] == [[]] * len(executor["keys"])
