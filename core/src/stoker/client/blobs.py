"""Blobs of a remote instance: which are there, sending them, fetching them."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn

import trio

from stoker.client.calls import REAPI, Calls
from stoker.digest import Digest
from stoker.errors import DataLoss
from stoker.protos import bytestream_pb2
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ClientStream, RpcError, StatusCode
from stoker.rpc.status import status_code

CHUNK_BYTES = 1024 * 1024
Read = Callable[[int], Awaitable[bytes]]

_CAS = f"{REAPI}.ContentAddressableStorage"
_BYTE_STREAM = "/google.bytestream.ByteStream"

# Servers bound a message, often at 4 MiB. A digest takes about 80 bytes on the wire.
_DIGESTS_PER_CALL = 20_000
_BLOBS_PER_BATCH = 4_000
_OVERHEAD_BYTES = 128
_DEFAULT_BATCH_BYTES = 2 * 1024 * 1024


class Blobs:
    """The content-addressable storage of one instance. Calls may overlap.

    All digests of one call are of one digest function. Every method raises RpcError when the
    server refuses or is lost. Cancellation leaves blobs that were sent before; half a blob is
    never visible.
    """

    def __init__(self, calls: Calls, max_batch_bytes: int) -> None:
        self._calls = calls
        # An announced limit of zero means none: then the bound is that of common servers.
        self._max_batch_bytes = max_batch_bytes or _DEFAULT_BATCH_BYTES

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Those of `digests` that the server does not hold."""
        missing: set[Digest] = set()
        for part in _parts(list(dict.fromkeys(digests)), _DIGESTS_PER_CALL):
            function = part[0].function
            request = reapi.FindMissingBlobsRequest(
                instance_name=self._calls.instance_name,
                blob_digests=[digest.to_proto() for digest in part],
                digest_function=function.number,
            )
            response = await self._calls.unary(
                f"{_CAS}/FindMissingBlobs", request, reapi.FindMissingBlobsResponse
            )
            missing.update(function.parse(message) for message in response.missing_blob_digests)
        return missing

    async def upload_blobs(self, blobs: Mapping[Digest, bytes]) -> None:
        """Send `blobs`, whether they are there already or not: small ones together."""
        sizes = {digest: len(data) for digest, data in blobs.items()}
        for batch in self._batches(sizes):
            await self._update([(digest, blobs[digest]) for digest in batch])
        for digest in self._too_large(sizes):
            await self._write(digest, trio.wrap_file(io.BytesIO(blobs[digest])).read)

    async def upload_files(self, files: Mapping[Digest, Path]) -> None:
        """Send the contents of `files`, never more than one batch of them in memory.

        Raises OSError for a file that cannot be read, and RpcError INVALID_ARGUMENT for one that
        is no longer what its digest says.
        """
        sizes = {digest: digest.size_bytes for digest in files}
        for batch in self._batches(sizes):
            paths = [files[digest] for digest in batch]
            contents = await trio.to_thread.run_sync(_read_files, paths)
            await self._update(list(zip(batch, contents, strict=True)))
        for digest in self._too_large(sizes):
            async with await trio.open_file(files[digest], "rb") as file:
                await self._write(digest, file.read)

    async def read_blob(self, digest: Digest) -> bytes:
        """The whole blob, verified. Raises RpcError NOT_FOUND, or DataLoss."""
        if digest.size_bytes == 0:
            return b""
        async with self.open_blob(digest) as chunks:
            return b"".join([chunk async for chunk in chunks])

    @asynccontextmanager
    async def open_blob(self, digest: Digest) -> AsyncIterator[BlobChunks]:
        """Read a blob in pieces. Raises RpcError NOT_FOUND with the first of them.

        Raises DataLoss at the end if the whole was not the blob.
        """
        request = bytestream_pb2.ReadRequest(resource_name=self._prefix() + read_name(digest))
        async with self._calls.stream(
            f"{_BYTE_STREAM}/Read", bytestream_pb2.ReadResponse, request
        ) as stream:
            yield BlobChunks(digest, stream)

    async def download_file(self, digest: Digest, path: Path, *, executable: bool = False) -> None:
        """Write a blob to `path`, in place of what is there. Its folder must exist.

        The file appears whole or not at all, also when this is cancelled.
        Raises RpcError, DataLoss or OSError.
        """
        part = path.with_name(f".{uuid.uuid4().hex}.part")
        mode = 0o777 if executable else 0o666
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            async with trio.wrap_file(os.fdopen(descriptor, "wb")) as file:
                if digest.size_bytes:
                    async with self.open_blob(digest) as chunks:
                        async for chunk in chunks:
                            await file.write(chunk)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _batches(self, sizes: Mapping[Digest, int]) -> Iterator[list[Digest]]:
        batch: list[Digest] = []
        batch_bytes = 0
        for digest, size_bytes in sizes.items():
            if size_bytes > self._max_batch_bytes:
                continue
            full = batch_bytes + size_bytes > self._max_batch_bytes
            if batch and (full or len(batch) == _BLOBS_PER_BATCH):
                yield batch
                batch, batch_bytes = [], 0
            batch.append(digest)
            batch_bytes += size_bytes
        if batch:
            yield batch

    def _too_large(self, sizes: Mapping[Digest, int]) -> Iterable[Digest]:
        return (digest for digest, size in sizes.items() if size > self._max_batch_bytes)

    async def _update(self, blobs: Sequence[tuple[Digest, bytes]]) -> None:
        request = reapi.BatchUpdateBlobsRequest(
            instance_name=self._calls.instance_name,
            requests=[
                reapi.BatchUpdateBlobsRequest.Request(digest=digest.to_proto(), data=data)
                for digest, data in blobs
            ],
            digest_function=blobs[0][0].function.number,
        )
        response = await self._calls.unary(
            f"{_CAS}/BatchUpdateBlobs", request, reapi.BatchUpdateBlobsResponse
        )
        for one in response.responses:
            if one.status.code:
                name = f"{one.digest.hash}/{one.digest.size_bytes}"
                message = f"blob {name} was refused: {one.status.message}"
                raise RpcError(status_code(one.status.code), message)

    async def _write(self, digest: Digest, read: Read) -> None:
        name = f"{self._prefix()}uploads/{uuid.uuid4()}/{read_name(digest)}"
        async with self._calls.stream(
            f"{_BYTE_STREAM}/Write", bytestream_pb2.WriteResponse
        ) as stream:
            # The server stops listening when somebody else has sent the blob meanwhile (BSW-10).
            with suppress(trio.BrokenResourceError):
                await _send_chunks(stream, name, digest.size_bytes, read)
            response = await stream.receive()
        if response is None or response.committed_size != digest.size_bytes:
            _fail_upload(digest, response)

    def _prefix(self) -> str:
        name = self._calls.instance_name
        return f"{name}/" if name else ""


class BlobChunks(AsyncIterator[bytes]):
    """The pieces of a blob, which are checked against its digest as they go by."""

    def __init__(self, digest: Digest, stream: ClientStream[bytestream_pb2.ReadResponse]) -> None:
        self._digest = digest
        self._stream = stream
        self._hasher = digest.function.new()
        self._size_bytes = 0

    async def __anext__(self) -> bytes:
        """The next piece, of at least one byte."""
        while (response := await self._stream.receive()) is not None:
            if response.data:
                self._hasher.update(response.data)
                self._size_bytes += len(response.data)
                return response.data
        self._verify()
        raise StopAsyncIteration

    def _verify(self) -> None:
        received = f"{self._hasher.hexdigest()}/{self._size_bytes}"
        if received != str(self._digest):
            raise DataLoss(self._digest, f"the server sent {received} instead")


async def _send_chunks(
    stream: ClientStream[bytestream_pb2.WriteResponse], name: str, size_bytes: int, read: Read
) -> None:
    offset = 0
    while chunk := await read(CHUNK_BYTES):
        await stream.send(
            bytestream_pb2.WriteRequest(
                resource_name="" if offset else name,
                write_offset=offset,
                finish_write=offset + len(chunk) >= size_bytes,
                data=chunk,
            )
        )
        offset += len(chunk)
    await stream.send_eof()


def _fail_upload(digest: Digest, response: bytestream_pb2.WriteResponse | None) -> NoReturn:
    committed = response.committed_size if response else 0
    raise RpcError(
        StatusCode.DATA_LOSS,
        f"the server has taken {committed} bytes of blob {digest} and called that the whole",
    )


def read_name(digest: Digest) -> str:
    """The part of a resource name that names a blob."""
    return f"blobs/{digest.function.segment}{digest}"


def _parts(digests: Sequence[Digest], length: int) -> Iterator[Sequence[Digest]]:
    for start in range(0, len(digests), length):
        yield digests[start : start + length]


def _read_files(paths: Iterable[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]
