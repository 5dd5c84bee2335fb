"""Hashing of what flows by: small pieces in place, large ones in a thread beside other work."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

from stoker.digest import Digest, Hasher

THREAD_BYTES = 256 * 1024
"""Measured: SHA-256 of 256 KiB takes 0.2 ms, a trip to a thread and back 0.13 ms. Below, hashing
in place is cheaper; above, it would hold up every other task."""

# What may wait to be hashed: enough that neither side stands still for the other's thread.
_QUEUED_BYTES = 4 * 1024 * 1024


class StreamHasher:
    """Hashes pieces in their order, here and at once. One task feeds it."""

    def __init__(self, digest: Digest) -> None:
        self._hasher = digest.function.new()

    async def update(self, data: bytes | memoryview) -> None:
        """Take the next piece, which may be changed once this returns."""
        self._hasher.update(data)

    async def hexdigest(self) -> str:
        """The hash of all pieces."""
        return self._hasher.hexdigest()


@asynccontextmanager
async def open_hasher(digest: Digest) -> AsyncIterator[StreamHasher]:
    """A hasher for a blob: a large one is hashed while the caller does something else.

    Leaving the context ends what is still being hashed. An error of the body leaves as it is.
    """
    if digest.size_bytes < THREAD_BYTES:
        yield StreamHasher(digest)
        return
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        pipeline = _Pipeline(digest)
        nursery.start_soon(pipeline.run)
        try:
            yield pipeline
        except Exception as error:  # noqa: BLE001 # carried around the nursery, which would wrap it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Pipeline(StreamHasher):
    """Hashes a run of pieces in a thread while the next ones come in."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(digest)
        self._waiting: deque[bytes | memoryview] = deque()
        self._waiting_bytes = 0
        self._changed = trio.Event()
        self._hashed = trio.Event()

    async def update(self, data: bytes | memoryview) -> None:
        await self._wait_below(_QUEUED_BYTES)
        if self._waiting_bytes or len(data) >= THREAD_BYTES:
            self._waiting.append(_unchanging(data))
            self._waiting_bytes += len(data)
            self._changed.set()
        else:
            self._hasher.update(data)

    async def hexdigest(self) -> str:
        await self._wait_below(1)
        return self._hasher.hexdigest()

    async def run(self) -> None:
        """Hash what comes in, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            pieces = [*self._waiting]
            self._waiting.clear()
            await trio.to_thread.run_sync(_hash_all, self._hasher, pieces)
            # Counted last: as long as a thread hashes, nobody else may.
            self._waiting_bytes -= sum(map(len, pieces))
            self._hashed.set()

    async def _wait_below(self, limit_bytes: int) -> None:
        while self._waiting_bytes >= limit_bytes:
            self._hashed = trio.Event()
            await self._hashed.wait()


def _hash_all(hasher: Hasher, pieces: Iterable[bytes | memoryview]) -> None:
    for piece in pieces:
        hasher.update(piece)


def _unchanging(data: bytes | memoryview) -> bytes | memoryview:
    """`data`, or a copy where its owner could change it under the thread's hands."""
    owner = data.obj if isinstance(data, memoryview) else data
    return data if isinstance(owner, bytes) else bytes(data)
