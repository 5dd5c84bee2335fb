"""What a server that ended, in whatever way, leaves to the next one. # SCH-07, SCH-10, OPS-11"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from google.longrunning import operations_pb2
from google.rpc import error_details_pb2

from stoker.client import open_remote
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Channel, RpcError, StatusCode, open_channel

from .actions import action_blobs
from .server_process import ServerProcess, open_server_process

TOML = """
[server]
listen = ["127.0.0.1:0"]
drain_seconds = 0.2
state_directory = "{state}"
[scheduler]
{scheduler}
[blob_stores.main]
kind = "disk"
path = "cas"
[action_caches.main]
kind = "disk"
path = "actions"
[executors.local]
strategy = "local"
slots = {slots}
limits = {{ termination_grace_seconds = 0.2 }}
[instances.""]
blob_store = "main"
action_cache = "main"
executors = [{executors}]
"""
EXECUTION = "/build.bazel.remote.execution.v2.Execution/"
PATIENCE_SECONDS = 60

Answer = TypeVar("Answer")


def without_streams(operation: operations_pb2.Operation) -> operations_pb2.Operation:
    """`operation` as a later server tells of it: streams end with the server (OPS-16)."""
    metadata = reapi.ExecuteOperationMetadata()
    assert operation.metadata.Unpack(metadata)
    assert metadata.stdout_stream_name
    metadata.stdout_stream_name = metadata.stderr_stream_name = ""
    kept = operations_pb2.Operation()
    kept.CopyFrom(operation)
    kept.metadata.Pack(metadata)
    return kept


def toml(
    *, scheduler: str = "", slots: int = 1, executors: str = '"local"', state: str = "state"
) -> str:
    return TOML.format(scheduler=scheduler, slots=slots, executors=executors, state=state)


class Client:
    """A client that goes away in the middle, and comes back by WaitExecution."""

    def __init__(self, address: str, channel: Channel) -> None:
        self._address = address
        self._channel = channel

    async def upload(self, script: str, *, do_not_cache: bool = False) -> Digest:
        digest, blobs = action_blobs(["/bin/sh", "-c", script], do_not_cache=do_not_cache)
        async with open_remote(self._address) as remote:
            await remote.upload_blobs(blobs)
        return digest

    async def begin(self, action: Digest) -> str:
        """The name of a new operation, once it is told."""
        request = reapi.ExecuteRequest(action_digest=action.to_proto())
        async with self._channel.open_stream(
            EXECUTION + "Execute", operations_pb2.Operation, only_request=request
        ) as messages:
            first = await messages.receive()
            assert first is not None
            assert not first.done
            return first.name

    async def wait(self, name: str) -> reapi.ExecuteResponse:
        """How the operation ends."""
        request = reapi.WaitExecutionRequest(name=name)
        async with self._channel.open_stream(
            EXECUTION + "WaitExecution", operations_pb2.Operation, only_request=request
        ) as messages:
            last = None
            while (message := await messages.receive()) is not None:
                last = message
        assert last is not None
        assert last.done
        response = reapi.ExecuteResponse()
        last.response.Unpack(response)
        return response

    async def get(self, name: str) -> operations_pb2.Operation:
        return await self._channel.unary_unary(
            "/google.longrunning.Operations/GetOperation",
            operations_pb2.GetOperationRequest(name=name),
            operations_pb2.Operation,
        )

    async def stdout(self, name: str) -> str:
        response = await self.wait(name)
        assert response.status.code == 0, response.status.message
        async with open_remote(self._address) as remote:
            return (await remote.read_blob(SHA256.parse(response.result.stdout_digest))).decode()


@asynccontextmanager
async def open_client(server: ServerProcess) -> AsyncIterator[Client]:
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_channel(server.address) as channel:
            yield Client(server.address, channel)


def talk(server: ServerProcess, work: Callable[[Client], Awaitable[Answer]]) -> Answer:
    async def run() -> Answer:
        async with open_client(server) as client:
            return await work(client)

    return trio.run(run)


def blocking(folder: Path, word: str) -> str:
    """A script that tells that it runs, and ends once there is a file `go`."""
    return (
        f"echo {word} >>{folder}/runs; while [ ! -e {folder}/go ]; do sleep 0.05; done; echo {word}"
    )


def runs(folder: Path) -> list[str]:
    file = folder / "runs"
    return sorted(file.read_text().split()) if file.exists() else []


async def wait_running(folder: Path, *words: str) -> None:
    while runs(folder) != sorted(words):
        await trio.sleep(0.02)


def test_all_that_was_accepted_outlives_a_kill(tmp_path: Path) -> None:  # OPS-09, OPS-11, OPS-13
    # SCH-07
    async def before(client: Client) -> tuple[operations_pb2.Operation, list[str]]:
        ended = await client.begin(await client.upload("sleep 0.2; echo ended"))
        await client.wait(ended)
        running = await client.begin(await client.upload(blocking(tmp_path, "running")))
        await wait_running(tmp_path, "running")
        queued = await client.upload(blocking(tmp_path, "queued"))
        alone = await client.upload(blocking(tmp_path, "alone"), do_not_cache=True)
        names = [running, *[await client.begin(digest) for digest in (queued, queued, alone)]]
        return await client.get(ended), names

    async def after(client: Client) -> tuple[operations_pb2.Operation, list[str]]:
        return await client.get(ended.name), [await client.stdout(name) for name in names]

    with open_server_process(tmp_path / "server", toml()) as server:
        ended, names = talk(server, before)
        assert ended.done
        assert len({*names}) == 4
        server.kill()
    (tmp_path / "go").touch()
    with open_server_process(tmp_path / "server", toml()) as server:
        same, told = talk(server, after)
    assert same == without_streams(ended)
    assert told == ["running\n", "queued\n", "queued\n", "alone\n"]
    # What ran is run again, and twins are one run still (EXE-21).
    assert runs(tmp_path) == ["alone", "queued", "running", "running"]


@pytest.mark.slow
def test_what_an_orderly_end_cuts_short_is_run_again_and_not_held_against_it(
    tmp_path: Path,
) -> None:  # SCH-06
    strict = toml(scheduler="max_attempts = 1\nmax_server_losses = 1")

    async def begin(client: Client) -> str:
        name = await client.begin(await client.upload(blocking(tmp_path, "running")))
        await wait_running(tmp_path, "running")
        return name

    with open_server_process(tmp_path / "server", strict) as server:
        name = talk(server, begin)
    (tmp_path / "go").touch()
    with open_server_process(tmp_path / "server", strict) as server:
        assert talk(server, lambda client: client.stdout(name)) == "running\n"
    assert runs(tmp_path) == ["running", "running"]


def begun_and_killed(tmp_path: Path) -> tuple[str, Digest]:
    """An operation that a server left."""

    async def begin(client: Client) -> tuple[str, Digest]:
        digest = await client.upload(blocking(tmp_path, "running"))
        name = await client.begin(digest)
        await wait_running(tmp_path, "running")
        return name, digest

    with open_server_process(tmp_path / "server", toml()) as server:
        left = talk(server, begin)
        server.kill()
    return left


@pytest.mark.slow
def test_what_was_filed_meanwhile_is_not_run_again(tmp_path: Path) -> None:
    name, digest = begun_and_killed(tmp_path)

    async def file(client: Client) -> None:
        await client._channel.unary_unary(
            "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
            reapi.UpdateActionResultRequest(
                action_digest=digest.to_proto(),
                action_result=reapi.ActionResult(exit_code=0, stderr_raw=b"filed"),
            ),
            reapi.ActionResult,
        )

    with open_server_process(tmp_path / "server", toml(scheduler="journal = false")) as server:
        talk(server, file)
    with open_server_process(tmp_path / "server", toml()) as server:
        response = talk(server, lambda client: client.wait(name))
    assert response.cached_result
    assert response.result.stderr_digest == SHA256.digest(b"filed").to_proto()
    assert runs(tmp_path) == ["running"]


@pytest.mark.slow
def test_what_lost_its_inputs_meanwhile_tells_which(tmp_path: Path) -> None:  # EXE-03
    name, digest = begun_and_killed(tmp_path)
    shutil.rmtree(tmp_path / "server" / "cas")
    with open_server_process(tmp_path / "server", toml()) as server:
        response = talk(server, lambda client: client.wait(name))
    assert response.status.code == StatusCode.FAILED_PRECONDITION
    failure = error_details_pb2.PreconditionFailure()
    assert response.status.details[0].Unpack(failure)
    assert [each.subject for each in failure.violations] == [f"blobs/{digest}"]


@pytest.mark.slow
def test_what_nobody_can_run_any_more_ends_with_a_reason(tmp_path: Path) -> None:
    name, _ = begun_and_killed(tmp_path)
    with open_server_process(tmp_path / "server", toml(executors="")) as server:
        response = talk(server, lambda client: client.wait(name))
    assert response.status.code == StatusCode.FAILED_PRECONDITION
    assert "has no executors" in response.status.message


@pytest.mark.slow
def test_what_nobody_comes_back_for_is_given_up(tmp_path: Path) -> None:  # OPS-08
    name, _ = begun_and_killed(tmp_path)

    async def wait_ended(client: Client) -> operations_pb2.Operation:
        while not (operation := await client.get(name)).done:
            await trio.sleep(0.05)
        return operation

    patient = toml(scheduler="reconnect_seconds = 0.5")
    with open_server_process(tmp_path / "server", patient) as server:
        operation = talk(server, wait_ended)
        response = reapi.ExecuteResponse()
        operation.response.Unpack(response)
        assert response.status.code == StatusCode.CANCELLED


@pytest.mark.slow
def test_an_action_that_kills_the_server_is_kept_out_and_its_neighbour_is_not(
    tmp_path: Path,
) -> None:  # SCH-10
    strict = toml(scheduler="max_server_losses = 3", slots=2)
    pid_file = tmp_path / "pid"
    killing = f"while [ ! -s {pid_file} ]; do sleep 0.02; done; kill -9 $(cat {pid_file})"
    names: list[str] = []
    digests: list[Digest] = []

    async def begin(client: Client) -> None:
        digests.append(await client.upload(killing))
        digests.append(
            await client.upload(f"sleep 0.5; test -s {pid_file} && sleep 1; echo innocent")
        )
        pid_file.touch()
        for digest in digests:
            names.append(await client.begin(digest))

    for life in range(3):
        pid_file.unlink(missing_ok=True)
        with open_server_process(tmp_path / "server", strict) as server:
            if life == 0:
                talk(server, begin)
            pid_file.write_text(str(server.process.pid))
            assert server.process.wait(PATIENCE_SECONDS) == -9

    async def afterwards(client: Client) -> None:
        assert await client.stdout(names[1]) == "innocent\n"
        response = await client.wait(names[0])
        assert response.status.code == StatusCode.FAILED_PRECONDITION
        assert response.status.message.count("on local, the server was killed") == 3
        assert not response.status.details  # that would have it sent again (EXE-07)
        with pytest.raises(RpcError, match="the server was killed") as refused:
            await client.begin(digests[0])
        assert refused.value.code is StatusCode.FAILED_PRECONDITION

    pid_file.unlink()
    for _ in range(2):  # a restart does not end it
        with open_server_process(tmp_path / "server", strict) as server:
            talk(server, afterwards)


def test_a_second_server_on_the_same_state_is_refused(tmp_path: Path) -> None:
    shared = toml(state=str(tmp_path / "state"))
    with (
        open_server_process(tmp_path / "one", shared),
        pytest.raises(RuntimeError, match=r"state/scheduler/journal\.sqlite is in use by"),
        open_server_process(tmp_path / "two", shared),
    ):
        pass
