"""What a server process takes: memory with a slow reader, threads with many streams."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trio
from google.longrunning import operations_pb2

from stoker.digest import SHA256, Digest
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import open_channel

from .server_process import LOCAL, ServerProcess, open_server_process

pytestmark = pytest.mark.slow

GIB = 1 << 30
MAX_RESIDENT_BYTES = 150 * 1000 * 1000
STREAMS = 5000
REAPI = "/build.bazel.remote.execution.v2."


def status_of(server: ServerProcess, field: str) -> int:
    """A number of /proc/PID/status; sizes are in KiB there."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(field))
    return int(line.split()[1])


def blob_of_a_gibibyte() -> tuple[Digest, list[bytes]]:
    chunk = os.urandom(1 << 20)
    hasher = SHA256.new()
    for _ in range(1024):
        hasher.update(chunk)
    return Digest(hasher.hexdigest(), GIB, SHA256), [chunk] * 1024


def test_a_gibibyte_in_and_out_takes_little_memory(tmp_path: Path) -> None:  # BSR-17
    digest, chunks = blob_of_a_gibibyte()
    with open_server_process(tmp_path / "server") as server:
        channel = grpc.insecure_channel(server.address)
        assert upload(channel, digest, chunks) == GIB
        reading = channel.unary_stream(
            "/google.bytestream.ByteStream/Read",
            bytestream.ReadRequest.SerializeToString,
            bytestream.ReadResponse.FromString,
        )
        request = bytestream.ReadRequest(resource_name=f"blobs/{digest}")
        # A slow reader takes a little and then nothing, for as long as a fast one takes.
        slow = [reading(request)]
        taken = [sum(len(next(stream).data) for _ in range(5)) for stream in slow]
        hasher = SHA256.new()
        for response in reading(request):
            hasher.update(response.data)
        assert hasher.hexdigest() == digest.hash
        assert all(0 < size < GIB for size in taken)
        assert status_of(server, "VmHWM") * 1024 < MAX_RESIDENT_BYTES
        for stream, size in zip(slow, taken, strict=True):
            assert size + sum(len(response.data) for response in stream) == GIB
        assert status_of(server, "VmHWM") * 1024 < MAX_RESIDENT_BYTES
        channel.close()


def upload(channel: grpc.Channel, digest: Digest, chunks: list[bytes]) -> int:
    def requests() -> Iterator[bytestream.WriteRequest]:
        offset = 0
        for chunk in chunks:
            end = offset + len(chunk)
            yield bytestream.WriteRequest(
                resource_name=f"uploads/one/blobs/{digest}",
                write_offset=offset,
                data=chunk,
                finish_write=end == GIB,
            )
            offset = end

    write = channel.stream_unary(
        "/google.bytestream.ByteStream/Write",
        bytestream.WriteRequest.SerializeToString,
        bytestream.WriteResponse.FromString,
    )
    return int(write(requests(), timeout=300).committed_size)


# The disk store has a bounded number of threads of its own, which start as they are needed; over
# memory nothing but the streams could add any.
MEMORY = LOCAL.replace('kind = "disk"\npath = "cas"', 'kind = "memory"').replace(
    'kind = "disk"\npath = "actions"', 'kind = "memory"'
)


@pytest.mark.parametrize(("toml", "disk_threads"), [(MEMORY, 0), (LOCAL, 24)])
async def test_five_thousand_streams_on_a_constant_number_of_threads(
    tmp_path: Path, toml: str, disk_threads: int
) -> None:
    assert ('"disk"' in toml) == bool(disk_threads)
    with open_server_process(tmp_path / "server", toml) as server:  # OPS-22, GEN-28
        async with open_channel(server.address) as channel, trio.open_nursery() as nursery:
            let_on = tmp_path / "let-on"
            script = f"while [ ! -e {let_on} ]; do sleep 0.05; done"
            command = reapi.Command(arguments=["sh", "-c", script]).SerializeToString()
            action = reapi.Action(
                command_digest=SHA256.digest(command).to_proto(),
                input_root_digest=SHA256.empty.to_proto(),
            ).SerializeToString()
            await channel.unary_unary(
                REAPI + "ContentAddressableStorage/BatchUpdateBlobs",
                reapi.BatchUpdateBlobsRequest(
                    requests=[
                        reapi.BatchUpdateBlobsRequest.Request(
                            digest=SHA256.digest(data).to_proto(), data=data
                        )
                        for data in (command, action)
                    ]
                ),
                reapi.BatchUpdateBlobsResponse,
            )
            request = reapi.ExecuteRequest(action_digest=SHA256.digest(action).to_proto())
            opened, ended = trio.open_memory_channel[None](0), [0]

            async def follow() -> None:
                method = REAPI + "Execution/Execute"
                async with channel.open_stream(method, operations_pb2.Operation) as stream:
                    await stream.send(request)
                    await stream.send_eof()
                    operation = await stream.receive()
                    await opened[0].send(None)
                    while operation is not None and not operation.done:
                        operation = await stream.receive()
                    ended[0] += operation is not None

            threads = []
            for many in (10, STREAMS - 10):
                for _ in range(many):
                    nursery.start_soon(follow)
                for _ in range(many):
                    await opened[1].receive()
                threads.append(status_of(server, "Threads"))
            assert threads[1] <= threads[0] + disk_threads
            let_on.touch()
        assert ended == [STREAMS]
        assert threading.active_count() < 50
