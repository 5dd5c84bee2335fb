"""Blobs on their way in: gathered in memory while they are small, then in a file."""

from __future__ import annotations

from collections.abc import Callable

import trio

from stoker.spi import BlobUpload, BlobWriter
from stoker_storage_disk.bounded import BoundedFolder
from stoker_storage_disk.folder import Part, read_exactly
from stoker_storage_disk.upkeep import Upkeep

# What one upload may hold back in memory, so that small pieces do not each cost a trip.
_BUFFER_BYTES = 256 * 1024


class DiskWriter(BlobWriter):
    """Has no file as long as what is written fits into the buffer."""

    def __init__(self, upkeep: Upkeep, create_part: Callable[[], Part]) -> None:
        self._upkeep = upkeep
        self._create_part = create_part
        self._buffer = bytearray()
        self.part: Part | None = None

    @property
    def _files(self) -> BoundedFolder:
        return self._upkeep.files

    async def write(self, data: bytes | memoryview) -> None:
        if len(self._buffer) + len(data) < _BUFFER_BYTES:
            await trio.lowlevel.checkpoint()
            self._buffer += data
        else:
            # `data` goes to the file as it is: the caller may reuse it only after this returns.
            await self._upkeep.write(lambda: self.append(data))

    def append(self, data: bytes | memoryview = b"") -> Part:
        """Write all that was gathered, and `data`, to the file. Blocks.

        Raises StorageFull or Unavailable; NotCountedYet before anything was written.
        """
        if self.part is None:
            self.part = self._create_part()
        self._files.take(self.part, len(self._buffer) + len(data))
        # Before the disk may turn out to be full half way: what is in the file is then still the
        # beginning of the blob, and an upload may go on behind it.
        buffer, self._buffer = self._buffer, bytearray()
        for piece in (buffer, data):
            self.part.append(piece)
        return self.part

    def discard(self) -> None:
        """Remove the file, unless it was published. Blocks. Raises Unavailable."""
        part, self.part = self.part, None
        if part is not None:
            self._files.discard(part)


class DiskUpload(DiskWriter, BlobUpload):
    """A blob whose bytes outlive the call that brings them."""

    def __init__(self, upkeep: Upkeep, part: Part) -> None:
        super().__init__(upkeep, lambda: part)
        self.part = part
        self.offset = part.size_bytes

    async def read_kept(self, offset: int, max_bytes: int) -> bytes:
        return await self._upkeep.threads.read(self._read, offset, max_bytes)

    def _read(self, offset: int, max_bytes: int) -> bytes:
        assert self.part is not None, "it is open"
        size_bytes = min(max_bytes, self.offset - offset)
        return read_exactly(self.part.path, self.part.descriptor, offset, size_bytes)

    async def restart(self) -> None:
        assert self.part is not None, "it is open"
        await self._upkeep.threads.write(self._files.empty, self.part)
        self._buffer = bytearray()
        self.offset = 0
