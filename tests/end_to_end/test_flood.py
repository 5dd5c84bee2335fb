"""A server that is asked to execute far more than it takes in: all else is answered (EXE-25)."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from google.longrunning import operations_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from stoker.digest import SHA256, Digest
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Channel, RpcError, StatusCode, open_channel
from stoker.rpc.protos import health_pb2 as health
from stoker.testing.server import EXECUTING, ServerUnderTest, open_test_server

pytestmark = pytest.mark.slow

REAPI = "/build.bazel.remote.execution.v2."
FLOODS, ACTIONS = 60, 20
QUEUED, STREAMS = 5, 30

TOML = f"""{EXECUTING.replace("slots = 4", "slots = 1")}
[scheduler]
max_queued = {QUEUED}
max_streams = {STREAMS}
"""


async def put(channel: Channel, *blobs: bytes) -> list[Digest]:
    digests = [SHA256.digest(blob) for blob in blobs]
    request = reapi.BatchUpdateBlobsRequest(
        requests=[
            reapi.BatchUpdateBlobsRequest.Request(digest=digest.to_proto(), data=blob)
            for digest, blob in zip(digests, blobs, strict=True)
        ]
    )
    method = REAPI + "ContentAddressableStorage/BatchUpdateBlobs"
    await channel.unary_unary(method, request, reapi.BatchUpdateBlobsResponse)
    return digests


async def put_action(channel: Channel, *arguments: str) -> Digest:
    command = reapi.Command(arguments=arguments).SerializeToString()
    action = reapi.Action(
        command_digest=SHA256.digest(command).to_proto(),
        input_root_digest=SHA256.empty.to_proto(),
        # So that none shares the run of another: those would not be queued.
        do_not_cache=True,
    ).SerializeToString()
    return (await put(channel, command, action, b""))[1]


class Flood:
    """Clients that ask for executions and take no refusal for an answer."""

    def __init__(self, channel: Channel, digests: list[Digest]) -> None:
        self._channel = channel
        self._digests = digests
        self.refused: Counter[str] = Counter()
        self.delays: list[float] = []

    async def execute(self, number: int) -> None:
        """Ask for an action, and if it is refused for the next."""
        while True:
            digest = self._digests[number % len(self._digests)]
            await self._ask("Execute", reapi.ExecuteRequest(action_digest=digest.to_proto()))
            number += 1

    async def wait(self, name: str) -> None:
        """Wait for an operation, and if that is refused do it again."""
        while True:
            await self._ask("WaitExecution", reapi.WaitExecutionRequest(name=name))

    async def _ask(self, method: str, request: Message) -> None:
        try:
            async with self._channel.open_stream(
                f"{REAPI}Execution/{method}", operations_pb2.Operation
            ) as stream:
                await stream.send(request)
                await stream.send_eof()
                while await stream.receive():
                    pass
        except RpcError as error:
            self._note(error)

    def _note(self, error: RpcError) -> None:
        assert error.code is StatusCode.RESOURCE_EXHAUSTED, error
        [retry] = error.details
        assert isinstance(retry, error_details_pb2.RetryInfo)
        self.delays.append(retry.retry_delay.ToNanoseconds() / 1e9)
        self.refused["max_queued" if "`max_queued`" in error.message else "max_streams"] += 1


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[ServerUnderTest, Channel, Channel]]:
    """A server, and two connections to it."""
    async with (
        open_test_server(TOML, folder) as server,
        open_channel(server.address) as one,
        open_channel(server.address) as other,
    ):
        yield server, one, other


async def unfinished(channel: Channel) -> list[str]:
    request = operations_pb2.ListOperationsRequest(name="operations", filter="done = false")
    page = await channel.unary_unary(
        "/google.longrunning.Operations/ListOperations",
        request,
        operations_pb2.ListOperationsResponse,
    )
    return [operation.name for operation in page.operations]


async def test_reads_and_health_are_answered_in_a_flood(tmp_path: Path) -> None:
    # EXE-25, GEN-29
    async with serving(tmp_path) as (server, floods, channel):
        script = f"while [ ! -e {tmp_path}/let-on ]; do sleep 0.02; done"
        flood = Flood(
            floods,
            [await put_action(floods, "sh", "-c", f": {i}; {script}") for i in range(ACTIONS)],
        )
        [blob] = await put(channel, b"blob" * 1000)
        done = await put_action(channel, "true")
        update = reapi.UpdateActionResultRequest(
            action_digest=done.to_proto(), action_result=reapi.ActionResult(exit_code=0)
        )
        await channel.unary_unary(
            REAPI + "ActionCache/UpdateActionResult", update, reapi.ActionResult
        )

        async def answers_while_refusing(limit: str) -> None:
            for _ in range(5):
                before = flood.refused[limit]
                await read_everything(channel, blob, done)
                while flood.refused[limit] == before:
                    await trio.sleep(0.001)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for i in range(FLOODS):
                    nursery.start_soon(flood.execute, i)
                await answers_while_refusing("max_queued")
                assert server.running.scheduler.queued == QUEUED
                [waited_for, *_] = await unfinished(channel)
                for _ in range(FLOODS):
                    nursery.start_soon(flood.wait, waited_for)
                await answers_while_refusing("max_streams")
                nursery.cancel_scope.cancel()
            # All is given back: what was accepted runs or ends for want of anybody who waits.
            (tmp_path / "let-on").touch()
            while server.running.scheduler.queued or server.running.scheduler.executing:
                await trio.sleep(0.01)
            assert await unfinished(channel) == []
        assert all(0 < delay <= 60 for delay in flood.delays)


async def read_everything(channel: Channel, blob: Digest, action: Digest) -> None:
    """What every build needs, and whoever looks after the server."""
    reads = reapi.BatchReadBlobsRequest(digests=[blob.to_proto()])
    found = await channel.unary_unary(
        REAPI + "ContentAddressableStorage/BatchReadBlobs", reads, reapi.BatchReadBlobsResponse
    )
    assert found.responses[0].data == b"blob" * 1000
    async with channel.open_stream(
        "/google.bytestream.ByteStream/Read", bytestream.ReadResponse
    ) as stream:
        await stream.send(bytestream.ReadRequest(resource_name=f"blobs/{blob}"))
        await stream.send_eof()
        response = await stream.receive()
        assert response is not None
        assert response.data == b"blob" * 1000
    get = reapi.GetActionResultRequest(action_digest=action.to_proto())
    await channel.unary_unary(REAPI + "ActionCache/GetActionResult", get, reapi.ActionResult)
    missing = reapi.FindMissingBlobsRequest(blob_digests=[blob.to_proto()])
    answer = await channel.unary_unary(
        REAPI + "ContentAddressableStorage/FindMissingBlobs",
        missing,
        reapi.FindMissingBlobsResponse,
    )
    assert not answer.missing_blob_digests
    status = await channel.unary_unary(
        "/grpc.health.v1.Health/Check", health.HealthCheckRequest(), health.HealthCheckResponse
    )
    assert status.status == health.HealthCheckResponse.SERVING
