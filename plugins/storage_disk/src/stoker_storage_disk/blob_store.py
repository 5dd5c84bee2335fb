"""A blob store in a folder: one file a blob, named by digest function, hash and size."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Set
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from functools import partial
from itertools import islice
from pathlib import Path

import trio

from stoker.spi import (
    DIGEST_FUNCTIONS,
    BlobNotFound,
    BlobPaths,
    BlobReader,
    BlobStore,
    BlobUpload,
    BlobWriter,
    DataLoss,
    Digest,
    DigestMismatch,
    InvalidRequest,
    Locate,
    ScrubFinding,
    StokerError,
    StorageFull,
)
from stoker_storage_disk.folder import Part
from stoker_storage_disk.ledger import Pins
from stoker_storage_disk.partials import Partials
from stoker_storage_disk.reading import DiskReader
from stoker_storage_disk.room import COPY_SUFFIX, NotCountedYet
from stoker_storage_disk.scrubbing import open_findings
from stoker_storage_disk.upkeep import Upkeep
from stoker_storage_disk.writing import DiskUpload, DiskWriter

_FOLDERS = {function: function.name.lower() for function in DIGEST_FUNCTIONS}
_FUNCTIONS = {folder: function for function, folder in _FOLDERS.items()}

# How many small blobs are published in one step, for the price of one entry in the index.
_BATCH = 256


class DiskBlobStore(BlobStore):
    """Blobs in a folder. See README.md for the layout and for what survives a crash.

    Whole files are moved into place, so that readers, who keep a descriptor, see either nothing
    or all of a blob. A file whose size is not its digest's counts as absent and is removed.
    Calls may overlap freely. Work that has gone to a thread is not cut short by cancellation.
    """

    def __init__(self, upkeep: Upkeep, partials: Partials, *, verify_reads: bool) -> None:
        self._upkeep = upkeep
        self._partials = partials
        self._verify_reads = verify_reads
        self._threads = upkeep.threads
        self._files = upkeep.files

    # --- reading

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        def work() -> set[Digest]:
            present = self._find(digests)
            return {digest for digest in digests if blob_name(digest) not in present}

        return await self._threads.read(work)

    @asynccontextmanager
    async def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[BlobReader]:
        with self._pins() as pins:
            pins.add(blob_name(digest))
            reader = await self._threads.read(self._open, digest, offset, limit)
            if reader is None:
                raise BlobNotFound(digest)
            try:
                yield reader
            finally:
                reader.close()

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        """Whole small blobs at once. Absent ones, and damaged ones, are left out."""

        def work() -> dict[Digest, bytes]:
            found = ((digest, self._read(digest)) for digest in digests)
            return {digest: data for digest, data in found if data is not None}

        return await self._threads.read(work)

    @asynccontextmanager
    async def open_paths(self, digests: Collection[Digest]) -> AsyncIterator[Mapping[Digest, Path]]:
        """The blobs' own files, of mode 0444 and 2000-01-01. Hard links to them are welcome."""
        with self._pins() as pins:
            yield await self._threads.read(self._paths, digests, pins)

    @asynccontextmanager
    async def open_locations(self, digests: Collection[Digest]) -> AsyncIterator[Locate]:
        """Where the blobs' own files are if they are there, which counts as use of them."""
        with self._pins() as pins:
            yield await self._threads.read(self._locations, digests, pins)

    @asynccontextmanager
    async def open_executable_paths(
        self, digests: Collection[Digest]
    ) -> AsyncIterator[Mapping[Digest, Path]]:
        """Copies of the blobs of mode 0555, made now where there are none.

        A blob is left out too when there is no room for its copy. Raises Unavailable.
        """
        with self._pins() as pins:
            yield await self._upkeep.write(partial(self._executable_paths, digests, pins))

    def scrub(self) -> AbstractAsyncContextManager[AsyncIterator[ScrubFinding]]:
        return open_findings(self._upkeep)

    # --- writing

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        await trio.lowlevel.checkpoint()
        self._files.check_size(digest.size_bytes)
        writer = DiskWriter(self._upkeep, self._files.folder.create_part)
        try:
            yield writer
            await self._publish(digest, writer)
        finally:
            if writer.part is not None:
                with trio.CancelScope(shield=True):
                    await self._threads.write(writer.discard)

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        """As the default does, in few trips to threads. Cancellation leaves some written."""
        failures: dict[Digest, StokerError] = {}
        rest = iter(blobs.items())
        while some := dict(islice(rest, _BATCH)):
            failures |= await self._upkeep.write(partial(self._write_some, some))
        return failures

    async def write_file(self, digest: Digest, path: Path) -> None:
        """Move the file into the store, or copy it inside of the kernel where that is not sound.

        Moved is a regular file of the store's file system that has no other name; it belongs to
        the server's user afterwards, and is read-only. Not cut short by cancellation, after which
        the blob may be there, whole. Raises DigestMismatch if the file is of another size.
        """
        self._files.check_size(digest.size_bytes)
        publish = self._files.publish_file
        work = partial(publish, blob_name(digest), str(path), digest.size_bytes)
        if not await self._upkeep.write(work):
            raise DigestMismatch(digest, f"{path} is of another size")

    @asynccontextmanager
    async def open_upload(self, digest: Digest, upload: str) -> AsyncIterator[BlobUpload]:
        self._files.check_size(digest.size_bytes)
        with self._partials.opened(digest, upload) as name:
            part = await self._threads.write(self._partials.part, name)
            kept = DiskUpload(self._upkeep, part)
            leave = partial(self._keep, name, kept)
            try:
                yield kept
                await self._publish(digest, kept)
            except InvalidRequest:
                leave = partial(kept.discard)
                raise
            finally:
                if kept.part is not None:
                    with trio.CancelScope(shield=True):
                        await self._threads.write(leave)

    async def uploaded_bytes(self, digest: Digest, upload: str) -> int:
        await trio.lowlevel.checkpoint()
        return self._partials.size_bytes(digest, upload)

    # --- in threads

    def _find(self, digests: Collection[Digest]) -> Set[str]:
        return self._files.find({blob_name(digest): digest.size_bytes for digest in digests})

    def _open(self, digest: Digest, offset: int = 0, limit: int | None = None) -> DiskReader | None:
        name = blob_name(digest)
        descriptor = self._files.open_file(name, digest.size_bytes)
        if descriptor is None:
            return None
        return DiskReader(
            self._upkeep,
            digest,
            name,
            descriptor,
            offset=offset,
            limit=limit,
            verify=self._verify_reads,
        )

    def _read(self, digest: Digest) -> bytes | None:
        with self._pins() as pins:
            pins.add(blob_name(digest))
            reader = self._open(digest)
            if reader is None:
                return None
            try:
                return reader.read_rest()
            except DataLoss:
                return None
            finally:
                reader.close()

    def _paths(self, digests: Collection[Digest], pins: Pins) -> BlobPaths:
        names = {digest: blob_name(digest) for digest in digests}
        sizes = {name: digest.size_bytes for digest, name in names.items()}
        present = self._files.find_inputs({name: sizes[name] for name in pins.add(*sizes)})
        return self._located(names, present, "")

    def _executable_paths(self, digests: Collection[Digest], pins: Pins) -> BlobPaths:
        names = {digest: blob_name(digest) for digest in digests}
        sizes = {name: digest.size_bytes for digest, name in names.items()}
        pinned = pins.add(*sizes)
        present = self._files.find_copies({name: sizes[name] for name in pinned})
        for name in pinned - present:
            if self._make_copy(name, sizes[name]):
                present.add(name)
        return self._located(names, present, COPY_SUFFIX)

    def _locations(self, digests: Collection[Digest], pins: Pins) -> Locate:
        condemned = self._files.use_unseen(BlobNames(digests), pins)
        # As `blob_name`, without a call and a search for each.
        folders = {
            function: self._files.folder.absolute(folder) for function, folder in _FOLDERS.items()
        }

        def locate(digest: Digest) -> str | None:
            hash_, size_bytes, function = digest
            return f"{folders[function]}/{hash_[:2]}/{hash_}-{size_bytes}"

        def locate_sound(digest: Digest) -> str | None:
            return None if blob_name(digest) in condemned else locate(digest)

        return locate_sound if condemned else locate

    def _make_copy(self, name: str, size_bytes: int) -> bool:
        try:
            return self._files.make_copy(name, size_bytes)
        except NotCountedYet:
            raise
        except StorageFull:
            return False

    def _located(self, names: Mapping[Digest, str], present: Set[str], suffix: str) -> BlobPaths:
        top = self._files.folder.absolute("")
        return BlobPaths(
            {digest: top + name + suffix for digest, name in names.items() if name in present}
        )

    async def _publish(self, digest: Digest, writer: DiskWriter) -> None:
        name = blob_name(digest)

        def work() -> None:
            failures = self._files.publish({name: writer.append()})
            if failures:
                raise failures[name]
            # Here, as long as this thread is at it.
            writer.discard()

        await self._upkeep.write(work)

    def _write_some(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        failures: dict[Digest, StokerError] = {}
        with self._parts() as parts:
            present = self._find(blobs.keys())
            for digest, data in blobs.items():
                if blob_name(digest) in present:
                    continue
                try:
                    self._write(parts, blob_name(digest), data)
                except NotCountedYet:
                    raise
                except StokerError as error:
                    failures[digest] = error
            unpublished = self._files.publish(parts)
            self._files.sync_folders(present)
        named = {blob_name(digest): digest for digest in blobs}
        return failures | {named[name]: error for name, error in unpublished.items()}

    def _write(self, parts: dict[str, Part], name: str, data: bytes) -> None:
        part = self._files.folder.create_part()
        try:
            self._files.append(part, data)
            # Sealed now and closed: the parts of a few batches at once would be more files than
            # many systems let a process have open.
            self._files.folder.seal(part)
            part.close()
        except BaseException:
            self._files.discard(part)
            raise
        parts[name] = part

    @contextmanager
    def _parts(self) -> Iterator[dict[str, Part]]:
        parts: dict[str, Part] = {}
        try:
            yield parts
        finally:
            for part in parts.values():
                self._files.discard(part)

    def _keep(self, name: str, upload: DiskUpload) -> None:
        assert upload.part is not None, "it was not discarded"
        if upload.part.published:
            # It has its place, though not everything went well after that.
            upload.discard()
            return
        # There is less to go on behind then, that is all: what ended the call is told already.
        with suppress(StokerError):
            upload.append()
        self._partials.keep(name, upload.part)

    # --- names

    def _pins(self) -> AbstractContextManager[Pins]:
        return self._files.ledger.pins()


class BlobNames(Set[str]):
    """The names of blobs' files, made when they are asked for: for ten thousand, making them
    takes a tenth of the time of linking them all."""

    def __init__(self, digests: Iterable[Digest]) -> None:
        self._digests = frozenset(digests)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and digest_of(name) in self._digests

    def __iter__(self) -> Iterator[str]:
        return map(blob_name, self._digests)

    def __len__(self) -> int:
        return len(self._digests)


def digest_of(name: str) -> Digest | None:
    """The digest of the blob whose file has that name."""
    folder, _, rest = name.partition("/")
    hash_, _, size_bytes = rest[3:].rpartition("-")
    function = _FUNCTIONS.get(folder)
    if function is None or not size_bytes.isdecimal():
        return None
    return Digest(hash_, int(size_bytes), function)


def blob_name(digest: Digest) -> str:
    """The name of a blob's file."""
    # The size is part of it: a known hash with another size is another file (GEN-03).
    hash_, size_bytes, function = digest
    return f"{_FOLDERS[function]}/{hash_[:2]}/{hash_}-{size_bytes}"
