"""Stdout and stderr of actions, read while they run (OPS-16, LOG-03, LOG-04, LOG-06)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trio
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty

from stoker.digest import SHA256, Digest
from stoker.log_streams import stream
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Channel, ClientStream, RpcError, StatusCode, open_channel
from stoker.testing.server import EXECUTING, ServerUnderTest, open_test_server

from .conftest import BYTESTREAM, OPERATIONS, REAPI, Client, code_of
from .stepwise import STEPWISE, Fifo


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    async with open_test_server(EXECUTING, tmp_path / "server") as server:
        yield server


@pytest.fixture
async def client(server: ServerUnderTest) -> AsyncIterator[Client]:
    client = Client(server.address)
    yield client
    client.channel.close()


@pytest.fixture
async def channel(server: ServerUnderTest) -> AsyncIterator[Channel]:
    async with open_channel(server.address) as channel:
        yield channel


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    fifo = Fifo(tmp_path / "fifo")
    yield fifo
    fifo.close()


class Running:
    """An action whose Execute stream is open."""

    def __init__(self, messages: ClientStream[operations_pb2.Operation]) -> None:
        self._stream = messages
        self.name = ""
        self.stdout = self.stderr = ""

    async def wait_executing(self) -> Running:
        while not self.stdout:
            operation = await self._stream.receive()
            assert operation is not None
            assert not operation.done, "it has ended"
            self.name = operation.name
            metadata = metadata_of(operation)
            assert bool(metadata.stdout_stream_name) == (
                metadata.stage == reapi.ExecutionStage.EXECUTING
            )
            self.stdout, self.stderr = metadata.stdout_stream_name, metadata.stderr_stream_name
        return self

    async def wait_end(self) -> reapi.ExecuteResponse:
        while (operation := await self._stream.receive()) is not None:
            if operation.done:
                response = reapi.ExecuteResponse()
                assert operation.response.Unpack(response)
                return response
        raise AssertionError("the stream ended early")


def metadata_of(operation: operations_pb2.Operation) -> reapi.ExecuteOperationMetadata:
    metadata = reapi.ExecuteOperationMetadata()
    assert operation.metadata.Unpack(metadata)
    return metadata


@asynccontextmanager
async def executing(channel: Channel, digest: Digest) -> AsyncIterator[Running]:
    request = reapi.ExecuteRequest(action_digest=digest.to_proto())
    async with channel.open_stream(
        REAPI + "Execution/Execute", operations_pb2.Operation, only_request=request
    ) as messages:
        yield await Running(messages).wait_executing()


class Reader:
    """A ByteStream.Read that is under way."""

    def __init__(self, responses: ClientStream[bytestream.ReadResponse]) -> None:
        self._stream = responses
        self._data = b""

    async def read(self, count: int) -> bytes:
        """The next `count` bytes."""
        while len(self._data) < count:
            response = await self._stream.receive()
            assert response is not None, f"it ended after {self._data!r}"
            self._data += response.data
        data, self._data = self._data[:count], self._data[count:]
        return data

    async def read_all(self) -> bytes:
        """Everything up to the end, which comes with OK."""
        pieces = [self._data]
        while (response := await self._stream.receive()) is not None:
            pieces.append(response.data)
        return b"".join(pieces)


@asynccontextmanager
async def reading(channel: Channel, name: str, offset: int = 0) -> AsyncIterator[Reader]:
    request = bytestream.ReadRequest(resource_name=name, read_offset=offset)
    async with channel.open_stream(
        BYTESTREAM + "Read", bytestream.ReadResponse, only_request=request
    ) as responses:
        yield Reader(responses)


async def test_output_comes_step_by_step_and_ends_with_the_action(
    client: Client, channel: Channel, fifo: Fifo
) -> None:  # OPS-16, LOG-03, LOG-06
    action = await client.put_action("sh", "-c", STEPWISE, fifo.path)
    async with (
        executing(channel, action) as running,
        reading(channel, running.stdout) as out,
        reading(channel, running.stderr) as err,
        reading(channel, running.stdout) as another,
    ):
        assert running.stdout.startswith("logstreams/")
        for word in ("one", "two"):
            fifo.tell(word)
            assert await out.read(4) == f"{word}\n".encode()
            assert await err.read(5) == f"{word}!\n".encode()
        async with reading(channel, running.stdout, offset=4) as late:
            assert await late.read(4) == b"two\n"
        async with reading(channel, running.stdout, offset=8) as ahead:
            fifo.tell("more", "end")
            assert await ahead.read_all() == b"more\n"
        assert await out.read_all() == b"more\n"
        assert await err.read_all() == b"more!\n"
        assert await another.read_all() == b"one\ntwo\nmore\n"
        result = (await running.wait_end()).result
        assert result.stdout_digest == SHA256.digest(b"one\ntwo\nmore\n").to_proto()
    # As long as the operation is known, from the CAS (LOG-06).
    assert await client.read(running.stdout) == b"one\ntwo\nmore\n"
    assert await client.read(running.stdout, 4, 3) == b"two"
    assert await client.read(running.stdout, 13) == b""
    assert await code_of(client.read(running.stdout, 14)) == grpc.StatusCode.OUT_OF_RANGE


async def test_a_limit_ends_a_read_of_what_goes_on(
    client: Client, channel: Channel, fifo: Fifo
) -> None:  # BSR-05
    action = await client.put_action("sh", "-c", STEPWISE, fifo.path)
    async with executing(channel, action) as running:
        fifo.tell("one", "two")
        assert await client.read(running.stdout, 1, 5) == b"ne\ntw"
        assert await code_of(client.read(running.stdout, -1)) == grpc.StatusCode.OUT_OF_RANGE
        assert await code_of(client.read(running.stdout, 0, -1)) == grpc.StatusCode.INVALID_ARGUMENT
        fifo.tell("end")


async def test_who_joins_a_run_reads_the_same_streams(
    client: Client, channel: Channel, fifo: Fifo
) -> None:  # EXE-21
    action = await client.put_action("sh", "-c", STEPWISE, fifo.path)
    async with executing(channel, action) as first, executing(channel, action) as second:
        assert first.name != second.name
        async with reading(channel, second.stderr) as err:
            fifo.tell("end")
            assert await err.read_all() == b""


async def test_names_that_are_not_known(client: Client) -> None:  # LOG-04, SEC-05
    for name in ("logstreams/00", "logstreams/..", "logstreams/\0", "/logstreams/x"):
        assert await code_of(client.read(name)) == grpc.StatusCode.NOT_FOUND
    for name in ("nobody/logstreams/00", "logstreams/a/b", "logstreams"):
        assert await code_of(client.read(name)) == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_cancelled_action_ends_its_streams(
    client: Client, channel: Channel, fifo: Fifo
) -> None:
    action = await client.put_action("sh", "-c", STEPWISE, fifo.path)
    async with executing(channel, action) as running, reading(channel, running.stdout) as out:
        fifo.tell("one")
        assert await out.read(4) == b"one\n"
        request = operations_pb2.CancelOperationRequest(name=running.name)
        await client.unary(OPERATIONS + "CancelOperation", request, Empty)
        assert await out.read_all() == b""
    # Nobody has stored it.
    assert await code_of(client.read(running.stdout)) == grpc.StatusCode.NOT_FOUND


async def test_who_never_reads_what_nobody_keeps_lets_go_of_it(
    client: Client, channel: Channel, fifo: Fifo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held() -> int:
        links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        return sum(link.startswith(f"{tmp_path}/server") and "stdout" in link for link in links)

    monkeypatch.setattr(stream, "LAST_SECONDS", 0.1)
    script = "head -c 50000000 /dev/zero; echo >&2; sleep 60"
    action = await client.put_action("sh", "-c", script)
    async with (
        executing(channel, action) as running,
        reading(channel, running.stderr) as err,
        reading(channel, running.stdout) as never,
    ):
        await err.read(1)
        await never.read(1)
        assert held() == 1
        request = operations_pb2.CancelOperationRequest(name=running.name)
        await client.unary(OPERATIONS + "CancelOperation", request, Empty)
        assert await err.read_all() == b""
        while held():
            await trio.sleep(0.01)
        with pytest.raises(RpcError) as failure:
            await never.read_all()
        assert failure.value.code is StatusCode.UNAVAILABLE


async def test_a_timeout_keeps_what_was_printed(client: Client, channel: Channel) -> None:
    action = await client.put_action("sh", "-c", "echo so far; sleep 60", timeout_seconds=1)
    async with executing(channel, action) as running, reading(channel, running.stdout) as out:
        assert await out.read_all() == b"so far\n"
    assert await client.read(running.stderr) == b""


async def test_gigabytes_that_are_read_slowly_or_never(client: Client, channel: Channel) -> None:
    size = 100_000_000
    action = await client.put_action("sh", "-c", f"sleep 0.3; head -c {size} /dev/zero; echo end")
    async with (
        executing(channel, action) as running,
        reading(channel, running.stdout) as never,
        reading(channel, running.stdout) as out,
    ):
        count, last = 0, b""
        while response := await out._stream.receive():
            count, last = count + len(response.data), response.data
        assert (count, last[-4:]) == (size + 4, b"end\n")
        assert (await running.wait_end()).result.stdout_digest.size_bytes == count
        assert await never.read(10) == bytes(10)


async def test_an_action_that_removes_its_own_stdout(
    client: Client, channel: Channel, fifo: Fifo
) -> None:
    script = """exec 3<"$0"; echo before; read x <&3
        rm "$(readlink /proc/$$/fd/1)"; read x <&3; echo after"""
    action = await client.put_action("sh", "-c", script, fifo.path)
    async with executing(channel, action) as running, reading(channel, running.stdout) as out:
        assert await out.read(7) == b"before\n"
        fifo.tell("go", "go")
        assert await out.read_all() == b"after\n"
        assert "stdout" in (await running.wait_end()).status.message
    assert await code_of(client.read(running.stdout)) == grpc.StatusCode.NOT_FOUND


async def test_an_action_that_replaces_its_own_stdout(
    client: Client, channel: Channel, fifo: Fifo
) -> None:
    script = """exec 3<"$0"; echo before; read x <&3
        out="$(readlink /proc/$$/fd/1)"; mv "$out" ../x; seq 99 >"$out"; read x <&3; echo after"""
    action = await client.put_action("sh", "-c", script, fifo.path)
    async with executing(channel, action) as running, reading(channel, running.stdout) as out:
        assert await out.read(7) == b"before\n"
        fifo.tell("go", "go")
        with pytest.raises(RpcError, match="in place of what was read"):
            await out.read_all()
        result = (await running.wait_end()).result
        assert await client.read(running.stdout) == b"".join(b"%d\n" % n for n in range(1, 100))
        assert result.stdout_digest.size_bytes == 9 * 2 + 90 * 3


async def test_an_action_that_cuts_its_own_stdout_short(
    client: Client, channel: Channel, fifo: Fifo
) -> None:
    script = 'exec 3<"$0"; echo before; read x <&3; : >/dev/stdout; read x <&3; echo now'
    action = await client.put_action("sh", "-c", script, fifo.path)
    async with executing(channel, action) as running, reading(channel, running.stdout) as out:
        assert await out.read(7) == b"before\n"
        fifo.tell("go")
        with pytest.raises(RpcError, match="cut it short") as failure:
            await out.read_all()
        assert failure.value.code is StatusCode.FAILED_PRECONDITION
        async with reading(channel, running.stdout) as again:
            fifo.tell("go")
            assert await again.read_all() == b"now\n"
        result = (await running.wait_end()).result
        assert result.stdout_digest == SHA256.digest(b"now\n").to_proto()


async def test_a_name_says_nothing_of_the_next_action_in_the_same_folder(
    client: Client, channel: Channel, fifo: Fifo
) -> None:
    quiet = await client.put_action("sh", "-c", 'read x <"$0"', fifo.path, salt=b"1")
    loud = await client.put_action("sh", "-c", STEPWISE, fifo.path, salt=b"2")
    async with executing(channel, quiet) as first:
        async with reading(channel, first.stdout) as out:
            fifo.tell("go")
            assert await out.read_all() == b""
        await first.wait_end()
    async with executing(channel, loud) as second:
        fifo.tell("secret")
        assert await client.read(second.stdout, 0, 7) == b"secret\n"
        assert await client.read(first.stdout) == b""
        fifo.tell("end")


async def test_without_an_operation_that_remembers_it_there_is_no_stream(
    tmp_path: Path,
) -> None:  # LOG-06
    forgetful = f"{EXECUTING}\n[scheduler]\nmax_retained_bytes = 0\n"
    async with (
        open_test_server(forgetful, tmp_path) as server,
        open_channel(server.address) as channel,
    ):
        client = Client(server.address)
        action = await client.put_action("sh", "-c", "echo word; sleep 0.5")
        async with executing(channel, action) as running:
            assert await client.read(running.stdout) == b"word\n"
            await running.wait_end()
        request = operations_pb2.GetOperationRequest(name=running.name)
        gone = client.unary(OPERATIONS + "GetOperation", request, operations_pb2.Operation)
        assert await code_of(gone) == grpc.StatusCode.NOT_FOUND
        assert await code_of(client.read(running.stdout)) == grpc.StatusCode.NOT_FOUND
        client.channel.close()
