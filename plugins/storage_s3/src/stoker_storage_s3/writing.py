"""Blobs on their way into a bucket: small ones in memory, large ones in parts."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from stoker.spi import BlobWriter, StokerError, Unavailable
from stoker_storage_s3.bucket import Bucket

# S3 takes 10,000 parts of one object.
_MAX_PARTS = 9_999
_ABORT_SECONDS = 5.0


def fitting_part_bytes(part_bytes: int, size_bytes: int) -> int:
    """`part_bytes`, or what it takes for a blob of `size_bytes` to have few enough parts."""
    return max(part_bytes, -(-size_bytes // _MAX_PARTS))


class Discard(BlobWriter):
    """Takes the bytes of a blob that is there already."""

    async def write(self, data: bytes | memoryview) -> None:  # noqa: ARG002 - none of them
        await trio.lowlevel.checkpoint()


class Gather(BlobWriter):
    """Keeps the bytes of a small blob in memory."""

    def __init__(self) -> None:
        self._data = bytearray()

    async def write(self, data: bytes | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._data += data

    def whole(self) -> bytes:
        """All that was written."""
        return bytes(self._data)


class PartsUpload:
    """An upload in parts, which becomes an object when it is finished.

    `run` belongs into a nursery that outlives the other calls, of which one is made at a time.
    """

    def __init__(
        self, bucket: Bucket, key: str, part_bytes: int, limiter: trio.CapacityLimiter
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._part_bytes = part_bytes
        self._limiter = limiter
        # Unbuffered: what the bucket is slow to take, the writer is slow to accept.
        self._send, self._receive = trio.open_memory_channel[bytes](0)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._succeeded = False
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Upload until the parts are finished, or given up."""
        try:
            with self._scope:
                await self._bucket.upload(self._key, self._parts(), self._part_bytes, self._limiter)
                self._succeeded = True
        except Exception as error:  # noqa: BLE001 - carried to the task that writes
            self._failure = error
        finally:
            self._receive.close()
            self._ended.set()

    async def send(self, part: bytes) -> None:
        """Hand over the next part. Raises StorageFull or Unavailable."""
        try:
            await self._send.send(part)
        except trio.BrokenResourceError:
            await self._ended.wait()
            raise self._error() from None

    async def finish(self) -> None:
        """Make the object appear. Raises StorageFull or Unavailable, and then it does not."""
        self._send.close()
        # From here on it may appear, and whoever is told that it did not would be told wrong.
        with trio.CancelScope(shield=True):
            await self._ended.wait()
        if not self._succeeded:
            raise self._error()

    async def abort(self) -> None:
        """Leave nothing in the bucket, though perhaps a little later. Does nothing after `finish`.

        No object can appear any more. The parts are removed once the one on its way has arrived,
        which whoever gave up need not wait for when the bucket is slow.
        """
        self._scope.cancel()
        with trio.move_on_after(_ABORT_SECONDS) as scope:
            scope.shield = True
            await self._ended.wait()

    def _parts(self) -> Iterator[bytes]:
        """Runs in the thread of the upload, where trio raises the scope's cancellation."""
        while True:
            try:
                part = trio.from_thread.run(self._receive.receive)
            except trio.EndOfChannel:
                return
            yield part

    def _error(self) -> Exception:
        if isinstance(self._failure, StokerError):
            return self._failure.again()
        if self._failure is not None:
            # A bug, which is to be seen whole.
            return self._failure
        return Unavailable(f"bucket {self._bucket.name}: the upload of {self._key} was stopped")
