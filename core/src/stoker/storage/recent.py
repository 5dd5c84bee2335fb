"""Small blobs in memory for a while after they were in a store: no trip to it for each of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import NamedTuple

import trio

from stoker.digest import Digest
from stoker.spi import HELD_SECONDS, BlobStore

MAX_BLOB_BYTES = 64 * 2**10
"""Larger blobs are not held: to read them takes longer than the way to the store."""

MAX_BYTES = 16 * 2**20
"""What all blobs that are held may have together, each counted with what it takes to hold it."""

# A digest, its text, and its places in the table.
_ENTRY_BYTES = 500


class _Held(NamedTuple):
    data: bytes
    since: float


class RecentBlobs:
    """Blobs that were in a store at most `HELD_SECONDS` ago. What is longest there goes first.

    Whoever adds a blob has verified it, or has it from the store.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES, max_blob_bytes: int = MAX_BLOB_BYTES) -> None:
        self._max_bytes = max_bytes
        self._max_blob_bytes = max_blob_bytes
        # In the order in which they expire.
        self._blobs: OrderedDict[Digest, _Held] = OrderedDict()
        self._bytes = 0

    def wants(self, digest: Digest) -> bool:
        """Whether a blob is small enough."""
        return digest.size_bytes <= self._max_blob_bytes

    def add(self, blobs: Mapping[Digest, bytes]) -> None:
        """Hold those of `blobs` that are small: they are in the store now."""
        since = trio.current_time()
        for digest, data in blobs.items():
            if self.wants(digest):
                self.discard(digest)
                self._blobs[digest] = _Held(data, since)
                self._bytes += len(data) + _ENTRY_BYTES
        while self._blobs and (self._bytes > self._max_bytes or self._oldest_is_expired()):
            self.discard(next(iter(self._blobs)))

    def discard(self, digest: Digest) -> None:
        """Hold that blob no more."""
        held = self._blobs.pop(digest, None)
        if held is not None:
            self._bytes -= len(held.data) + _ENTRY_BYTES

    def find(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        """Those of `digests` that are held."""
        oldest = trio.current_time() - HELD_SECONDS
        found = {}
        for digest in digests:
            held = self._blobs.get(digest)
            if held is not None and held.since > oldest:
                found[digest] = held.data
        return found

    def _oldest_is_expired(self) -> bool:
        oldest = next(iter(self._blobs.values()))
        return oldest.since <= trio.current_time() - HELD_SECONDS


async def read_soon(blobs: BlobStore, digests: Collection[Digest]) -> dict[Digest, bytes]:
    """As `BlobStore.read_many`, but asks the store only for what is not held in memory."""
    held = dict(blobs.held(digests))
    rest = [digest for digest in digests if digest not in held]
    return held | await blobs.read_many(rest) if rest else held
