"""One ByteStream.Write call: its frames follow on each other, and end with finish_write."""

from __future__ import annotations

from typing import NoReturn

from stoker.digest import Digest
from stoker.errors import InvalidRequest
from stoker.frontend.bytestream_frames import WriteFrame, decode_write_request
from stoker.frontend.zstd import THREAD_BYTES, Decompressor
from stoker.rpc import ServerCall
from stoker.spi import BlobStore, BlobUpload, BlobWriter
from stoker.storage.threads import run

MAX_DRAINED_BYTES = 8 * 1024 * 1024
"""How much of an upload that is not needed is still taken in: some clients insist on sending all
before they look at the answer (BSW-13)."""


class _Unfinished(Exception):
    """The stream ended without finish_write: nothing is to be published (BSW-08)."""


class _OffsetAhead(Exception):
    """The upload goes on behind what is kept of it, which has to stay as it is (BSW-19)."""


class Frames:
    """The frames of one call, checked against each other."""

    def __init__(self, call: ServerCall, first: WriteFrame) -> None:
        self._call = call
        self.first = first
        self.received_bytes = 0

    async def drain(self) -> None:
        """Take in, up to a bound, what a client sends of a blob that is here already."""
        drained, frame = 0, self.first
        while not frame.finish_write and drained < MAX_DRAINED_BYTES:
            message = await self._call.receive()
            if message is None:
                return
            drained += len(message)
            frame = decode_write_request(message)

    async def copy_to(self, writer: BlobWriter | _Unpacking, skip: int = 0) -> None:
        """Write the data of all frames, but for its first `skip` bytes.

        Raises InvalidRequest for frames that do not follow on each other, and _Unfinished.
        """
        frame = self.first
        while True:
            self._check(frame)
            if len(frame.data) > skip:
                await writer.write(frame.data[skip:] if skip else frame.data)
            skip = max(0, skip - len(frame.data))
            self.received_bytes += len(frame.data)
            message = await self._call.receive()
            if frame.finish_write:
                if message is not None:
                    raise InvalidRequest("data after finish_write")
                return
            if message is None:
                raise _Unfinished
            frame = decode_write_request(message)

    async def append_to(self, writer: BlobWriter) -> bool:
        """Write the data of all frames. Returns whether the last one has said finish_write.

        Raises InvalidRequest for frames that do not follow on each other.
        """
        try:
            await self.copy_to(writer)
        except _Unfinished:
            return False
        return True

    def _check(self, frame: WriteFrame) -> None:
        if frame.resource_name not in ("", self.first.resource_name):
            raise InvalidRequest(f"the stream went on with another name, {frame.resource_name!r}")
        expected = self.first.write_offset + self.received_bytes
        if frame.write_offset != expected:
            raise InvalidRequest(f"expected write_offset {expected}, got {frame.write_offset}")


async def receive_blob(frames: Frames, blobs: BlobStore, digest: Digest, upload: str) -> int:
    """Take a blob in as it is, from where an earlier call of `upload` has ended if need be.

    Returns how many bytes are committed, all of them if the blob is complete. What a call leaves
    that breaks off is kept, as the store can (BSW-17).
    """
    try:
        async with blobs.open_upload(digest, upload) as writer:
            await frames.copy_to(writer, await _overlap(frames.first.write_offset, writer))
    except _Unfinished:
        return await blobs.uploaded_bytes(digest, upload)
    except _OffsetAhead:
        _refuse_offset(await blobs.uploaded_bytes(digest, upload), frames.first)
    return digest.size_bytes


async def _overlap(offset: int, writer: BlobUpload) -> int:
    """How many bytes of what comes are there already, from an earlier call.

    They are passed over unseen: if they differ, the hash of the whole tells (BSW-18).
    """
    if offset == 0 and writer.offset:
        await writer.restart()
    if not 0 <= offset <= writer.offset:
        raise _OffsetAhead
    return writer.offset - offset


async def receive_compressed(frames: Frames, blobs: BlobStore, digest: Digest) -> bool:
    """Take a blob in as zstd; returns whether it is complete. Nothing is kept if it is not."""
    if frames.first.write_offset:
        _refuse_offset(0, frames.first)
    try:
        async with blobs.open_write(digest) as writer:
            unpacking = _Unpacking(digest, writer)
            await frames.copy_to(unpacking)
            unpacking.end()
    except _Unfinished:
        return False
    return True


def _refuse_offset(kept: int, first: WriteFrame) -> NoReturn:
    raise InvalidRequest(f"expected a first write_offset of up to {kept}, got {first.write_offset}")


class _Unpacking:
    """Decompresses what is written, and passes it on in bounded pieces (BUB-09)."""

    def __init__(self, digest: Digest, writer: BlobWriter) -> None:
        self._writer = writer
        self._stream = Decompressor(digest.size_bytes)
        self._inline = digest.size_bytes < THREAD_BYTES

    async def write(self, data: memoryview) -> None:
        self._stream.feed(data)
        while piece := await run(self._stream.read, inline=self._inline):
            await self._writer.write(piece)

    def end(self) -> None:
        self._stream.end()
