"""The ByteStream service (sections 7 to 9 of the conformance list)."""

from __future__ import annotations

from stoker.digest import Digest
from stoker.errors import InvalidRequest, OffsetOutOfRange
from stoker.frontend.bytestream_frames import (
    WriteFrame,
    decode_write_request,
    encode_read_response,
)
from stoker.frontend.instances import Instances
from stoker.frontend.resource_names import BlobName, parse_read_name, parse_upload_name
from stoker.protos import bytestream_pb2 as bytestream
from stoker.rpc import ServerCall, Service, stream_unary, unary_stream, unary_unary
from stoker.spi import BlobStore, BlobWriter

CHUNK_BYTES = 1024 * 1024
"""How much of a blob one ReadResponse holds (BSR-16)."""

MAX_DRAINED_BYTES = 8 * 1024 * 1024
"""How much of an upload that is not needed is still taken in: some clients insist on sending all
before they look at the answer (BSW-13)."""


class ByteStreamService:
    """One blob at a time, of any size."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    def service(self) -> Service:
        return Service(
            "google.bytestream.ByteStream",
            {
                "Read": unary_stream(self.read, bytestream.ReadRequest, bytes),
                "Write": stream_unary(self.write, bytes, bytestream.WriteResponse),
                "QueryWriteStatus": unary_unary(
                    self.query_write_status,
                    bytestream.QueryWriteStatusRequest,
                    bytestream.QueryWriteStatusResponse,
                ),
            },
        )

    async def read(self, request: bytestream.ReadRequest, call: ServerCall) -> None:
        name = parse_read_name(request.resource_name)
        blobs = self._instances.resolve(name.instance_name).blobs
        if request.read_offset < 0:
            raise OffsetOutOfRange(name.digest, request.read_offset)
        if request.read_limit < 0:
            raise InvalidRequest(f"read_limit {request.read_limit} is negative")
        limit = request.read_limit or None
        async with blobs.open_read(name.digest, request.read_offset, limit) as reader:
            while data := await reader.read(CHUNK_BYTES):
                await call.send(encode_read_response(data))

    async def write(self, call: ServerCall) -> bytestream.WriteResponse:
        message = await call.receive()
        if message is None:
            raise InvalidRequest("the stream ended before its first message")
        first = decode_write_request(message)
        name = parse_upload_name(first.resource_name)
        if first.write_offset != 0:
            # Nothing of an unfinished upload is kept, so there is nothing to continue (BSW-19).
            raise InvalidRequest(f"{first.resource_name}: write_offset must be 0 at first")
        blobs = self._instances.resolve(name.instance_name).blobs
        if not await blobs.find_missing([name.digest]):
            await _drain(call, first)
            committed = name.digest.size_bytes
        else:
            committed = await _Upload(call, name, first).run(blobs)
        return bytestream.WriteResponse(committed_size=committed)

    async def query_write_status(
        self, request: bytestream.QueryWriteStatusRequest, _: ServerCall
    ) -> bytestream.QueryWriteStatusResponse:
        name = parse_upload_name(request.resource_name)
        blobs = self._instances.resolve(name.instance_name).blobs
        if await blobs.find_missing([name.digest]):
            # Not NOT_FOUND: clients read 0 as "begin again" and an error as the end (BSQ-03).
            return bytestream.QueryWriteStatusResponse(committed_size=0, complete=False)
        return bytestream.QueryWriteStatusResponse(
            committed_size=name.digest.size_bytes, complete=True
        )


class _Unfinished(Exception):
    """The stream ended without finish_write: nothing is to be published (BSW-08)."""


class _Upload:
    """One Write call: its frames must follow on each other, and end with finish_write."""

    def __init__(self, call: ServerCall, name: BlobName, first: WriteFrame) -> None:
        self._call = call
        self._digest: Digest = name.digest
        self._resource_name = first.resource_name
        self._first = first
        self._received = 0

    async def run(self, blobs: BlobStore) -> int:
        """Take the blob in; returns the committed size."""
        try:
            async with blobs.open_write(self._digest) as writer:
                await self._receive_all(writer)
        except _Unfinished:
            return 0
        return self._digest.size_bytes

    async def _receive_all(self, writer: BlobWriter) -> None:
        frame = self._first
        while True:
            self._check(frame)
            if frame.data:
                await writer.write(frame.data)
                self._received += len(frame.data)
            message = await self._call.receive()
            if frame.finish_write:
                if message is not None:
                    raise InvalidRequest(f"{self._resource_name}: data after finish_write")
                return
            if message is None:
                raise _Unfinished
            frame = decode_write_request(message)

    def _check(self, frame: WriteFrame) -> None:
        if frame.resource_name not in ("", self._resource_name):
            raise InvalidRequest(
                f"{self._resource_name}: the stream went on with another name, "
                f"{frame.resource_name}"
            )
        if frame.write_offset != self._received:
            raise InvalidRequest(
                f"{self._resource_name}: expected write_offset {self._received}, "
                f"got {frame.write_offset}"
            )


async def _drain(call: ServerCall, frame: WriteFrame) -> None:
    """Take in, up to a bound, what a client sends of a blob that is here already."""
    drained = 0
    while not frame.finish_write and drained < MAX_DRAINED_BYTES:
        message = await call.receive()
        if message is None:
            return
        drained += len(message)
        frame = decode_write_request(message)
