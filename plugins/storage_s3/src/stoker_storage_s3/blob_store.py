"""A blob store in a bucket: one object a blob, named by digest function, hash and size."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from stoker.spi import (
    BlobNotFound,
    BlobReader,
    BlobStore,
    BlobWriter,
    DataLoss,
    Digest,
    StokerError,
    Unavailable,
)
from stoker_storage_s3.bucket import Bucket, Found, Piece
from stoker_storage_s3.concurrency import Flights, for_each
from stoker_storage_s3.digest_index import DigestIndex
from stoker_storage_s3.large_writer import LargeWriter
from stoker_storage_s3.reading import FIRST_WINDOW_BYTES, WindowReader
from stoker_storage_s3.settings import BlobSettings
from stoker_storage_s3.touching import Toucher
from stoker_storage_s3.writing import Discard, Gather, PartsUpload, fitting_part_bytes

_log = structlog.get_logger(__name__)

# A client that was just told that a blob is missing uploads it at once: for so long the bucket is
# not asked again before. Nothing is ever called missing because of it.
_ABSENCE_SECONDS = 10.0
_CREATE_ATTEMPTS = 3


class BucketBlobStore(BlobStore):
    """Blobs in `bucket`, whose background work runs in `nursery`. README.md has the layout.

    A blob that was seen is believed to be there for the settings' `presence_seconds`. An object
    of another size than its digest's counts as absent, and is written over. A blob that a
    life-cycle rule or a hand takes while it is open breaks the reading with Unavailable.
    """

    def __init__(
        self, bucket: Bucket, settings: BlobSettings, toucher: Toucher, nursery: trio.Nursery
    ) -> None:
        self._bucket = bucket
        self._part_bytes = settings.part_bytes
        self._shared_upload_seconds = settings.shared_upload_seconds
        self._toucher = toucher
        self._nursery = nursery
        self._uploads = trio.CapacityLimiter(settings.max_uploads)
        self._writes: Flights[None] = Flights()
        self._looks: Flights[bool] = Flights()
        self._present = DigestIndex(
            settings.presence_entries, settings.presence_seconds, trio.current_time
        )
        self._absent = DigestIndex(settings.presence_entries, _ABSENCE_SECONDS, trio.current_time)

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        await trio.lowlevel.checkpoint()
        unknown = [d for d in dict.fromkeys(digests) if not self._present.holds(d)]
        missing: list[Digest] = []

        async def look(digest: Digest) -> None:
            if not await self._look(digest):
                missing.append(digest)

        await self._for_each(unknown, look)
        if missing and len(missing) == len(unknown):
            # One that is there proves that the bucket is; if there is none, the bucket is asked.
            await self._bucket.confirm_absence(_key(missing[0]))
        return set(missing)

    @asynccontextmanager
    async def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[BlobReader]:
        end = digest.size_bytes if limit is None else min(offset + limit, digest.size_bytes)
        first = await self._first_window(digest, offset, end)
        fetch = partial(self._window, digest)
        reader = WindowReader(self._nursery, fetch, first, offset, end)
        try:
            yield reader
        finally:
            reader.close()

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        """Up to one part is kept in memory, more is uploaded while it comes in.

        Of writers of one large blob, the others wait a while for the first one's end, and discard
        what they have if that ends well.
        """
        if digest.size_bytes <= self._part_bytes:
            await trio.lowlevel.checkpoint()
            gather = Gather()
            yield gather
            await self._publish(digest, gather.whole())
        elif await self._is_needed(digest):
            async with self._open_large(digest) as writer:
                yield writer
            self._present.add(digest)
        else:
            yield Discard()

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        await trio.lowlevel.checkpoint()
        blobs: dict[Digest, bytes] = {}

        async def read(digest: Digest) -> None:
            piece = await self._bucket.get_whole(_key(digest), digest.size_bytes)
            if self._note(digest, None if piece is None else piece.found):
                assert piece is not None
                blobs[digest] = bytes(_exactly(digest, piece.data, digest.size_bytes))

        await self._for_each(dict.fromkeys(digests), read)
        return blobs

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        await trio.lowlevel.checkpoint()
        failures: dict[Digest, StokerError] = {}

        async def write(digest: Digest) -> None:
            try:
                await self._publish(digest, blobs[digest])
            except StokerError as error:
                failures[digest] = error

        await self._for_each(blobs, write)
        return failures

    async def _for_each(
        self, digests: Collection[Digest], work: Callable[[Digest], Awaitable[object]]
    ) -> None:
        await for_each(digests, work, width=min(self._bucket.max_connections, len(digests)))

    # --- what is there

    async def _look(self, digest: Digest) -> bool:
        async def ask() -> bool:
            return self._note(digest, await self._bucket.head(_key(digest)))

        # Clients of one build ask for the same blobs at the same moment.
        return await self._looks.once(digest, ask)

    def _note(self, digest: Digest, found: Found | None) -> bool:
        """Remember what was `found`; whether it is the blob."""
        if found is None or found.size_bytes != digest.size_bytes:
            self._present.discard(digest)
            self._absent.add(digest)
            if found is not None:
                self._warn(digest, found)
            return False
        self._absent.discard(digest)
        self._present.add(digest)
        self._toucher.consider(_key(digest), found)
        return True

    def _warn(self, digest: Digest, found: Found) -> None:
        _log.warning(
            "object of another size than its blob counts as absent",
            bucket=self._bucket.name,
            key=_key(digest),
            size_bytes=found.size_bytes,
        )

    async def _is_needed(self, digest: Digest) -> bool:
        """Whether the bucket lacks `digest`, as far as is known."""
        if self._present.holds(digest):
            return False
        return self._absent.holds(digest) or not await self._look(digest)

    # --- reading

    async def _first_window(self, digest: Digest, offset: int, end: int) -> memoryview:
        window_end = min(offset + FIRST_WINDOW_BYTES, end)
        piece = await self._get(digest, offset, window_end)
        if not self._note(digest, None if piece is None else piece.found):
            raise BlobNotFound(digest)
        assert piece is not None
        return _exactly(digest, piece.data, window_end - offset)

    async def _get(self, digest: Digest, start: int, end: int) -> Piece | None:
        if start < end:
            return await self._bucket.get(_key(digest), start, end)
        found = await self._bucket.head(_key(digest))
        if found is None:
            await self._bucket.confirm_absence(_key(digest))
            return None
        return Piece(found, memoryview(b""))

    async def _window(self, digest: Digest, start: int, end: int) -> memoryview:
        piece = await self._bucket.get(_key(digest), start, end)
        if piece is None:
            self._note(digest, None)
            raise Unavailable(
                f"bucket {self._bucket.name}: blob {digest} was removed while it was being read"
            )
        return _exactly(digest, piece.data, end - start)

    # --- writing

    async def _publish(self, digest: Digest, data: bytes) -> None:
        await self._writes.once(digest, partial(self._write, digest, data))

    async def _write(self, digest: Digest, data: bytes) -> None:
        if await self._is_needed(digest):
            await self._create(digest, data)
            self._absent.discard(digest)
            self._present.add(digest)

    async def _create(self, digest: Digest, data: bytes) -> None:
        key = _key(digest)
        for _ in range(_CREATE_ATTEMPTS):
            if await self._bucket.create(key, data):
                return
            # The refusal may also stand for a change by others, such as a removal: so look.
            found = await self._bucket.head(key)
            if found is not None and found.size_bytes != digest.size_bytes:
                await self._bucket.put(key, data)
                return
            if found is not None:
                return
        raise Unavailable(f"bucket {self._bucket.name}: others keep changing {key}")

    @asynccontextmanager
    async def _open_large(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        part_bytes = fitting_part_bytes(self._part_bytes, digest.size_bytes)
        upload = PartsUpload(self._bucket, _key(digest), part_bytes, self._uploads)
        writer = LargeWriter(
            digest,
            part_bytes,
            upload,
            self._writes,
            self._nursery,
            patience_seconds=self._shared_upload_seconds,
        )
        try:
            yield writer
            await writer.finish()
        finally:
            await writer.close()


def _key(digest: Digest) -> str:
    # The size is part of the name: a known hash with another size is another object (GEN-03).
    function = digest.function.name.lower()
    return f"cas/{function}/{digest.hash[:2]}/{digest.hash}-{digest.size_bytes}"


def _exactly(digest: Digest, data: memoryview, size_bytes: int) -> memoryview:
    if len(data) != size_bytes:
        raise DataLoss(digest, f"the bucket gave {len(data)} of {size_bytes} bytes")
    return data
