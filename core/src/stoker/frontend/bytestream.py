"""The ByteStream service (sections 7 to 9 of the conformance list)."""

from __future__ import annotations

from typing import NamedTuple

from stoker.digest import Digest
from stoker.errors import InvalidRequest, OffsetOutOfRange
from stoker.frontend.bytestream_frames import decode_write_request, encode_read_response
from stoker.frontend.committed_size import PRESENT, committed_size
from stoker.frontend.instances import Instance, Instances, naming
from stoker.frontend.log_streams import LogTransfers
from stoker.frontend.resource_names import BlobName, parse_read_name, parse_upload_name
from stoker.frontend.uploads import Frames, receive_blob, receive_compressed
from stoker.frontend.zstd import THREAD_BYTES, Compressor
from stoker.log_streams.names import parse_log_name
from stoker.protos import bytestream_pb2 as bytestream
from stoker.rpc import ServerCall, Service, stream_unary, unary_stream, unary_unary
from stoker.storage.threads import run

CHUNK_BYTES = 1024 * 1024
"""How much of a blob one ReadResponse holds (BSR-16)."""

_RESOURCE_NAME_HEADER = "build.bazel.remote.execution.v2.resource-name"


class _Target(NamedTuple):
    """What a resource name comes to."""

    instance: Instance
    digest: Digest
    name: BlobName

    @property
    def upload(self) -> str:
        """The name of an upload as the store is to know it: no other instance meets it."""
        return f"{self.name.instance_name}/{self.name.upload}"


class ByteStreamService:
    """One blob at a time, of any size; and log streams."""

    def __init__(self, instances: Instances, logs: LogTransfers | None = None) -> None:
        """Without `logs`, there are no log streams."""
        self._instances = instances
        self._logs = logs

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
        with naming(f"resource {request.resource_name!r}"):
            _check_header(call, request.resource_name)
            if self._logs and (log := parse_log_name(request.resource_name)):
                await self._logs.read(log, request, call)
                return
            target = self._resolve(parse_read_name(request.resource_name))
            _check_range(request, target)
            if target.name.compressed:
                await _send_compressed(target, request.read_offset, call)
            else:
                await _send(target, request, call)

    async def write(self, call: ServerCall) -> bytestream.WriteResponse:
        message = await call.receive()
        if message is None:
            raise InvalidRequest("the stream ended before its first message")
        frames = Frames(call, decode_write_request(message))
        name = frames.first.resource_name
        with naming(f"resource {name!r}"):
            _check_header(call, name)
            if self._logs and (log := parse_log_name(name)):
                committed = await self._logs.receive(log, frames)
            else:
                target = self._resolve(parse_upload_name(name))
                target.instance.check_size(target.digest)
                committed = await _receive(target, frames, call)
        return bytestream.WriteResponse(committed_size=committed)

    async def query_write_status(
        self, request: bytestream.QueryWriteStatusRequest, call: ServerCall
    ) -> bytestream.QueryWriteStatusResponse:
        with naming(f"resource {request.resource_name!r}"):
            _check_header(call, request.resource_name)
            if self._logs and (log := parse_log_name(request.resource_name)):
                return self._logs.status(log)
            target = self._resolve(parse_upload_name(request.resource_name))
            blobs, digest = target.instance.blobs, target.digest
            if not await blobs.find_missing([digest]):
                return bytestream.QueryWriteStatusResponse(
                    committed_size=digest.size_bytes, complete=True
                )
            # Not NOT_FOUND for an upload that is unknown: clients read 0 as "begin again" and an
            # error as the end (BSQ-03). Compressed uploads always begin again (BSQ-04).
            kept = 0
            if not target.name.compressed:
                kept = await blobs.uploaded_bytes(digest, target.upload)
            return bytestream.QueryWriteStatusResponse(committed_size=kept, complete=False)

    def _resolve(self, name: BlobName) -> _Target:
        instance = self._instances.resolve(name.instance_name)
        return _Target(instance, name.digest(instance.digest_functions), name)


def _check_header(call: ServerCall, name: str) -> None:
    """Raise InvalidRequest where a proxy has been told another name than we are (GEN-12)."""
    told = call.metadata.get(_RESOURCE_NAME_HEADER)
    if told is not None and told != name:
        raise InvalidRequest(f"the header {_RESOURCE_NAME_HEADER} names {told!r}")


def _check_range(request: bytestream.ReadRequest, target: _Target) -> None:
    if not 0 <= request.read_offset <= target.digest.size_bytes:
        raise OffsetOutOfRange(target.digest, request.read_offset)
    if request.read_limit < 0:
        raise InvalidRequest(f"read_limit {request.read_limit} is negative")
    if request.read_limit and target.name.compressed:
        raise InvalidRequest(f"read_limit {request.read_limit} of a compressed blob is undefined")


async def _send(target: _Target, request: bytestream.ReadRequest, call: ServerCall) -> None:
    limit = request.read_limit or None
    blobs = target.instance.blobs
    async with blobs.open_read(target.digest, request.read_offset, limit) as reader:
        while data := await reader.read(CHUNK_BYTES):
            await call.send(encode_read_response(data))


async def _send_compressed(target: _Target, offset: int, call: ServerCall) -> None:
    """Send one zstd frame of the blob from `offset` on (BSR-12)."""
    rest = target.digest.size_bytes - offset
    inline = rest < THREAD_BYTES
    async with target.instance.blobs.open_read(target.digest, offset) as reader:
        compressor = Compressor()
        compressor.begin(rest)
        while data := await reader.read(CHUNK_BYTES):
            if packed := await run(compressor.add, data, inline=inline):
                await call.send(encode_read_response(packed))
        await call.send(encode_read_response(await run(compressor.finish, inline=inline)))


async def _receive(target: _Target, frames: Frames, call: ServerCall) -> int:
    """Take the blob in, if it is not there yet; returns the committed_size to answer."""
    blobs, digest = target.instance.blobs, target.digest
    compressed = target.name.compressed
    if not await blobs.find_missing([digest]):
        await frames.drain()
        return PRESENT if compressed else digest.size_bytes
    if not compressed:
        return await receive_blob(frames, blobs, digest, target.upload)
    if not await receive_compressed(frames, blobs, digest):
        return 0
    sent_bytes = frames.received_bytes
    return committed_size(call, sent_bytes=sent_bytes, size_bytes=digest.size_bytes)
