"""A server that is told to stop in the middle of its work: SIGTERM to the program (SCH-06)."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from google.longrunning import operations_pb2
from google.rpc import error_details_pb2

from stoker.client import open_remote
from stoker.digest import Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Channel, ClientStream, RpcError, StatusCode, open_channel
from stoker.rpc.protos import health_pb2

from .actions import action_blobs
from .server_process import LOCAL, ServerProcess, open_server_process

EXECUTION = "/build.bazel.remote.execution.v2.Execution/"
ONE_SLOT = LOCAL.replace("slots = 2", "slots = 1")

Stream = ClientStream[operations_pb2.Operation]


class Gate:
    """A shell command that tells its process id and waits to be let on, and its files."""

    def __init__(self, folder: Path) -> None:
        self._begun, self.let_on = folder / "begun", folder / "let-on"
        tell = f"echo $$ >{self._begun}.part; mv {self._begun}.part {self._begun}"
        wait = f"while [ ! -e {self.let_on} ]; do sleep 0.02; done"
        self.arguments = ("sh", "-c", f"{tell}; {wait}; echo done")

    async def begun(self) -> Path:
        """Where the process is to be found while it lives."""
        while not self._begun.exists():
            await trio.sleep(0.01)
        return Path(f"/proc/{self._begun.read_text().strip()}")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


@pytest.fixture
def server(tmp_path: Path, drain_seconds: float) -> Iterator[ServerProcess]:
    toml = ONE_SLOT.replace("drain_seconds = 1.0", f"drain_seconds = {drain_seconds}")
    with open_server_process(tmp_path / "server", toml) as running:
        yield running


async def put_action(server: ServerProcess, *arguments: str) -> Digest:
    digest, blobs = action_blobs(arguments)
    async with open_remote(server.address) as remote:
        await remote.upload_blobs(blobs)
    return digest


@asynccontextmanager
async def execute(channel: Channel, digest: Digest) -> AsyncIterator[Stream]:
    async with channel.open_stream(EXECUTION + "Execute", operations_pb2.Operation) as stream:
        await stream.send(reapi.ExecuteRequest(action_digest=digest.to_proto()))
        await stream.send_eof()
        yield stream


@asynccontextmanager
async def wait_execution(channel: Channel, name: str) -> AsyncIterator[Stream]:
    async with channel.open_stream(EXECUTION + "WaitExecution", operations_pb2.Operation) as stream:
        await stream.send(reapi.WaitExecutionRequest(name=name))
        await stream.send_eof()
        yield stream


async def first(stream: Stream) -> operations_pb2.Operation:
    operation = await stream.receive()
    assert operation
    assert not operation.done
    return operation


async def end_of(stream: Stream) -> reapi.ExecuteResponse:
    response = reapi.ExecuteResponse()
    while operation := await stream.receive():
        if operation.done:
            assert operation.response.Unpack(response)
    return response


def retry_seconds(error: RpcError) -> float:
    """When a client is told to come again."""
    assert error.code is StatusCode.UNAVAILABLE, error
    [info] = error.details
    assert isinstance(info, error_details_pb2.RetryInfo)
    return info.retry_delay.ToNanoseconds() / 1e9


async def wait_exit(server: ServerProcess) -> int:
    return await trio.to_thread.run_sync(server.process.wait, abandon_on_cancel=True)


async def not_serving(channel: Channel) -> None:
    async with channel.open_stream(
        "/grpc.health.v1.Health/Watch", health_pb2.HealthCheckResponse
    ) as stream:
        await stream.send(health_pb2.HealthCheckRequest())
        await stream.send_eof()
        while (answer := await stream.receive()) and (
            answer.status != health_pb2.HealthCheckResponse.NOT_SERVING
        ):
            pass
        assert answer


@pytest.mark.parametrize("drain_seconds", [60])
async def test_what_runs_ends_and_nothing_new_begins(server: ServerProcess, gate: Gate) -> None:
    runs, waits = await put_action(server, *gate.arguments), await put_action(server, "true")
    async with (
        open_channel(server.address) as channel,
        execute(channel, runs) as running,
        AsyncExitStack() as stack,
    ):
        name = (await first(running)).name
        await gate.begun()
        waiting = await stack.enter_async_context(execute(channel, waits))
        await first(waiting)
        server.process.send_signal(signal.SIGTERM)
        await not_serving(channel)
        # A new one is refused, on a new connection too; reads, uploads and waits go on.
        for _ in range(2):
            async with open_channel(server.address) as another:
                with pytest.raises(RpcError) as refused:
                    async with execute(another, waits) as stream:
                        await stream.receive()
                assert 30 < retry_seconds(refused.value) < 90
        output = await put_action(server, "echo", "uploaded while it drains")
        async with open_remote(server.address) as remote:
            assert await remote.find_missing([output, runs]) == set()
        async with wait_execution(channel, name) as again:
            await first(again)
            gate.let_on.touch()
            assert (await end_of(again)).result.exit_code == 0
        assert (await end_of(running)).result.stdout_raw in (b"", b"done\n")
        with pytest.raises(RpcError) as handed_back:
            await end_of(waiting)
        assert retry_seconds(handed_back.value) > 0
    assert await wait_exit(server) == 0


@pytest.mark.parametrize("drain_seconds", [0.5])
async def test_what_does_not_end_in_time_is_handed_back(server: ServerProcess, gate: Gate) -> None:
    runs = await put_action(server, *gate.arguments)
    async with open_channel(server.address) as channel, execute(channel, runs) as running:
        await first(running)
        process = await gate.begun()
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(RpcError) as handed_back:
            await end_of(running)
        assert retry_seconds(handed_back.value) > 0
    assert await wait_exit(server) == 0
    assert not process.exists()


@pytest.mark.parametrize("drain_seconds", [600])
async def test_a_second_signal_ends_the_patience(server: ServerProcess, gate: Gate) -> None:
    runs = await put_action(server, *gate.arguments)
    async with open_channel(server.address) as channel, execute(channel, runs) as running:
        await first(running)
        process = await gate.begun()
        server.process.send_signal(signal.SIGTERM)
        await not_serving(channel)
        # However often: one that nobody took would end it as a kill does.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            server.process.send_signal(number)
        with pytest.raises(RpcError) as handed_back:
            await end_of(running)
        assert handed_back.value.code is StatusCode.UNAVAILABLE
    with trio.fail_after(60):
        assert await wait_exit(server) == 0
    assert not process.exists()
