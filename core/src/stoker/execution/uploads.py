"""What an action made, on its way to the CAS."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from stoker.digest import Digest, DigestFunction
from stoker.errors import DigestMismatch, FailedPrecondition
from stoker.execution.disk import on_disk
from stoker.execution.output_files import OutputFile
from stoker.spi import BlobStore

_DOING = "reading outputs:"

# Files up to this size are read once, kept in memory, and sent many at a time.
_SMALL_BYTES = 128 * 2**10

# One trip to a thread, which cancellation has to wait for.
_FILES_AT_ONCE = 500
_BYTES_AT_ONCE = 2 * 2**20
_HASHED_AT_ONCE_BYTES = 64 * 2**20

# What waits in memory until it is worth a call of the store.
_HELD_BYTES = 4 * 2**20
_WRITE_AT_ONCE_BYTES = 4 * 2**20
_CHUNK_BYTES = 2**20

# While one task has its file hashed, which takes a core, another one waits for the store.
_TASKS = min(2 * (os.cpu_count() or 1), 8)


class LocalFile(NamedTuple):
    """A regular file of this machine."""

    location: str
    size_bytes: int


class Uploads:
    """Files and messages of one action, hashed and sent. One task uses it at a time.

    Several threads hash while the store takes what was hashed before. Of files, at most some
    8 MiB for each of at most eight tasks are in memory at once, however many there are.

    A small file is read once. So is a large one that may be given away (`gives_files`): the store
    gets the file itself. Else it is read again as it is sent, since a store has to be told the
    digest first; and it must then be what it was, or the store publishes nothing.
    """

    def __init__(
        self, function: DigestFunction, blobs: BlobStore, *, gives_files: bool = False
    ) -> None:
        """`gives_files`: nobody needs the files any more, and those who wrote them have ended."""
        self.function = function
        self._blobs = blobs
        self._gives_files = gives_files
        self._held: dict[Digest, bytes] = {}
        self._held_bytes = 0
        self._claimed: set[Digest] = set()

    def add(self, data: bytes) -> Digest:
        """Take `data` along, to be sent by `publish`."""
        digest = self.function.digest(data)
        self._hold(digest, data)
        return digest

    async def add_files(self, files: Iterable[LocalFile]) -> dict[str, Digest]:
        """Hash `files` and send what the store lacks, but for small ones that `publish` sends.

        Returns the digest for each location. Raises FailedPrecondition for one that cannot be
        read, or changes meanwhile; StorageFull or Unavailable. Then, as after cancellation, some
        blobs are in the store, whole ones.
        """
        digests: dict[str, Digest] = {}
        small: list[LocalFile] = []
        large: list[LocalFile] = []
        for file in files:
            (small if file.size_bytes <= _SMALL_BYTES else large).append(file)
        # The largest first: one that is begun last would be waited for alone.
        large.sort(key=lambda file: -file.size_bytes)
        await _in_parallel(
            [
                *(partial(self._take_large, file.location, digests) for file in large),
                *(partial(self._take_small, batch, digests) for batch in _batches(small)),
            ]
        )
        return digests

    async def publish(self) -> None:
        """Send the rest. Raises StorageFull or Unavailable."""
        while self._held:
            await self._send_held()

    # --- small files and messages

    async def _take_small(self, batch: list[LocalFile], digests: dict[str, Digest]) -> None:
        found = await on_disk(_DOING, partial(_read_small, self.function, batch))
        for location, (digest, data) in found.items():
            digests[location] = digest
            self._hold(digest, data)
        for file in batch:
            if file.location not in found:
                await self._take_large(file.location, digests)
        if self._held_bytes > _HELD_BYTES:
            await self._send_held()

    def _hold(self, digest: Digest, data: bytes) -> None:
        if self._claim(digest):
            self._held[digest] = data
            self._held_bytes += len(data)

    def _claim(self, digest: Digest) -> bool:
        """Whether nobody has sent `digest`, or is about to; if that fails, so does all else."""
        is_new = digest not in self._claimed
        self._claimed.add(digest)
        return is_new

    async def _send_held(self) -> None:
        held, self._held, self._held_bytes = self._held, {}, 0
        try:
            await self._send(held)
        except BaseException:
            # Another file's failure may have ended this; some of it may belong to what goes on.
            self._held |= held
            raise

    async def _send(self, blobs: Mapping[Digest, bytes]) -> None:
        missing = await self._blobs.find_missing(blobs.keys())
        for batch in _weighed({digest: blobs[digest] for digest in blobs if digest in missing}):
            failures = await self._blobs.write_many(batch)
            for error in failures.values():
                raise error

    # --- large files

    async def _take_large(self, location: str, digests: dict[str, Digest]) -> None:
        file = await on_disk(_DOING, partial(self._open, location))
        try:
            digests[location] = digest = await self._hash(file)
            if self._claim(digest):
                await self._send_if_missing(digest, file)
        except (DigestMismatch, FileNotFoundError) as error:
            raise FailedPrecondition(f"{location!r} changed while it was being stored") from error
        finally:
            file.close()

    def _open(self, location: str) -> OutputFile:
        file = OutputFile(location)
        try:
            if self._gives_files:
                file.settle()
        except BaseException:
            file.close()
            raise
        return file

    async def _hash(self, file: OutputFile) -> Digest:
        hasher = self.function.new()
        position = 0
        while count := await on_disk(
            _DOING, partial(file.hash_some, hasher, position, _HASHED_AT_ONCE_BYTES)
        ):
            position += count
        await on_disk(_DOING, file.check_unchanged)
        return Digest(hasher.hexdigest(), position, self.function)

    async def _send_if_missing(self, digest: Digest, file: OutputFile) -> None:
        try:
            if await self._blobs.find_missing([digest]):
                await self._send_file(digest, file)
        except BaseException:
            self._claimed.discard(digest)
            raise

    async def _send_file(self, digest: Digest, file: OutputFile) -> None:
        # Asked after hashing: what was hashed is then what the store gets.
        if await on_disk(_DOING, file.is_settled):
            await self._blobs.write_file(digest, Path(file.location))
            return
        position = 0
        async with self._blobs.open_write(digest) as writer:
            while data := await on_disk(_DOING, partial(file.read, _CHUNK_BYTES, position)):
                await writer.write(data)
                position += len(data)


def _read_small(
    function: DigestFunction, batch: Iterable[LocalFile]
) -> dict[str, tuple[Digest, bytes]]:
    """Digest and content of those files of `batch` that are still small, and keep still."""
    found = {}
    for location, _ in batch:
        file = OutputFile(location)
        try:
            data = file.read(min(file.size_bytes, _SMALL_BYTES) + 1)
        finally:
            file.close()
        if len(data) == file.size_bytes <= _SMALL_BYTES:
            found[location] = function.digest(data), data
    return found


async def _in_parallel(jobs: list[Callable[[], Awaitable[None]]]) -> None:
    """Do all `jobs`, some at a time. The first one that fails ends the others, and is raised."""
    if len(jobs) <= 1:
        # A nursery would cost more than a small file does.
        for job in jobs:
            await job()
        return
    failures: list[Exception] = []
    waiting = iter(jobs)

    async def work(scope: trio.CancelScope) -> None:
        for job in waiting:
            try:
                await job()
            except Exception as error:  # noqa: BLE001 # carried around the nursery, which would wrap it
                failures.append(error)
                scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in jobs[:_TASKS]:
            nursery.start_soon(work, nursery.cancel_scope)
    if failures:
        raise failures[0]


def _batches(files: Iterable[LocalFile]) -> Iterator[list[LocalFile]]:
    batch: list[LocalFile] = []
    size_bytes = 0
    for file in files:
        batch.append(file)
        size_bytes += file.size_bytes
        if len(batch) == _FILES_AT_ONCE or size_bytes > _BYTES_AT_ONCE:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _weighed(held: Mapping[Digest, bytes]) -> Iterator[dict[Digest, bytes]]:
    batch: dict[Digest, bytes] = {}
    size_bytes = 0
    for digest, data in held.items():
        if batch and size_bytes + len(data) > _WRITE_AT_ONCE_BYTES:
            yield batch
            batch, size_bytes = {}, 0
        batch[digest] = data
        size_bytes += len(data)
    if batch:
        yield batch
