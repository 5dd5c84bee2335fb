"""ByteStream.Read and Write of one large blob, against a bare server on grpc.aio.

stoker reads from its disk store, and on writing hashes the blob and stores it, each round another
one. The bare server sends one piece of memory again and again, and counts what it is sent. So the
ratio holds all that makes a store of a server. The least that this costs is measured too, in a
plain loop of one process: reading a file, or hashing and writing one. Further rows hold stoker
against the two together.

The same client talks to both servers, with messages of 1 MiB. It neither hashes nor decodes. Files
are in the system's cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable, Sequence
from typing import BinaryIO

import trio

from bench.measurement import Cost, Pair, Row, cost_at, cost_here, in_turns
from bench.servers import open_program, open_stoker
from stoker.protos import bytestream_pb2
from stoker.rpc import Channel, open_channel

CHUNK_BYTES = 1024 * 1024
_SERVICE = "/google.bytestream.ByteStream"


class LargeBlob:
    """A blob that nobody has seen before, of a MiB that is always the same but for its first."""

    def __init__(self, chunks: int) -> None:
        self.first = os.urandom(CHUNK_BYTES)
        self.rest = bytes(CHUNK_BYTES)
        self.chunks = chunks
        hasher = hashlib.sha256(self.first)
        for _ in range(chunks - 1):
            hasher.update(self.rest)
        self.name = f"{hasher.hexdigest()}/{self.size_bytes}"

    @property
    def size_bytes(self) -> int:
        return self.chunks * CHUNK_BYTES

    def chunk(self, number: int) -> bytes:
        return self.rest if number else self.first


def measure(*, quick: bool) -> list[Row]:
    """Rows of wall time and of the server's processor time, for reading and for writing."""
    return trio.run(_measure, quick)


async def _measure(quick: bool) -> list[Row]:
    chunks, rounds = (4, 2) if quick else (256, 5)
    with (
        open_stoker("disk") as ours,
        open_program("bare_server.py", "0", str(chunks * CHUNK_BYTES)) as theirs,
        tempfile.TemporaryFile(buffering=0) as file,
    ):
        async with open_channel(ours.address) as to_ours, open_channel(theirs.address) as to_theirs:
            blob = LargeBlob(chunks)
            await _write(to_ours, blob)
            await _write(to_theirs, blob)

            async def write_anew() -> Cost:
                another = LargeBlob(chunks)
                return await cost_at(ours, lambda: _write(to_ours, another))

            writes = await in_turns(
                rounds,
                write_anew,
                lambda: cost_at(theirs, lambda: _write(to_theirs, blob)),
                lambda: _cost_in_thread(lambda: _hash_and_write(blob, file)),
            )
            reads = await in_turns(
                rounds,
                lambda: cost_at(ours, lambda: _read(to_ours, blob)),
                lambda: cost_at(theirs, lambda: _read(to_theirs, blob)),
                lambda: _cost_in_thread(lambda: _read_file(file)),
            )
    return [
        *_rows(f"read {chunks} MiB, disk", "read", *reads),
        *_rows(f"write {chunks} MiB, disk", "hash + write", *writes),
    ]


def _rows(what: str, least: str, *costs: Sequence[Cost]) -> list[Row]:
    ours, bare, loop = costs
    both = [
        Cost(*(server + plain for server, plain in zip(*pair, strict=True)))
        for pair in zip(bare, loop, strict=True)
    ]
    return [
        row
        for against, theirs in (("bare grpc.aio", bare), (f"bare + {least}", both))
        for row in (
            Pair(ours, theirs).wall_row(what, against, unit="ms", per_second=1e3),
            Pair(ours, theirs).cpu_row(what, against, unit="ms CPU", per_second=1e3),
        )
    ]


async def _read(channel: Channel, blob: LargeBlob) -> None:
    request = bytestream_pb2.ReadRequest(resource_name=f"blobs/{blob.name}")
    received = 0
    async with channel.open_stream(f"{_SERVICE}/Read", bytes) as stream:
        await stream.send(request)
        await stream.send_eof()
        while (response := await stream.receive()) is not None:
            received += len(response)
    assert received > blob.size_bytes


async def _write(channel: Channel, blob: LargeBlob) -> None:
    async with channel.open_stream(f"{_SERVICE}/Write", bytestream_pb2.WriteResponse) as stream:
        for number in range(blob.chunks):
            await stream.send(_write_request(blob, number))
        await stream.send_eof()
        response = await stream.receive()
    assert response is not None
    assert response.committed_size >= blob.size_bytes


def _write_request(blob: LargeBlob, number: int) -> bytes:
    """Concatenated rather than encoded whole, which would cost more than the server's work."""
    head = bytestream_pb2.WriteRequest(
        resource_name="" if number else f"uploads/{uuid.uuid4()}/blobs/{blob.name}",
        write_offset=number * CHUNK_BYTES,
        finish_write=number == blob.chunks - 1,
    ).SerializeToString()
    data = blob.chunk(number)
    # Field 10, of length 2**20 as a varint.
    return b"".join((head, b"\x52\x80\x80\x40", data))


async def _cost_in_thread(work: Callable[[], None]) -> Cost:
    return await cost_here(lambda: trio.to_thread.run_sync(work))


def _hash_and_write(blob: LargeBlob, file: BinaryIO) -> None:
    hasher = hashlib.sha256()
    # Anew, as a store writes each blob to a file of its own.
    file.seek(0)
    file.truncate()
    for number in range(blob.chunks):
        hasher.update(blob.chunk(number))
        file.write(blob.chunk(number))
    assert blob.name.startswith(hasher.hexdigest())


def _read_file(file: BinaryIO) -> None:
    file.seek(0)
    while file.read(CHUNK_BYTES):
        pass
