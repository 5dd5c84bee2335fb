"""`stoker drain` as a program, of one server with two executors (SCH-06, EXE-14)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from google.longrunning import operations_pb2

from stoker.cli.administration import open_answers
from stoker.client import open_remote
from stoker.digest import Digest
from stoker.protos import admin_pb2 as admin
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.scheduling_pb2 import WaitingForExecutor
from stoker.rpc import ClientStream, StatusCode, open_channel
from stoker.testing.server import EXECUTING, open_test_server

from .tool_actions import upload_action

TOML = f"""{EXECUTING.replace('["local"]', '["local", "other"]')}
listen = ["127.0.0.1:0"]
state_directory = "state"
[executors.other]
strategy = "local"
slots = 1
properties = {{ OSFamily = "plan9" }}
[scheduler]
wait_for_executor_seconds = WAIT
"""

TOOL = """#!/usr/bin/env python3
import json, sys
for line in sys.stdin:
    print('{"output": "done"}', flush=True)
"""

WORKER = {
    "OSFamily": "linux",
    "persistentWorkerProtocol": "json",
    "supports-workers": "1",
    "worker-key-mnemonic": "Tool",
}


class Site:
    """A server, its folder, and that of an action's inputs."""

    def __init__(self, server: str, folder: Path) -> None:
        self.server = server
        self._config = folder / "stoker.toml"
        self.inputs = folder / "inputs"

    async def upload(self, *arguments: str, platform: dict[str, str]) -> Digest:
        return await upload_action(self.server, self.inputs, arguments, platform)

    async def run(self, *arguments: str, platform: dict[str, str]) -> reapi.ExecuteResponse:
        digest = await self.upload(*arguments, platform=platform)
        async with open_remote(self.server) as remote:
            return await remote.run(digest)

    @asynccontextmanager
    async def execute(
        self, *arguments: str, platform: dict[str, str]
    ) -> AsyncIterator[ClientStream[operations_pb2.Operation]]:
        """The stream of an Execute call."""
        digest = await self.upload(*arguments, platform=platform)
        method = "/build.bazel.remote.execution.v2.Execution/Execute"
        async with (
            open_channel(self.server) as channel,
            channel.open_stream(method, operations_pb2.Operation) as stream,
        ):
            await stream.send(reapi.ExecuteRequest(action_digest=digest.to_proto()))
            await stream.send_eof()
            yield stream

    async def type_drain(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "stoker", "drain", "--config", str(self._config), *words]
        return await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )

    async def drain(self, *words: str) -> dict[str, dict[str, Any]]:
        done = await self.type_drain("--json", *words)
        assert (done.returncode, done.stderr) == (0, b"")
        told = [json.loads(line) for line in done.stdout.splitlines()]
        return {one["executor"]: one for one in told}

    async def status(self, executor: str) -> admin.ExecutorStatus:
        """The same without a process, which takes a second to start."""
        request = admin.DrainExecutorsRequest()
        async with open_answers(
            self._config.parent / "state" / "admin.socket",
            "DrainExecutors",
            request,
            admin.ExecutorStatus,
        ) as answers:
            return next(iter([one async for one in answers if one.executor == executor]))


@pytest.fixture
async def site(tmp_path: Path, wait_seconds: float) -> AsyncIterator[Site]:
    (tmp_path / "inputs").mkdir()
    tool = tmp_path / "inputs" / "tool"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    (tmp_path / "inputs" / "args").write_text("one")
    toml = TOML.replace("WAIT", str(wait_seconds))
    (tmp_path / "stoker.toml").write_text(toml)
    async with open_test_server(toml, tmp_path) as server:
        yield Site(server.address, tmp_path)


@pytest.fixture
def wait_seconds() -> float:
    return 300


def note_of(operation: operations_pb2.Operation | None) -> WaitingForExecutor | None:
    """Why an operation waits, as its metadata has it."""
    assert operation
    metadata = reapi.ExecuteOperationMetadata()
    assert operation.metadata.Unpack(metadata)
    for packed in metadata.partial_execution_metadata.auxiliary_metadata:
        note = WaitingForExecutor()
        if packed.Unpack(note):
            return note
    return None


def response_of(operation: operations_pb2.Operation | None) -> reapi.ExecuteResponse:
    response = reapi.ExecuteResponse()
    assert operation
    assert operation.response.Unpack(response)
    return response


@pytest.mark.slow
async def test_an_executor_is_drained_and_resumed(site: Site, tmp_path: Path) -> None:  # SCH-06
    # It has a worker, which is idle, and another action runs.
    assert (await site.run("./tool", "@args", platform=WORKER)).result.exit_code == 0
    assert (await site.status("local")).workers == 1
    let_on = tmp_path / "let-on"
    wait = f"while [ ! -e {let_on} ]; do sleep 0.02; done"
    async with site.execute("sh", "-c", wait, platform={"OSFamily": "linux"}) as running:
        assert not (await running.receive() or operations_pb2.Operation()).done
        told = await site.drain("local")
        assert told["local"].pop("workers") in (0, 1)  # it may not have gone yet
        assert told == {
            "local": {
                "executor": "local",
                "state": "draining",
                "busy_slots": 1,
                "free_slots": 3,
                "waiting": 0,
            }
        }
        # Others go on.
        assert (await site.run("true", platform={"OSFamily": "plan9"})).result.exit_code == 0
        async with site.execute("true", platform={"OSFamily": "linux"}) as waiting:
            first = await waiting.receive()
            note = note_of(first)
            assert note
            assert [*note.executors] == ["local"]
            assert "executor 'local' is drained" in note.reason
            let_on.touch()
            while not (end := await running.receive() or operations_pb2.Operation()).done:
                pass
            assert response_of(end).result.exit_code == 0
            while (now := await site.status("local")).state == "draining" or now.workers:
                await trio.sleep(0.02)
            words = (await site.type_drain()).stdout.decode().splitlines()
            assert [line.split() for line in words[1:]] == [
                ["local", "drained", "0", "4", "1", "0"],
                ["other", "serving", "0", "1", "0", "0"],
            ]
            await site.drain("--resume", "local")
            while not (end := await waiting.receive() or operations_pb2.Operation()).done:
                assert note_of(end) is None
            assert response_of(end).result.exit_code == 0
    # Workers are kept again.
    assert (await site.run("./tool", "@args", platform=WORKER)).result.exit_code == 0
    now = await site.status("local")
    assert (now.state, now.workers) == ("serving", 1)


@pytest.mark.parametrize("wait_seconds", [0.3])
async def test_what_nobody_comes_to_run_ends_with_the_reason(site: Site) -> None:  # EXE-14
    told = await site.drain("local", "other")
    assert {one["state"] for one in told.values()} == {"drained"}
    response = await site.run("true", platform={"OSFamily": "linux"})
    assert response.status.code == StatusCode.FAILED_PRECONDITION
    assert "waited 0.3 s" in response.status.message
    assert "executor 'local' is drained: " in response.status.message


async def test_a_name_that_is_not_there_changes_nothing(site: Site) -> None:
    done = await site.type_drain("local", "lokal")
    assert done.returncode == 1
    assert b"no executor 'lokal' in use; there are: 'local', 'other'" in done.stderr
    assert (await site.status("local")).state == "serving"
    done = await site.type_drain("--resume")
    assert (done.returncode, b"name the executors" in done.stderr) == (2, True)
