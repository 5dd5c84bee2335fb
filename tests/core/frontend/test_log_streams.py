"""The LogStream service, and ByteStream on its names (LOG-01 to LOG-05)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trio

from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import logstream_pb2 as logstream
from stoker.rpc import Channel, RpcError, StatusCode, open_channel
from stoker.testing.server import MEMORY_ONLY, open_test_server

from .conftest import BYTESTREAM, Client, chunks, code_of, failure_of
from .test_live_output import reading

CREATE = "/build.bazel.remote.logstream.v1.LogStreamService/CreateLogStream"

BOUNDED = f"""
{MEMORY_ONLY}
[instances."main/ci"]
blob_store = "main"
action_cache = "main"
[server]
drain_seconds = 0.2
[log_streams]
max_streams = 3
max_stream_bytes = 100_000
"""


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with open_test_server(BOUNDED, tmp_path) as server:
        client = Client(server.address)
        yield client
        client.channel.close()


@pytest.fixture
async def channel(client: Client) -> AsyncIterator[Channel]:
    async with open_channel(client.address) as channel:
        yield channel


async def create(client: Client, parent: str = "") -> logstream.LogStream:
    request = logstream.CreateLogStreamRequest(parent=parent)
    return await client.unary(CREATE, request, logstream.LogStream)


def part(name: str, data: bytes, offset: int = 0) -> list[bytestream.WriteRequest]:
    """A call that appends `data`, and does not finish."""
    return [bytestream.WriteRequest(resource_name=name, write_offset=offset, data=data)]


async def test_names_grant_what_they_say(client: Client) -> None:  # LOG-01, LOG-04
    stream = await create(client, "main/ci")
    parent, _, identity = stream.name.rpartition("/logstreams/")
    assert (parent, len(identity)) == ("main/ci", 32)
    assert stream.write_resource_name.startswith(stream.name)
    token = stream.write_resource_name.rpartition("/")[2]
    other = await create(client)
    assert token not in other.write_resource_name
    for wrong in (stream.write_resource_name[:-1] + "?", f"{other.name}/write/{token}"):
        assert await code_of(client.write(part(wrong, b"x"))) == grpc.StatusCode.NOT_FOUND
        assert await code_of(client.write_status(wrong)) == grpc.StatusCode.NOT_FOUND
    read = client.read(stream.write_resource_name)
    assert await code_of(read) == grpc.StatusCode.INVALID_ARGUMENT
    for call in (client.write(part(stream.name, b"x")), client.write_status(stream.name)):
        assert await code_of(call) == grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(create(client, "nobody")) == grpc.StatusCode.INVALID_ARGUMENT


async def test_what_is_written_is_read_as_it_comes(
    client: Client, channel: Channel
) -> None:  # BSR-22, LOG-02, LOG-03, LOG-05
    stream = await create(client)
    name = stream.write_resource_name
    async with (
        reading(channel, stream.name) as reader,
        reading(channel, stream.name, offset=5) as behind,
        channel.open_stream(BYTESTREAM + "Write", bytestream.WriteResponse) as writer,
    ):
        await writer.send(bytestream.WriteRequest(resource_name=name, data=b"hello"))
        assert await reader.read(5) == b"hello"
        busy = client.write(part(name, b"x", 5))
        assert await code_of(busy) == grpc.StatusCode.ABORTED
        await writer.send(bytestream.WriteRequest(write_offset=5, data=b" you"))
        assert await behind.read(4) == b" you"
        assert await client.write_status(name) == (9, False)
        await writer.send_eof()
        response = await writer.receive()
        assert response is not None
        assert response.committed_size == 9
        # Another call goes on where the first one ended, and nowhere else.
        assert await code_of(client.write(part(name, b"!", 8))) == grpc.StatusCode.INVALID_ARGUMENT
        assert await client.write(chunks(name, b"!!", 1, offset=9)) == 11
        assert await reader.read_all() == b" you!!"
        assert await behind.read_all() == b"!!"
    assert await client.write_status(name) == (11, True)
    late = client.write(part(name, b"x", 11))
    assert await code_of(late) == grpc.StatusCode.FAILED_PRECONDITION
    assert await client.read(stream.name, 6, 3) == b"you"
    assert await client.read(stream.name, 11) == b""
    assert await code_of(client.read(stream.name, 12)) == grpc.StatusCode.OUT_OF_RANGE


async def test_a_stream_is_bounded_and_keeps_what_it_has(client: Client) -> None:
    stream = await create(client)
    name = stream.write_resource_name
    error = await failure_of(client.write(chunks(name, bytes(150_000), 60_000)))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "100000 bytes" in error.details()
    assert await client.write_status(name) == (60_000, False)
    assert await client.write(chunks(name, bytes(40_000), 10_000, offset=60_000)) == 100_000


async def test_there_are_so_many_streams_and_nothing_of_them_is_a_path(
    client: Client, tmp_path: Path
) -> None:  # SEC-05
    streams = [await create(client) for _ in range(3)]
    await client.write(part(streams[0].write_resource_name, b"content"))
    with pytest.raises(grpc.RpcError, match=r"`max_streams` in \[log_streams\]") as refused:
        await create(client)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    # On disk, and without a name there: nothing is left by a server that is killed.
    folder = tmp_path / "stoker-state" / "log-streams"
    assert list(folder.iterdir()) == []
    ours = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert sum(path.startswith(str(folder)) for path in ours) == 3


async def test_a_stream_that_is_idle_is_forgotten(tmp_path: Path) -> None:
    toml = BOUNDED.replace("max_streams = 3", "max_streams = 1\nidle_seconds = 0.4")
    async with (
        open_test_server(toml, tmp_path) as server,
        open_channel(server.address) as channel,
    ):
        client = Client(server.address)
        stream = await create(client)
        async with (
            channel.open_stream(BYTESTREAM + "Write", bytestream.WriteResponse) as writer,
            reading(channel, stream.name) as reader,
        ):
            first = bytestream.WriteRequest(resource_name=stream.write_resource_name, data=b"x")
            await writer.send(first)
            assert await reader.read(1) == b"x"
            await trio.sleep(0.6)
            # A writer that is there keeps it.
            await writer.send(bytestream.WriteRequest(write_offset=1, data=b"y"))
            assert await reader.read(1) == b"y"
            await writer.send_eof()
            await writer.receive()
            with pytest.raises(RpcError) as failure:
                await reader.read_all()
            assert failure.value.code is StatusCode.NOT_FOUND
        assert await code_of(client.read(stream.name)) == grpc.StatusCode.NOT_FOUND
        # Its place is free.
        await create(client)
        client.channel.close()
