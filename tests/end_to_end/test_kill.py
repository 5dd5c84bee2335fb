"""A server that is killed at any moment serves no wrong byte afterwards (STO-02, BUB-14)."""

from __future__ import annotations

import os
import random
from pathlib import Path

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.message import Message

from stoker.digest import SHA256, Digest
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import remote_execution_pb2 as reapi

from .server_process import open_server_process

pytestmark = pytest.mark.slow

ROUNDS = 50
REAPI = "/build.bazel.remote.execution.v2."


class Load:
    """Uploads and actions without end, of blobs that can be made again from their number."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tried: dict[Digest, int] = {}

    def blob(self, number: int) -> bytes:
        rng = random.Random(number)
        return rng.randbytes(rng.choice((0, 100, 5_000, 70_000, 1_500_000)))

    def new_blob(self) -> tuple[Digest, bytes]:
        number = self.rng.getrandbits(48)
        data = self.blob(number)
        digest = SHA256.digest(data)
        self.tried[digest] = number
        return digest, data


class Calls:
    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )

    def unary(self, method: str, response_type: type[Message]) -> grpc.UnaryUnaryMultiCallable:
        return self.channel.unary_unary(
            REAPI + method, lambda m: m.SerializeToString(), response_type.FromString
        )

    def start_write(self, digest: Digest, data: bytes, number: int) -> grpc.Future:
        name = f"uploads/{number}/blobs/{digest}"
        pieces = [data[i : i + 65536] for i in range(0, len(data), 65536)] or [b""]
        requests = (
            bytestream.WriteRequest(
                resource_name=name,
                write_offset=i * 65536,
                data=piece,
                finish_write=i == len(pieces) - 1,
            )
            for i, piece in enumerate(pieces)
        )
        return self.channel.stream_unary(
            "/google.bytestream.ByteStream/Write",
            bytestream.WriteRequest.SerializeToString,
            bytestream.WriteResponse.FromString,
        ).future(requests)

    def start_batch(self, blobs: list[tuple[Digest, bytes]]) -> grpc.Future:
        request = reapi.BatchUpdateBlobsRequest(
            requests=[
                reapi.BatchUpdateBlobsRequest.Request(digest=d.to_proto(), data=data)
                for d, data in blobs
            ]
        )
        method = "ContentAddressableStorage/BatchUpdateBlobs"
        return self.unary(method, reapi.BatchUpdateBlobsResponse).future(request)

    def execute(self, number: int) -> grpc.Call:
        """Upload and start an action that writes outputs, large and small."""
        script = f"seq {number % 50_000} >a; printf %s {number} >b; cp a c"
        command = reapi.Command(
            arguments=["sh", "-c", script],
            output_paths=["a", "b", "c"],
            environment_variables=[reapi.Command.EnvironmentVariable(name="N", value=str(number))],
        ).SerializeToString()
        action = reapi.Action(
            command_digest=SHA256.digest(command).to_proto(),
            input_root_digest=SHA256.empty.to_proto(),
        ).SerializeToString()
        blobs = [(SHA256.digest(data), data) for data in (command, action)]
        self.start_batch(blobs).result(30)
        return self.channel.unary_stream(
            REAPI + "Execution/Execute",
            reapi.ExecuteRequest.SerializeToString,
            operations_pb2.Operation.FromString,
        )(reapi.ExecuteRequest(action_digest=blobs[1][0].to_proto()))

    def present(self, digests: list[Digest]) -> list[Digest]:
        request = reapi.FindMissingBlobsRequest(blob_digests=[d.to_proto() for d in digests])
        method = "ContentAddressableStorage/FindMissingBlobs"
        response = self.unary(method, reapi.FindMissingBlobsResponse)(request, timeout=60)
        missing = {digest.hash for digest in response.missing_blob_digests}
        return [digest for digest in digests if digest.hash not in missing]

    def read(self, digest: Digest) -> bytes:
        responses = self.channel.unary_stream(
            "/google.bytestream.ByteStream/Read",
            bytestream.ReadRequest.SerializeToString,
            bytestream.ReadResponse.FromString,
        )(bytestream.ReadRequest(resource_name=f"blobs/{digest}"), timeout=60)
        return b"".join(response.data for response in responses)


def parts_below(folder: Path) -> list[str]:
    """Unfinished files. Folders of earlier actions go meanwhile, which os.walk does not mind."""
    return [name for _, _, names in os.walk(folder) for name in names if name.endswith(".part")]


def test_fifty_kills(tmp_path: Path) -> None:
    load = Load(seed=50)
    confirmed: set[Digest] = set()
    outputs: set[Digest] = set()
    executed = 0
    for round_ in range(ROUNDS):
        with open_server_process(tmp_path / "server") as server:
            calls = Calls(server.address)
            assert not parts_below(tmp_path / "server"), f"round {round_}"
            check_all(calls, load, confirmed, outputs)
            uploads, streams = [], []
            for index in range(load.rng.randrange(1, 12)):
                single = load.new_blob()
                uploads.append(([single[0]], calls.start_write(*single, number=index)))
                batch = [b for b in (load.new_blob() for _ in range(3)) if len(b[1]) < 100_000]
                uploads.append(([d for d, _ in batch], calls.start_batch(batch)))
            streams = [calls.execute(load.rng.getrandbits(32)) for _ in range(2)]
            until_killed = load.rng.uniform(0, 0.2)
            _wait_some(uploads, until_killed)
            if round_ % 3 == 0:  # let one action end, so that the other is in the midst of it
                executed += _take_outputs(streams[0], outputs)
            server.kill()
            for digests, upload in uploads:
                if upload.exception() is None:
                    confirmed.update(digests)
            for stream in streams:
                executed += _take_outputs(stream, outputs)
            calls.channel.close()
    with open_server_process(tmp_path / "server") as server:
        calls = Calls(server.address)
        check_all(calls, load, confirmed, outputs)
        calls.channel.close()
    assert confirmed  # some uploads did get through
    assert executed  # and some actions


def check_all(calls: Calls, load: Load, confirmed: set[Digest], outputs: set[Digest]) -> None:
    """What is reported present reads back whole, and what was confirmed is present."""
    present = calls.present([*load.tried, *outputs])
    assert confirmed | outputs <= set(present)
    for digest in present:
        assert SHA256.digest(calls.read(digest)) == digest
    for digest in [*load.tried]:
        if digest in confirmed and load.rng.random() < 0.5:
            confirmed.discard(digest)  # checked often enough: keeps fifty rounds short
            del load.tried[digest]


def _wait_some(uploads: list[tuple[list[Digest], grpc.Future]], seconds: float) -> None:
    """Wait for the first upload that takes longer than the rest of `seconds`."""
    for _, upload in uploads:
        try:
            upload.result(seconds)
        except grpc.FutureTimeoutError:
            return
        seconds /= 2


def _take_outputs(stream: grpc.Call, outputs: set[Digest]) -> int:
    """Note the outputs of an action whose end was told before the server was killed."""
    try:
        for operation in stream:
            if operation.done:
                response = reapi.ExecuteResponse()
                operation.response.Unpack(response)
                outputs.update(SHA256.parse(file.digest) for file in response.result.output_files)
                return len(response.result.output_files) == 3
    except grpc.RpcError:
        pass
    return 0
