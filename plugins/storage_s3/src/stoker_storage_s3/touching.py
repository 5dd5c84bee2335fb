"""Renews objects in use, so that a life-cycle rule takes only those that nobody wants (STO-06)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable

import structlog
import trio

from stoker.spi import StokerError, Unavailable
from stoker_storage_s3.bucket import Bucket, Found
from stoker_storage_s3.concurrency import ranges
from stoker_storage_s3.writing import PartsUpload, fitting_part_bytes

_log = structlog.get_logger(__name__)

_DAY_SECONDS = 24 * 3600
# What is not taken in is found again at its next use.
_MAX_WAITING = 10_000
_AT_ONCE = 4
# The most that S3 copies in one request.
COPY_LIMIT_BYTES = 5_000_000_000
_REWRITE_PART_BYTES = 8 * 1024 * 1024


class Toucher:
    """Renews, in the background, objects that were found older than `after_days`; 0 for none.

    An object that was renewed is young, so that each is renewed once in that time at most. What
    fails is logged and left to its next use.
    """

    def __init__(
        self, bucket: Bucket, after_days: float, renew: Callable[[str, Found], Awaitable[None]]
    ) -> None:
        self._bucket = bucket
        self._after_seconds = after_days * _DAY_SECONDS
        self._renew = renew
        self._waiting: set[str] = set()
        self._send, self._receive = trio.open_memory_channel[tuple[str, Found]](_MAX_WAITING)

    def consider(self, key: str, found: Found) -> None:
        """Have object `key` renewed if its age asks for it."""
        if not self._after_seconds or key in self._waiting:
            return
        if time.time() - found.modified < self._after_seconds:
            return
        try:
            self._send.send_nowait((key, found))
        except trio.WouldBlock:
            return
        self._waiting.add(key)

    async def run(self) -> None:
        """Renew until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        async for key, found in self._receive:
            try:
                await self._renew(key, found)
            except StokerError as error:
                _log.warning(
                    "object not renewed", bucket=self._bucket.name, key=key, reason=str(error)
                )
            finally:
                self._waiting.discard(key)


async def renew_blob(
    bucket: Bucket, key: str, found: Found, copy_limit_bytes: int = COPY_LIMIT_BYTES
) -> None:
    """Write object `key` anew without a moment in which it is absent.

    S3 refuses to copy an object onto itself unless something else changes too, so that it takes
    a detour. What a crash leaves of that, the life-cycle rule takes.
    """
    if found.size_bytes > copy_limit_bytes:
        await _rewrite(bucket, key, found.size_bytes)
        return
    detour = f"touch/{uuid.uuid4()}"
    await bucket.copy(key, detour)
    try:
        await bucket.copy(detour, key)
    finally:
        with trio.CancelScope(shield=True):
            await bucket.delete(detour)


async def _rewrite(bucket: Bucket, key: str, size_bytes: int) -> None:
    """Read object `key` and write the same anew, for those too large to be copied."""
    part_bytes = fitting_part_bytes(_REWRITE_PART_BYTES, size_bytes)
    upload = PartsUpload(bucket, key, part_bytes, trio.CapacityLimiter(1))
    failure: StokerError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload.run)
        try:
            for start, end in ranges(0, size_bytes, part_bytes):
                await upload.send(await _read_again(bucket, key, start, end))
            await upload.finish()
        except StokerError as error:
            # Carried around the nursery, which would wrap it in a group.
            failure = error
        finally:
            await upload.abort()
    if failure is not None:
        raise failure


async def _read_again(bucket: Bucket, key: str, start: int, end: int) -> bytes:
    piece = await bucket.get(key, start, end)
    if piece is None or len(piece.data) != end - start:
        raise Unavailable(f"bucket {bucket.name}: {key} was changed while it was renewed")
    return bytes(piece.data)
