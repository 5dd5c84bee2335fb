"""A large blob on its way in, which waits for another writer of the same blob if there is one."""

from __future__ import annotations

import trio

from stoker.spi import BlobWriter, Digest
from stoker_storage_s3.concurrency import Flight, Flights
from stoker_storage_s3.writing import PartsUpload


class LargeWriter(BlobWriter):
    """Collects parts of `part_bytes` for `upload`, which begins with the first full one.

    While another writer uploads the same blob, the first part is held back for at most
    `patience_seconds`: if that one is slow, or never ends, two uploads are better than a client
    that waits for somebody else's. To be finished if all went well, and closed in every case.
    """

    def __init__(
        self,
        digest: Digest,
        part_bytes: int,
        upload: PartsUpload,
        flights: Flights[None],
        nursery: trio.Nursery,
        *,
        patience_seconds: float,
    ) -> None:
        self._digest = digest
        self._part_bytes = part_bytes
        self._upload = upload
        self._flights = flights
        self._nursery = nursery
        self._patience_seconds = patience_seconds
        self._part = bytearray()
        self._flight: Flight[None] | None = None
        self._uploading = False
        self._another_did_it = False

    async def write(self, data: bytes | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest and not self._another_did_it:
            taken = rest[: self._part_bytes - len(self._part)]
            self._part += taken
            rest = rest[len(taken) :]
            if len(self._part) == self._part_bytes:
                await self._send_part()

    async def finish(self) -> None:
        """Make the blob appear. Raises StorageFull or Unavailable."""
        if self._part:
            await self._send_part()
        if self._another_did_it:
            return
        await self._upload.finish()
        if self._flight is not None:
            self._flight.answers.append(None)

    async def close(self) -> None:
        """Leave nothing of what is not finished, and let those go on who wait."""
        try:
            if self._uploading:
                await self._upload.abort()
        finally:
            if self._flight is not None:
                self._flights.land(self._digest, self._flight)

    async def _send_part(self) -> None:
        if not self._uploading:
            self._another_did_it = await self._await_others()
            if self._another_did_it:
                self._part.clear()
                return
            # None once patience has ended: then there are two uploads.
            self._flight = self._flights.start(self._digest)
            self._uploading = True
            self._nursery.start_soon(self._upload.run)
        part, self._part = bytes(self._part), bytearray()
        await self._upload.send(part)

    async def _await_others(self) -> bool:
        with trio.move_on_after(self._patience_seconds):
            while flight := await self._flights.wait_landed(self._digest):
                if flight.answers:
                    return True
        return False
