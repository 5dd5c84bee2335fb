"""What waits costs the server: queued operations, streams, and handing out an action among many.

Over real gRPC. An operation is one request of Execute whose client goes once it knows the name; a
stream is a call of WaitExecution for one of them. The actions are those of a compiler: twenty
arguments and a few outputs; each is parsed anew. An action in and out is a request that is queued,
and one of those queued before that begins and ends.

Memory is what the process has, by operation and by stream. Beside it stands, as bytes, what the
messages weigh on the wire: a store of the bare requests could not do with less.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio
from google.longrunning import operations_pb2

from bench.load import at_a_time
from bench.measurement import Cost, Pair, Row, cost_at, in_turns
from bench.servers import ServerProcess, open_program
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Channel, open_channel

REAPI = "/build.bazel.remote.execution.v2."
IN_FLIGHT = 200

COMMAND = reapi.Command(
    arguments=["bin/compiler", *(f"--option-{i}=value-of-it" for i in range(19))],
    environment_variables=[reapi.Command.EnvironmentVariable(name="PATH", value="/bin:/usr/bin")],
    output_paths=[f"out/some/folder/file-{i}.o" for i in range(3)],
).SerializeToString()
ACTION = reapi.Action(
    command_digest=SHA256.digest(COMMAND).to_proto(),
    input_root_digest=SHA256.empty.to_proto(),
    # Each is one of its own, though they look alike.
    do_not_cache=True,
).SerializeToString()
METADATA = reapi.RequestMetadata(
    tool_invocation_id="5b2b2d9c-6f5b-4d4e-9a94-2f3a1e0f9b11",
    action_mnemonic="Compile",
    target_id="//some/package:target",
).SerializeToString()
METADATA_KEY = "build.bazel.remote.execution.v2.requestmetadata-bin"
WIRE_BYTES = len(COMMAND) + len(ACTION) + len(METADATA)


def measure(*, quick: bool) -> list[Row]:
    """The rows of memory by operation and by stream, and of an action in and out."""
    if quick:
        return trio.run(_measure, 100, 500, 500, 50, 2)
    return trio.run(_measure, 1_000, 100_000, 5_000, 1_000, 5)


async def _measure(few: int, many: int, streams: int, actions: int, rounds: int) -> list[Row]:
    async with _open_queue() as short, _open_queue() as long:
        await short.fill(few)
        before = await long.resident()
        await long.fill(many)
        operation_bytes = (await long.resident() - before) / many
        pair = Pair(
            *await in_turns(rounds, lambda: long.replace(actions), lambda: short.replace(actions))
        )
        stream_bytes = await long.stream_bytes(streams)
    return [
        pair.cpu_row(
            f"action in and out, {many:,} queued",
            f"the same with {few:,} queued",
            unit="µs CPU",
            per_second=1e6 / actions,
            at_most=1.5,
        ),
        _bytes_row(f"memory by operation, {many:,} queued", operation_bytes, WIRE_BYTES),
        _bytes_row(f"memory by stream, {streams:,} waiting", stream_bytes, WIRE_BYTES),
    ]


def _bytes_row(what: str, ours: float, wire: float) -> Row:
    return Row(
        what=what,
        unit="bytes",
        ours=[ours] * 2,
        against="the messages of one as they are sent",
        theirs=[wire] * 2,
    )


class _Queue:
    """A server that always has as many queued."""

    def __init__(self, server: ServerProcess, channels: list[Channel]) -> None:
        self._server = server
        self._channels = itertools.cycle(channels)
        self._channel = channels[0]
        self._names: list[str] = []

    async def fill(self, count: int) -> None:
        """Queue `count` actions more."""
        await at_a_time(IN_FLIGHT, range(count), self._submit)

    async def replace(self, count: int) -> Cost:
        """What `count` actions cost the server, each in and out."""
        queued = await self._ask("Queued")

        async def work() -> None:
            await self.fill(count)
            await self._ask("End", b"%d" % count)
            await self._ask("AwaitQueued", b"%d" % queued)

        return await cost_at(self._server, work)

    async def resident(self) -> int:
        """The bytes of memory that the server has."""
        return await self._ask("Resident")

    async def stream_bytes(self, count: int) -> float:
        """By how much the server grows with each of so many streams that wait."""
        before = await self.resident()
        async with AsyncExitStack() as exits:

            async def wait(name: str) -> None:
                request = reapi.WaitExecutionRequest(name=name)
                stream = await exits.enter_async_context(
                    next(self._channels).open_stream(
                        REAPI + "Execution/WaitExecution", operations_pb2.Operation
                    )
                )
                await stream.send(request)
                await stream.send_eof()
                await stream.receive()

            for name in self._names[-count:]:
                await wait(name)
            # Few may find room in what the server has had before.
            return max(await self.resident() - before, 1) / count

    async def _submit(self, _number: int) -> None:
        request = reapi.ExecuteRequest(action_digest=SHA256.digest(ACTION).to_proto())
        async with next(self._channels).open_stream(
            REAPI + "Execution/Execute",
            operations_pb2.Operation,
            metadata=((METADATA_KEY, METADATA),),
        ) as stream:
            await stream.send(request)
            await stream.send_eof()
            operation = await stream.receive()
            assert operation is not None
            self._names.append(operation.name)

    async def _ask(self, method: str, request: bytes = b"") -> int:
        answer = await self._channel.unary_unary(f"/bench.Queue/{method}", request, bytes)
        return int(answer or 0)


@asynccontextmanager
async def _open_queue() -> AsyncIterator[_Queue]:
    with open_program("queue_server.py") as server:
        async with AsyncExitStack() as exits:
            channels = [
                await exits.enter_async_context(open_channel(server.address)) for _ in range(4)
            ]
            blobs = [COMMAND, ACTION]
            await channels[0].unary_unary(
                REAPI + "ContentAddressableStorage/BatchUpdateBlobs",
                reapi.BatchUpdateBlobsRequest(requests=[_upload(blob) for blob in blobs]),
                reapi.BatchUpdateBlobsResponse,
            )
            yield _Queue(server, channels)


def _upload(blob: bytes) -> reapi.BatchUpdateBlobsRequest.Request:
    digest: Digest = SHA256.digest(blob)
    return reapi.BatchUpdateBlobsRequest.Request(digest=digest.to_proto(), data=blob)
