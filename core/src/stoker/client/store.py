"""An instance of another REAPI server, as a blob store of this one."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from stoker import spi
from stoker.client.blobs import CHUNK_BYTES, Blobs, read_name
from stoker.client.calls import REAPI, Calls
from stoker.client.far_side import (
    RemoteSettings,
    far_error,
    far_status,
    mapping_errors,
    open_far_side,
    within,
)
from stoker.digest import Digest, DigestFunction
from stoker.errors import DataLoss, StokerError, Unavailable
from stoker.protos import bytestream_pb2
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ClientStream, RpcError, StatusCode
from stoker.spi import BlobReader, BlobStore, BlobWriter

_CAS = f"{REAPI}.ContentAddressableStorage"
_BYTE_STREAM = "/google.bytestream.ByteStream"
_SMALL_BYTES = 1024 * 1024
"""A blob up to this size is gathered and sent in one message, which saves a stream."""


class RemoteBlobStore(BlobStore):
    """Blobs of an instance of another server. Calls may overlap freely.

    A server that does not answer, or not within `timeout_seconds` for each message, is
    Unavailable, never an absent blob (STO-04); one that refuses is a FailedPrecondition, since
    trying again is of no use. Connections that break are made anew. Blobs have no files here,
    and uploads that are broken off are not kept.
    """

    def __init__(self, calls: Calls, timeout_seconds: float) -> None:
        self._calls = calls
        self.target = calls.target
        self._timeout_seconds = timeout_seconds
        self._prefix = f"{calls.instance_name}/" if calls.instance_name else ""
        self._max_batch_bytes: int | None = None

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        missing: set[Digest] = set()
        blobs = Blobs(self._calls, 0)
        for group in _by_function(digests):
            with mapping_errors(self._calls.target), within(self._timeout_seconds):
                missing |= await blobs.find_missing(group)
        await trio.lowlevel.checkpoint()
        return missing

    # --- reading

    @asynccontextmanager
    async def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[BlobReader]:
        request = bytestream_pb2.ReadRequest(
            resource_name=self._prefix + read_name(digest),
            read_offset=offset,
            # 0 would mean no limit.
            read_limit=0 if limit is None else max(limit, 1),
        )
        end = digest.size_bytes if limit is None else min(offset + limit, digest.size_bytes)
        async with self._calls.stream(
            f"{_BYTE_STREAM}/Read", bytestream_pb2.ReadResponse
        ) as stream:
            reader = _RemoteReader(self, digest, stream, end - offset)
            await reader.begin(request)
            yield reader

    async def receive(
        self, digest: Digest, stream: ClientStream[bytestream_pb2.ReadResponse]
    ) -> bytes | None:
        """The next piece of a blob, None at its end."""
        with mapping_errors(self._calls.target, digest), within(self._timeout_seconds):
            response = await stream.receive()
        return None if response is None else response.data

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        found: dict[Digest, bytes] = {}
        # Those that did not fit into an answer are asked for one by one.
        late: list[Digest] = []
        sizes = {digest: digest.size_bytes for digest in digests}
        max_batch_bytes = await self._batch_bytes() if sizes else 0
        for group in _by_function(digests):
            for batch in _batches({d: sizes[d] for d in group}, max_batch_bytes):
                late += await self._read_batch(batch, found)
        late += [digest for digest, size in sizes.items() if size > max_batch_bytes]
        return found | await super().read_many(late)

    async def _read_batch(
        self, batch: Sequence[Digest], found: dict[Digest, bytes]
    ) -> list[Digest]:
        request = reapi.BatchReadBlobsRequest(
            instance_name=self._calls.instance_name,
            digests=[digest.to_proto() for digest in batch],
            digest_function=batch[0].function.number,
        )
        unanswered = {str(digest): digest for digest in batch}
        late = []
        with mapping_errors(self._calls.target), within(self._timeout_seconds):
            response = await self._calls.unary(
                f"{_CAS}/BatchReadBlobs", request, reapi.BatchReadBlobsResponse
            )
        for one in response.responses:
            digest = unanswered.pop(_name_of(one.digest, unanswered, self._calls.target))
            if one.status.code == StatusCode.RESOURCE_EXHAUSTED:
                late.append(digest)
            elif one.status.code == StatusCode.OK:
                if len(one.data) != digest.size_bytes:
                    raise DataLoss(digest, f"the server has sent {len(one.data)} bytes")
                found[digest] = one.data
            elif one.status.code != StatusCode.NOT_FOUND:
                raise far_status(one.status, self._calls.target, digest)
        # Passed over is not absent.
        return [*late, *unanswered.values()]

    # --- writing

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        if digest.size_bytes <= min(_SMALL_BYTES, await self._batch_bytes()):
            small = _SmallWriter()
            yield small
            failures = await self._write_batch({digest: bytes(small.data)})
            if error := failures.get(digest):
                raise error
            return
        async with self._calls.stream(
            f"{_BYTE_STREAM}/Write", bytestream_pb2.WriteResponse
        ) as stream:
            name = f"{self._prefix}uploads/{uuid.uuid4()}/{read_name(digest)}"
            writer = _StreamWriter(self, digest, stream, name)
            yield writer
            await writer.finish()

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        failures: dict[Digest, StokerError] = {}
        if not blobs:
            await trio.lowlevel.checkpoint()
            return failures
        try:
            max_batch_bytes = await self._batch_bytes()
        except StokerError as error:
            return dict.fromkeys(blobs, error)
        for group in _by_function(blobs):
            for batch in _batches({d: len(blobs[d]) for d in group}, max_batch_bytes):
                failures |= await self._write_batch({digest: blobs[digest] for digest in batch})
        large = {d: data for d, data in blobs.items() if len(data) > max_batch_bytes}
        return failures | await super().write_many(large)

    async def _write_batch(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        request = reapi.BatchUpdateBlobsRequest(
            instance_name=self._calls.instance_name,
            requests=[
                reapi.BatchUpdateBlobsRequest.Request(digest=digest.to_proto(), data=data)
                for digest, data in blobs.items()
            ],
            digest_function=next(iter(blobs)).function.number,
        )
        try:
            with mapping_errors(self._calls.target, writing=True), within(self._timeout_seconds):
                response = await self._calls.unary(
                    f"{_CAS}/BatchUpdateBlobs", request, reapi.BatchUpdateBlobsResponse
                )
        except StokerError as error:
            return dict.fromkeys(blobs, error)
        unanswered = {str(digest): digest for digest in blobs}
        failures: dict[Digest, StokerError] = {}
        for one in response.responses:
            digest = unanswered.pop(_name_of(one.digest, unanswered, self._calls.target))
            if one.status.code:
                failures[digest] = far_status(one.status, self._calls.target, writing=True)
        passed_over = Unavailable(f"the server at {self._calls.target} has passed a blob over")
        return failures | dict.fromkeys(unanswered.values(), passed_over)

    async def send(
        self,
        stream: ClientStream[bytestream_pb2.WriteResponse],
        request: bytestream_pb2.WriteRequest,
    ) -> None:
        """Send a piece. Raises BrokenResourceError where the server waits for no more."""
        with mapping_errors(self._calls.target, writing=True), within(self._timeout_seconds):
            await stream.send(request)

    async def receive_size(self, stream: ClientStream[bytestream_pb2.WriteResponse]) -> int:
        """What the server has taken, once it has said so."""
        with mapping_errors(self._calls.target, writing=True), within(self._timeout_seconds):
            response = await stream.receive()
        return 0 if response is None else response.committed_size

    async def _batch_bytes(self) -> int:
        """What one batch may weigh. Asked for once, and not before it is needed."""
        if self._max_batch_bytes is None:
            request = reapi.GetCapabilitiesRequest(instance_name=self._calls.instance_name)
            with mapping_errors(self._calls.target), within(self._timeout_seconds):
                answer = await self._calls.unary(
                    f"{REAPI}.Capabilities/GetCapabilities", request, reapi.ServerCapabilities
                )
            announced = answer.cache_capabilities.max_batch_total_size_bytes
            self._max_batch_bytes = min(announced or _MOST_BYTES, _MOST_BYTES)
        return self._max_batch_bytes


_MOST_BYTES = 2 * 1024 * 1024
"""Of a batch, whatever the server announces: answers must fit into what gRPC takes by default."""
_MOST_BLOBS = 4_000


class _RemoteReader(BlobReader):
    def __init__(
        self,
        store: RemoteBlobStore,
        digest: Digest,
        stream: ClientStream[bytestream_pb2.ReadResponse],
        size_bytes: int,
    ) -> None:
        self._store = store
        self._digest = digest
        self._stream = stream
        self._left = size_bytes
        self._piece = memoryview(b"")

    async def begin(self, request: bytestream_pb2.ReadRequest) -> None:
        """Ask, and wait for the first piece: only it tells whether the blob is there."""
        try:
            await self._stream.send(request)
            await self._stream.send_eof()
        except RpcError:
            # What has ended the call comes with the answer.
            pass
        await self._receive()

    async def read(self, max_bytes: int) -> bytes:
        # Before anything is taken: a read that is cancelled may be repeated.
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._left and not self._piece:
            await self._receive()
        piece = bytes(self._piece[: min(max_bytes, self._left)])
        self._piece = self._piece[len(piece) :]
        self._left -= len(piece)
        return piece

    async def _receive(self) -> None:
        data = await self._store.receive(self._digest, self._stream)
        if data is None and self._left:
            raise DataLoss(self._digest, f"the server has sent {self._left} bytes too few")
        self._piece = memoryview(data or b"")


class _SmallWriter(BlobWriter):
    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.data += data


class _StreamWriter(BlobWriter):
    """Sends pieces of one size, and holds the last one back until all is known to be sound."""

    def __init__(
        self,
        store: RemoteBlobStore,
        digest: Digest,
        stream: ClientStream[bytestream_pb2.WriteResponse],
        name: str,
    ) -> None:
        self._store = store
        self._digest = digest
        self._stream = stream
        self._name = name
        self._offset = 0
        self._held = bytearray()
        self._answered = False

    async def write(self, data: bytes | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._held += data
        while len(self._held) > CHUNK_BYTES:
            piece = bytes(self._held[:CHUNK_BYTES])
            del self._held[:CHUNK_BYTES]
            await self._send(piece, finish=False)

    async def finish(self) -> None:
        """Send the rest. Raises Unavailable unless the server has taken the whole."""
        await self._send(bytes(self._held), finish=True)
        await self._stream.send_eof()
        committed = await self._store.receive_size(self._stream)
        if committed != self._digest.size_bytes:
            raise far_error(
                RpcError(
                    StatusCode.DATA_LOSS,
                    f"{committed} bytes were taken of blob {self._digest}, and called the whole",
                ),
                self._store.target,
                writing=True,
            )

    async def _send(self, data: bytes, *, finish: bool) -> None:
        if self._answered:
            return
        request = bytestream_pb2.WriteRequest(
            resource_name="" if self._offset else self._name,
            write_offset=self._offset,
            finish_write=finish,
            data=data,
        )
        self._offset += len(data)
        try:
            await self._store.send(self._stream, request)
        except trio.BrokenResourceError:
            # Somebody else has sent the blob meanwhile: there is an answer already (BSW-10).
            self._answered = True


def _by_function(digests: Collection[Digest]) -> list[list[Digest]]:
    """Groups for one request each, as a request has one digest function (GEN-02)."""
    groups: dict[DigestFunction, list[Digest]] = {}
    for digest in dict.fromkeys(digests):
        groups.setdefault(digest.function, []).append(digest)
    return [*groups.values()]


def _batches(sizes: Mapping[Digest, int], max_bytes: int) -> list[list[Digest]]:
    """Batches within the bounds, of those that fit into one."""
    batches: list[list[Digest]] = []
    room = 0
    for digest, size_bytes in sizes.items():
        if size_bytes > max_bytes:
            continue
        if not batches or size_bytes > room or len(batches[-1]) == _MOST_BLOBS:
            batches.append([])
            room = max_bytes
        batches[-1].append(digest)
        room -= size_bytes
    return batches


def _name_of(message: reapi.Digest, asked: Mapping[str, Digest], target: str) -> str:
    name = f"{message.hash}/{message.size_bytes}"
    if name not in asked:
        error = RpcError(
            StatusCode.INTERNAL, f"blob {name} is in the answer, but was not asked for"
        )
        raise far_error(error, target)
    return name


@asynccontextmanager
async def open_remote_blob_store(
    settings: RemoteSettings, context: spi.Context
) -> AsyncIterator[BlobStore]:
    """Open the blob store of the kind ``remote``. The server need not be there yet."""
    async with open_far_side(settings, context) as calls:
        yield RemoteBlobStore(calls, settings.timeout_seconds)
