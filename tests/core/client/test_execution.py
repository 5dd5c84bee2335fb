"""Executions through the client: on a whole server, and on one whose streams break."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from google.longrunning import operations_pb2
from google.rpc import error_details_pb2

from stoker.client import RemoteInstance, open_remote, parse_target, response_of, stage_of
from stoker.digest import SHA256, Digest
from stoker.errors import FailedPrecondition, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import (
    RpcError,
    Server,
    ServerCall,
    Service,
    StatusCode,
    unary_stream,
    unary_unary,
)
from stoker.testing.server import EXECUTING, MEMORY_ONLY, open_test_server

REAPI = "build.bazel.remote.execution.v2"


@pytest.fixture
async def remote(tmp_path: Path) -> AsyncIterator[RemoteInstance]:
    async with (
        open_test_server(EXECUTING, tmp_path) as server,
        open_remote(server.address) as opened,
    ):
        yield opened


async def upload_action(remote: RemoteInstance, *arguments: str) -> Digest:
    command = reapi.Command(arguments=arguments).SerializeToString()
    action = reapi.Action(
        command_digest=SHA256.digest(command).to_proto(),
        input_root_digest=SHA256.empty.to_proto(),
    ).SerializeToString()
    await remote.upload_blobs({SHA256.digest(data): data for data in (command, action, b"")})
    return SHA256.digest(action)


async def test_an_action_runs_and_its_result_is_kept(remote: RemoteInstance) -> None:
    remote.check_executes()
    action = await upload_action(remote, "echo", "hello")
    assert await remote.action_result(action) is None
    response = await remote.run(action)
    stdout = SHA256.parse(response.result.stdout_digest)
    assert (response.status.code, response.result.exit_code) == (0, 0)
    assert await remote.read_blob(stdout) == b"hello\n"
    assert await remote.action_result(action) == response.result
    assert (await remote.run(action)).cached_result
    assert not (await remote.run(action, skip_cache_lookup=True)).cached_result


async def test_the_messages_tell_how_far_it_is(remote: RemoteInstance) -> None:
    action = await upload_action(remote, "sleep", "1")
    async with remote.execute(action) as operations:
        stages = [stage_of(operation) async for operation in operations]
    assert stages[-1] == reapi.ExecutionStage.COMPLETED
    assert reapi.ExecutionStage.EXECUTING in stages


async def test_a_running_operation_can_be_cancelled(remote: RemoteInstance) -> None:
    action = await upload_action(remote, "sleep", "1000")
    seen = []
    with trio.fail_after(60):
        async with remote.execute(action) as operations:
            async for operation in operations:
                if stage_of(operation) == reapi.ExecutionStage.EXECUTING:
                    await remote.cancel(operations.name)
                seen.append(operation)
    assert response_of(seen[-1]).status.code == StatusCode.CANCELLED


async def test_an_unknown_operation_cannot_be_cancelled(remote: RemoteInstance) -> None:
    with pytest.raises(RpcError, match="no-such-name"):
        await remote.cancel("operations/no-such-name")


async def test_an_instance_that_only_caches_says_so(tmp_path: Path) -> None:
    async with open_test_server(MEMORY_ONLY, tmp_path) as server, open_remote(server.address) as it:
        with pytest.raises(FailedPrecondition, match=server.address):
            it.check_executes()


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("grpc://host:80", ("host:80", False)),
        ("grpcs://host:443", ("host:443", True)),
        ("127.0.0.1:8980", ("127.0.0.1:8980", False)),
        ("grpc://[::1]:8980", ("[::1]:8980", False)),
        ("unix:/run/stoker", ("unix:/run/stoker", False)),
        ("unix:///run/stoker", ("unix:/run/stoker", False)),
    ],
)
def test_targets(text: str, target: tuple[str, bool]) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "host", "http://host:80", "grpc://host", "host:http"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_target(text)


# --- broken streams ------------------------------------------------------------------------------

Send = Callable[..., Awaitable[None]]
Scene = Callable[[str, Send], Awaitable[None]]


async def break_off(_: str, send: Send) -> None:
    """Send one message, then break."""
    await send("one")
    raise RpcError(StatusCode.UNAVAILABLE, "restarting")


async def stop_early(_: str, send: Send) -> None:
    """End the stream as if all were said."""
    await send("one")


async def forget(_: str, send: Send) -> None:
    """Know nothing of the operation."""
    raise RpcError(StatusCode.NOT_FOUND, "no such operation")


async def finish(asked: str, send: Send) -> None:
    """Finish the operation, under a name that tells how it was asked for."""
    await send(f"done after {asked}", done=True)


async def refuse(_: str, send: Send) -> None:
    """Refuse for good."""
    failure = error_details_pb2.PreconditionFailure()
    failure.violations.add(type="MISSING", subject="blobs/x/1")
    raise RpcError(StatusCode.FAILED_PRECONDITION, "blobs are missing", [failure])


@asynccontextmanager
async def open_scenes(*scenes: Scene) -> AsyncIterator[RemoteInstance]:
    """A client of a server that plays one scene for each call, the last again and again."""
    left = list(scenes)

    async def play(asked: str, call: ServerCall) -> None:
        async def send(name: str, *, done: bool = False) -> None:
            operation = operations_pb2.Operation(name=name, done=done)
            if done:
                operation.response.Pack(reapi.ExecuteResponse(message=asked))
            await call.send(operation)

        scene = left.pop(0) if len(left) > 1 else left[0]
        await scene(asked, send)

    async def execute(_: reapi.ExecuteRequest, call: ServerCall) -> None:
        await play("Execute", call)

    async def wait(request: reapi.WaitExecutionRequest, call: ServerCall) -> None:
        await play(f"WaitExecution {request.name}", call)

    async def capabilities(
        _: reapi.GetCapabilitiesRequest, call: ServerCall
    ) -> reapi.ServerCapabilities:
        return reapi.ServerCapabilities()

    operation = operations_pb2.Operation
    services = [
        Service(
            f"{REAPI}.Execution",
            {
                "Execute": unary_stream(execute, reapi.ExecuteRequest, operation),
                "WaitExecution": unary_stream(wait, reapi.WaitExecutionRequest, operation),
            },
        ),
        Service(
            f"{REAPI}.Capabilities",
            {
                "GetCapabilities": unary_unary(
                    capabilities, reapi.GetCapabilitiesRequest, reapi.ServerCapabilities
                )
            },
        ),
    ]
    server = Server(services)
    port = server.add_listener("127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        try:
            async with open_remote(f"127.0.0.1:{port}") as remote:
                yield remote
        finally:
            await server.stop(0)


@pytest.mark.parametrize(
    ("scenes", "asked"),
    [
        ((finish,), "Execute"),
        ((break_off, finish), "WaitExecution one"),
        ((stop_early, finish), "WaitExecution one"),
        ((break_off, break_off, finish), "WaitExecution one"),
        ((break_off, forget, finish), "Execute"),
    ],
)
async def test_a_broken_stream_is_taken_up_again(  # OPS-09, OPS-10, OPS-11
    scenes: tuple[Scene, ...], asked: str
) -> None:
    async with open_scenes(*scenes) as remote:
        response = await remote.run(SHA256.empty)
    assert response.message == asked


async def test_a_server_that_never_recovers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoker.client.execution.MAX_RECONNECTS", 2)

    async def run() -> None:
        async with open_scenes(break_off) as remote:
            await remote.run(SHA256.empty)

    with pytest.RaisesGroup(pytest.RaisesExc(RpcError, match="restarting")):
        await run()


async def test_a_refusal_is_raised_with_its_details() -> None:
    async with open_scenes(refuse) as remote:
        with pytest.raises(RpcError, match="missing") as caught:
            await remote.run(SHA256.empty)
    assert caught.value.code is StatusCode.FAILED_PRECONDITION
    (failure,) = caught.value.details
    assert isinstance(failure, error_details_pb2.PreconditionFailure)
    assert failure.violations[0].subject == "blobs/x/1"
