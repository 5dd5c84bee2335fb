"""Reading a blob's file, and hashing it on the way if that is wanted."""

from __future__ import annotations

import os

from stoker.spi import BlobReader, DataLoss, Digest
from stoker_storage_disk.folder import read_exactly
from stoker_storage_disk.upkeep import Upkeep

# What opening a file reads at once, as long as the thread is at it: most blobs are smaller.
_FIRST_BYTES = 64 * 1024
_MAX_READ_BYTES = 1024 * 1024


class DiskReader(BlobReader):
    """Reads the file `name`, open as `descriptor`, from `offset` for at most `limit` bytes.

    With `verify`, a blob that is read whole is hashed, and the last piece of it is not handed out
    unless the hash is right; a damaged file is removed. Made in a thread: short blobs are read
    at once. Raises Unavailable, and has closed the descriptor then.
    """

    def __init__(
        self,
        upkeep: Upkeep,
        digest: Digest,
        name: str,
        descriptor: int,
        *,
        offset: int,
        limit: int | None,
        verify: bool,
    ) -> None:
        self._upkeep = upkeep
        self._digest = digest
        self._name = name
        self._descriptor = descriptor
        self._position = offset
        self._end = digest.size_bytes if limit is None else min(digest.size_bytes, offset + limit)
        is_whole = offset == 0 and self._end == digest.size_bytes
        self._hasher = digest.function.new() if verify and is_whole else None
        self._damage: DataLoss | None = None
        self._ahead = b""
        if self._end - offset <= _FIRST_BYTES:
            self._read_ahead()

    def close(self) -> None:
        """Close the file. It was only read: that waits for no disk."""
        os.close(self._descriptor)

    async def read(self, max_bytes: int) -> bytes:
        if self._damage is not None:
            raise self._damage
        if self._ahead:
            piece, self._ahead = self._ahead[:max_bytes], self._ahead[max_bytes:]
            return piece
        size_bytes = min(max_bytes, self._end - self._position, _MAX_READ_BYTES)
        return await self._upkeep.threads.read(self._read, size_bytes) if size_bytes else b""

    def read_rest(self) -> bytes:
        """All that is left. Blocks. Raises DataLoss or Unavailable."""
        if self._damage is not None:
            raise self._damage
        return self._ahead or self._read(self._end - self._position)

    def _read_ahead(self) -> None:
        try:
            self._ahead = self._read(self._end - self._position)
        except DataLoss:
            # Kept for the first `read`: opening a blob does not raise it.
            pass
        except BaseException:
            self.close()
            raise

    def _read(self, size_bytes: int) -> bytes:
        data = read_exactly(f"blob {self._digest}", self._descriptor, self._position, size_bytes)
        if len(data) < size_bytes:
            self._damage = DataLoss(self._digest, f"its file ends at {self._position + len(data)}")
            raise self._damage
        if self._hasher is not None:
            self._hasher.update(data)
            if self._position + size_bytes == self._end:
                self._verify(self._hasher.hexdigest())
        self._position += size_bytes
        return data

    def _verify(self, actual: str) -> None:
        if actual != self._digest.hash:
            reason = f"its bytes hash to {actual}"
            found = os.fstat(self._descriptor)
            self._upkeep.files.remove_damaged(self._name, found, reason)
            self._damage = DataLoss(self._digest, reason)
            raise self._damage
