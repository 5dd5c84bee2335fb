"""Copying blobs from a far store into a near one, each once however many wait for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import trio

from stoker.digest import Digest
from stoker.errors import DataLoss, DigestMismatch, StokerError, sole_cause
from stoker.spi import BlobStore
from stoker.storage.verifying import VerifyingBlobStore

PIECE_BYTES = 1024 * 1024


class Fill:
    """Blobs on their way into the near store, and those who wait for them."""

    def __init__(self, digests: list[Digest]) -> None:
        self.digests = digests
        self.blobs: dict[Digest, bytes] = {}
        """What a batch has fetched; nothing for a blob that is copied in pieces."""
        self.filled: set[Digest] = set()
        """What the near store has taken."""
        self.error: Exception | None = None
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.waiters = 0


class Fills:
    """The fills of one pair of stores, running in `nursery`. Calls may overlap.

    What comes from `far` is hashed before `near` publishes it. A fill that nobody waits for any
    more is cancelled.
    """

    def __init__(self, nursery: trio.Nursery, near: BlobStore, far: BlobStore) -> None:
        self._nursery = nursery
        self._near = VerifyingBlobStore(near)
        self._far = far
        self._running: dict[Digest, Fill] = {}

    async def copy(self, digest: Digest) -> bool:
        """Have `digest` copied; returns whether the near store has taken it.

        Raises BlobNotFound when the far store does not hold it, DataLoss when what it sends is
        something else, or whatever else the far store raises.
        """
        fill = self._running.get(digest) or self._start([digest], self._copy)
        await self._wait(fill)
        if fill.error is not None and fill.digests == [digest]:
            # One for each that waits: they belong to different clients.
            raise fill.error.again() if isinstance(fill.error, StokerError) else fill.error
        return digest in fill.filled

    async def fetch(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        """Fetch small blobs in one batch, and have the near store take what it can.

        Those that another task is fetching already are waited for. Absent ones are left out.
        Raises as `copy` does, but for BlobNotFound.
        """
        others = {digest: fill for digest in digests if (fill := self._running.get(digest))}
        mine = [digest for digest in digests if digest not in others]
        found = await self._fetch_batch(mine) if mine else {}
        for fill in {id(fill): fill for fill in others.values()}.values():
            await self._wait(fill)
            found |= {digest: fill.blobs[digest] for digest in others if digest in fill.blobs}
        # Copied in pieces, or not at all: whichever it was, one of the stores knows.
        for store in (self._near, self._far):
            if late := [digest for digest in others if digest not in found]:
                found |= await store.read_many(late)
        return found

    async def _fetch_batch(self, digests: list[Digest]) -> dict[Digest, bytes]:
        fill = self._start(digests, self._copy_batch)
        await self._wait(fill)
        if fill.error is not None:
            raise fill.error
        return fill.blobs

    def _start(self, digests: list[Digest], work: Callable[[Fill], Awaitable[None]]) -> Fill:
        fill = Fill(digests)
        self._running.update(dict.fromkeys(digests, fill))
        self._nursery.start_soon(self._run, fill, work)
        return fill

    async def _wait(self, fill: Fill) -> None:
        fill.waiters += 1
        try:
            await fill.done.wait()
        finally:
            fill.waiters -= 1
            if not fill.waiters:
                self._forget(fill)
                fill.scope.cancel()

    def _forget(self, fill: Fill) -> None:
        for digest in fill.digests:
            if self._running.get(digest) is fill:
                del self._running[digest]

    async def _run(self, fill: Fill, work: Callable[[Fill], Awaitable[None]]) -> None:
        try:
            with fill.scope:
                await work(fill)
        except Exception as error:  # noqa: BLE001 - it is raised again by those who wait
            cause = sole_cause(error)
            fill.error = cause if isinstance(cause, StokerError) else error
        finally:
            self._forget(fill)
            fill.done.set()

    async def _copy(self, fill: Fill) -> None:
        [digest] = fill.digests
        async with self._far.open_read(digest) as reader:
            try:
                async with self._near.open_write(digest) as writer:
                    while piece := await reader.read(PIECE_BYTES):
                        await writer.write(piece)
            except DigestMismatch as error:
                raise DataLoss(digest, f"the far store sent something else: {error}") from error
            except StokerError:
                # The near store has no room, or one of the two is in trouble: whoever reads on
                # from the far store learns which.
                return
        fill.filled.add(digest)

    async def _copy_batch(self, fill: Fill) -> None:
        blobs = await self._far.read_many(fill.digests)
        failures = await self._near.write_many(blobs) if blobs else {}
        for digest, error in failures.items():
            if isinstance(error, DigestMismatch):
                raise DataLoss(digest, f"the far store sent something else: {error}")
        fill.blobs = blobs
        fill.filled = blobs.keys() - failures.keys()
