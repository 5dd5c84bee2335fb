"""The LogStream service, and log streams on ByteStream (section 21 of the conformance list)."""

from __future__ import annotations

from stoker.digest import Digest
from stoker.errors import InvalidRequest, LogOffsetOutOfRange, Unavailable
from stoker.frontend.bytestream_frames import encode_read_response
from stoker.frontend.instances import Instances, naming
from stoker.frontend.uploads import Frames
from stoker.log_streams.names import LogName
from stoker.log_streams.stream import LogReader, LogStream
from stoker.log_streams.streams import LogStreams
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import logstream_pb2 as logstream
from stoker.rpc import ServerCall, Service, unary_unary
from stoker.spi import BlobStore

CHUNK_BYTES = 1024 * 1024
"""How much of a stream one ReadResponse holds."""


class LogStreamService:
    """Creates streams for clients to write to."""

    def __init__(self, instances: Instances, streams: LogStreams) -> None:
        self._instances = instances
        self._streams = streams

    def service(self) -> Service:
        return Service(
            "build.bazel.remote.logstream.v1.LogStreamService",
            {
                "CreateLogStream": unary_unary(
                    self.create, logstream.CreateLogStreamRequest, logstream.LogStream
                )
            },
        )

    async def create(
        self, request: logstream.CreateLogStreamRequest, _: ServerCall
    ) -> logstream.LogStream:
        """A new stream, whose parent is an instance (LOG-01)."""
        with naming(f"parent {request.parent!r}"):
            instance = self._instances.resolve(request.parent)
            stream = await self._streams.written.create(instance.name)
        return logstream.LogStream(name=stream.name, write_resource_name=stream.write_resource_name)


class LogTransfers:
    """What ByteStream does with the names of log streams."""

    def __init__(self, instances: Instances, streams: LogStreams) -> None:
        self._instances = instances
        self._streams = streams

    async def read(self, name: LogName, request: bytestream.ReadRequest, call: ServerCall) -> None:
        """Send what there is, and what comes, until the stream ends (LOG-03)."""
        if name.token is not None:
            raise InvalidRequest("this name is for writing; a stream is read by its other name")
        if request.read_offset < 0:
            raise LogOffsetOutOfRange(request.read_offset)
        if request.read_limit < 0:
            raise InvalidRequest(f"read_limit {request.read_limit} is negative")
        blobs = self._instances.resolve(name.instance_name).blobs
        stream = self._streams.find(name.stream)
        with stream.open_reader(request.read_offset, self._streams.growth) as reader:
            with reader.scope:
                await _send(stream, reader, blobs, request, call)
            if reader.scope.cancelled_caught:
                raise Unavailable("the stream is not kept, and was read too slowly")

    async def receive(self, name: LogName, frames: Frames) -> int:
        """Append what a client sends; returns how many bytes there are now (LOG-02)."""
        stream = self._streams.written.find_for_writing(name.stream, _token(name))
        with stream.writing():
            if frames.first.write_offset != stream.committed_bytes:
                raise InvalidRequest(
                    f"expected a first write_offset of {stream.committed_bytes}, "
                    f"got {frames.first.write_offset}"
                )
            if await frames.append_to(stream):
                stream.finished = True
        return stream.committed_bytes

    def status(self, name: LogName) -> bytestream.QueryWriteStatusResponse:
        """How far its writer has come (LOG-05)."""
        stream = self._streams.written.find_for_writing(name.stream, _token(name))
        return bytestream.QueryWriteStatusResponse(
            committed_size=stream.committed_bytes, complete=stream.finished
        )


def _token(name: LogName) -> str:
    if name.token is None:
        raise InvalidRequest("this name is for reading; a stream is written by its other name")
    return name.token


async def _send(
    stream: LogStream,
    reader: LogReader,
    blobs: BlobStore,
    request: bytestream.ReadRequest,
    call: ServerCall,
) -> None:
    end = request.read_offset + request.read_limit if request.read_limit else None
    while data := await reader.read(_room(reader.offset, end)):
        await call.send(encode_read_response(data))
        if reader.offset == end:
            return
    if stream.digest is not None:
        await _send_rest(stream.digest, reader, blobs, end, call)


def _room(offset: int, end: int | None) -> int:
    return CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - offset)


async def _send_rest(
    digest: Digest, reader: LogReader, blobs: BlobStore, end: int | None, call: ServerCall
) -> None:
    """Go on from the blob that holds the whole."""
    reader.check_end(digest.size_bytes)
    limit = None if end is None else end - reader.offset
    async with blobs.open_read(digest, reader.offset, limit) as blob:
        while data := await blob.read(CHUNK_BYTES):
            await call.send(encode_read_response(data))
