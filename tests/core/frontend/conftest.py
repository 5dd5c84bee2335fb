"""A whole server, and a client of Google's own library to talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
import trio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from stoker.compose import MAX_MESSAGE_BYTES
from stoker.digest import SHA256, Digest, DigestFunction
from stoker.frontend.action_cache import ActionCacheService
from stoker.frontend.bytestream import ByteStreamService
from stoker.frontend.capabilities import CapabilitiesService
from stoker.frontend.cas import CasService
from stoker.frontend.instances import Instance, Instances
from stoker.frontend.status import translate
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Server
from stoker.spi import BlobStore
from stoker.storage.completeness import CompleteActionCache
from stoker.storage.memory import MemoryActionCache
from stoker.storage.verifying import VerifyingBlobStore
from stoker.testing.server import EXECUTING, open_test_server

REAPI = "/build.bazel.remote.execution.v2."
BYTESTREAM = "/google.bytestream.ByteStream/"
OPERATIONS = "/google.longrunning.Operations/"

ResponseT = TypeVar("ResponseT", bound=Message)


def instance_of(store: BlobStore, name: str = "", **settings: Any) -> Instance:
    """An instance that only caches, on `store`."""
    blobs = VerifyingBlobStore(store)
    actions = CompleteActionCache(MemoryActionCache(), blobs)
    return Instance(name=name, blobs=blobs, actions=actions, **settings)


@asynccontextmanager
async def open_front_door(*instances: Instance) -> AsyncIterator[Client]:
    """A client of a server with these instances and without executors."""
    known = Instances(instances)
    server = Server(
        [
            CapabilitiesService(known).service(),
            CasService(known).service(),
            ByteStreamService(known).service(),
            ActionCacheService(known).service(),
        ],
        translate_error=translate,
        max_receive_message_bytes=MAX_MESSAGE_BYTES,
    )
    port = server.add_listener("127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        client = Client(f"127.0.0.1:{port}")
        try:
            yield client
        finally:
            client.channel.close()
            with trio.CancelScope(shield=True):
                await server.stop(0)


class Client:
    """grpcio's blocking client in threads, as a client of another maker would speak."""

    def __init__(self, address: str) -> None:
        self.address = address
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

    async def write(
        self,
        requests: Iterable[bytestream.WriteRequest],
        metadata: Sequence[tuple[str, str | bytes]] = (),
    ) -> int:
        call = self.channel.stream_unary(
            BYTESTREAM + "Write",
            request_serializer=bytestream.WriteRequest.SerializeToString,
            response_deserializer=bytestream.WriteResponse.FromString,
        )
        response = await trio.to_thread.run_sync(
            lambda: call(iter(requests), metadata=metadata, timeout=30)
        )
        return int(response.committed_size)

    async def write_status(self, name: str) -> tuple[int, bool]:
        """The committed size and whether the blob is complete."""
        request = bytestream.QueryWriteStatusRequest(resource_name=name)
        response = await self.unary(
            BYTESTREAM + "QueryWriteStatus", request, bytestream.QueryWriteStatusResponse
        )
        return response.committed_size, response.complete

    async def capabilities(self, instance_name: str = "") -> reapi.ServerCapabilities:
        return await self.unary(
            REAPI + "Capabilities/GetCapabilities",
            reapi.GetCapabilitiesRequest(instance_name=instance_name),
            reapi.ServerCapabilities,
        )

    async def read(self, name: str, offset: int = 0, limit: int = 0) -> bytes:
        request = bytestream.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        responses = await self.stream(BYTESTREAM + "Read", request, bytestream.ReadResponse)
        return b"".join(response.data for response in responses)

    async def put(
        self, *blobs: bytes, instance_name: str = "", function: DigestFunction = SHA256
    ) -> list[Digest]:
        """Upload small blobs by batch; returns their digests."""
        digests = [function.digest(blob) for blob in blobs]
        request = reapi.BatchUpdateBlobsRequest(
            instance_name=instance_name,
            digest_function=function.number,
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

    async def missing(
        self, *digests: Digest, instance_name: str = "", function: DigestFunction = SHA256
    ) -> set[str]:
        response = await self.unary(
            REAPI + "ContentAddressableStorage/FindMissingBlobs",
            reapi.FindMissingBlobsRequest(
                instance_name=instance_name,
                blob_digests=[d.to_proto() for d in digests],
                digest_function=function.number,
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


def chunks(name: str, data: bytes, size: int, offset: int = 0) -> list[bytestream.WriteRequest]:
    """An upload as clients send it: the name at first, finish_write at last."""
    pieces = [data[i : i + size] for i in range(0, len(data), size)] or [b""]
    return [
        bytestream.WriteRequest(
            resource_name=name if index == 0 else "",
            write_offset=offset + index * size,
            finish_write=index == len(pieces) - 1,
            data=piece,
        )
        for index, piece in enumerate(pieces)
    ]


async def failure_of(awaitable: Awaitable[object]) -> grpc.RpcError:
    """The error of a call that has to fail."""
    with pytest.raises(grpc.RpcError) as info:
        await awaitable
    return info.value


async def code_of(awaitable: Awaitable[object]) -> grpc.StatusCode:
    code: grpc.StatusCode = (await failure_of(awaitable)).code()
    return code


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
    async with open_client(EXECUTING, tmp_path) as client:
        yield client


@asynccontextmanager
async def open_client(toml: str, folder: Path) -> AsyncIterator[Client]:
    """A client of a server that is configured by `toml`."""
    async with open_test_server(toml, folder) as server:
        client = Client(server.address)
        try:
            yield client
        finally:
            client.channel.close()
