"""A whole server, and a client of Google's own library to talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import trio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from stoker.digest import SHA256, Digest
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import EXECUTING, open_test_server

REAPI = "/build.bazel.remote.execution.v2."
BYTESTREAM = "/google.bytestream.ByteStream/"
OPERATIONS = "/google.longrunning.Operations/"

ResponseT = TypeVar("ResponseT", bound=Message)


class Client:
    """grpcio's blocking client in threads, as a client of another maker would speak."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )

    async def unary(
        self,
        method: str,
        request: Message,
        response_type: type[ResponseT],
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> ResponseT:
        call = self.channel.unary_unary(
            method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_type.FromString,
        )
        return await trio.to_thread.run_sync(partial(call, request, metadata=metadata, timeout=30))

    async def stream(
        self,
        method: str,
        request: Message,
        response_type: type[ResponseT],
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> list[ResponseT]:
        call = self.channel.unary_stream(
            method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_type.FromString,
        )
        return await trio.to_thread.run_sync(
            lambda: list(call(request, metadata=metadata, timeout=30))
        )

    async def write(self, requests: Iterable[bytestream.WriteRequest]) -> int:
        call = self.channel.stream_unary(
            BYTESTREAM + "Write",
            request_serializer=bytestream.WriteRequest.SerializeToString,
            response_deserializer=bytestream.WriteResponse.FromString,
        )
        response = await trio.to_thread.run_sync(lambda: call(iter(requests), timeout=30))
        return int(response.committed_size)

    async def read(self, name: str, offset: int = 0, limit: int = 0) -> bytes:
        request = bytestream.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        responses = await self.stream(BYTESTREAM + "Read", request, bytestream.ReadResponse)
        return b"".join(response.data for response in responses)

    async def put(self, *blobs: bytes, instance_name: str = "") -> list[Digest]:
        """Upload small blobs by batch; returns their digests."""
        digests = [SHA256.digest(blob) for blob in blobs]
        request = reapi.BatchUpdateBlobsRequest(
            instance_name=instance_name,
            requests=[
                reapi.BatchUpdateBlobsRequest.Request(digest=digest.to_proto(), data=blob)
                for digest, blob in zip(digests, blobs, strict=True)
            ],
        )
        response = await self.unary(
            REAPI + "ContentAddressableStorage/BatchUpdateBlobs",
            request,
            reapi.BatchUpdateBlobsResponse,
        )
        assert [r.status.code for r in response.responses] == [0] * len(blobs)
        return digests

    async def put_message(self, message: Message) -> Digest:
        [digest] = await self.put(message.SerializeToString())
        return digest

    async def missing(self, *digests: Digest, instance_name: str = "") -> set[str]:
        response = await self.unary(
            REAPI + "ContentAddressableStorage/FindMissingBlobs",
            reapi.FindMissingBlobsRequest(
                instance_name=instance_name, blob_digests=[d.to_proto() for d in digests]
            ),
            reapi.FindMissingBlobsResponse,
        )
        return {digest.hash for digest in response.missing_blob_digests}

    async def put_action(
        self,
        *arguments: str,
        files: dict[str, bytes] | None = None,
        platform: dict[str, str] | None = None,
        timeout_seconds: int = 0,
        do_not_cache: bool = False,
        salt: bytes = b"",
        **command: Any,
    ) -> Digest:
        """Upload everything that an action of one flat folder needs; returns its digest."""
        names = sorted(files or {})
        digests = await self.put(*((files or {})[name] for name in names))
        root = await self.put_message(
            reapi.Directory(
                files=[
                    reapi.FileNode(name=name, digest=digest.to_proto())
                    for name, digest in zip(names, digests, strict=True)
                ]
            )
        )
        action = reapi.Action(
            command_digest=(
                await self.put_message(reapi.Command(arguments=arguments, **command))
            ).to_proto(),
            input_root_digest=root.to_proto(),
            do_not_cache=do_not_cache,
            salt=salt,
            platform=reapi.Platform(
                properties=[
                    reapi.Platform.Property(name=name, value=value)
                    for name, value in sorted((platform or {}).items())
                ]
            ),
        )
        if timeout_seconds:
            action.timeout.seconds = timeout_seconds
        return await self.put_message(action)


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    """The google.rpc.Status in a call's trailers."""
    assert isinstance(error, grpc.Call)
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(bytes(trailers["grpc-status-details-bin"]))
    assert status.code == error.code().value[0]
    return status


def missing_subjects(status: status_pb2.Status) -> set[str]:
    """The subjects of the MISSING violations in a status (EXE-03)."""
    [detail] = status.details
    failure = error_details_pb2.PreconditionFailure()
    assert detail.Unpack(failure)
    assert {violation.type for violation in failure.violations} == {"MISSING"}
    return {violation.subject for violation in failure.violations}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a server that keeps blobs in memory and runs actions as local processes."""
    async with open_test_server(EXECUTING, tmp_path) as server:
        client = Client(server.address)
        try:
            yield client
        finally:
            client.channel.close()
