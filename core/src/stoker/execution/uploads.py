"""What an action made, on its way to the CAS."""

# ruff: noqa: PTH101, PTH123
# Strings and descriptors: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO, NamedTuple

from stoker.digest import Digest, DigestFunction, Hasher
from stoker.errors import DigestMismatch, FailedPrecondition
from stoker.execution.disk import on_disk
from stoker.spi import BlobStore

_DOING = "reading outputs:"

# Files up to this size are read once and kept, within the bound for all of them.
_SMALL_BYTES = 128 * 2**10
_KEPT_BYTES = 16 * 2**20

# One trip to a thread, which cancellation has to wait for.
_FILES_AT_ONCE = 500
_BYTES_AT_ONCE = 16 * 2**20

_WRITE_AT_ONCE_BYTES = 4 * 2**20
_CHUNK_BYTES = 2**20


class LocalFile(NamedTuple):
    """A regular file of this machine."""

    location: str
    size_bytes: int


class Uploads:
    """Files and messages of one action, gathered first and then sent at once.

    Small ones are held in memory up to a bound; the others are read a second time when they are
    sent, and must not change until then. One task uses it at a time.
    """

    def __init__(self, function: DigestFunction, blobs: BlobStore) -> None:
        self.function = function
        self._blobs = blobs
        self._held: dict[Digest, bytes] = {}
        self._files: dict[Digest, str] = {}
        self._kept_bytes = 0

    def add(self, data: bytes) -> Digest:
        """Take `data` along. It counts for nothing in the bound on memory."""
        digest = self.function.digest(data)
        self._held[digest] = data
        return digest

    async def add_files(self, files: Iterable[LocalFile]) -> dict[str, Digest]:
        """Hash `files` and take them along. Returns the digest for each location.

        Raises FailedPrecondition for one that cannot be read, Unavailable if the disk fails.
        """
        digests: dict[str, Digest] = {}
        for batch in _batches(files):
            digests |= await on_disk(_DOING, partial(self._add_small, batch))
            for file in batch:
                if file.location not in digests:
                    digests[file.location] = await self._add_large(file.location)
        return digests

    async def publish(self) -> None:
        """Send what the store lacks, and forget all of it.

        Raises StorageFull or Unavailable, and FailedPrecondition for a file that has changed
        since it was added. Then, as after cancellation, some blobs are in the store.
        """
        present = self._held.keys() | self._files.keys()
        missing = await self._blobs.find_missing(present) if present else set()
        held = {digest: data for digest, data in self._held.items() if digest in missing}
        for batch in _weighed(held):
            failures = await self._blobs.write_many(batch)
            for error in failures.values():
                raise error
        for digest in sorted(missing & self._files.keys() - held.keys(), key=str):
            await self._send_file(digest, self._files[digest])
        self._held, self._files, self._kept_bytes = {}, {}, 0

    def _add_small(self, batch: Iterable[LocalFile]) -> dict[str, Digest]:
        digests = {}
        for file in batch:
            if file.size_bytes <= _SMALL_BYTES:
                with open_output(file.location) as opened:
                    data = opened.read(_SMALL_BYTES + 1)
                if len(data) <= _SMALL_BYTES:
                    digests[file.location] = self._keep(file.location, data)
        return digests

    def _keep(self, location: str, data: bytes) -> Digest:
        digest = self.function.digest(data)
        if self._kept_bytes + len(data) <= _KEPT_BYTES:
            self._kept_bytes += len(data)
            self._held[digest] = data
        else:
            self._files[digest] = location
        return digest

    async def _add_large(self, location: str) -> Digest:
        hasher = self.function.new()
        size_bytes = 0
        with open_output(location) as file:
            while count := await on_disk(_DOING, partial(_hash_some, file, hasher)):
                size_bytes += count
        digest = Digest(hasher.hexdigest(), size_bytes, self.function)
        self._files[digest] = location
        return digest

    async def _send_file(self, digest: Digest, location: str) -> None:
        try:
            with open_output(location) as file:
                async with self._blobs.open_write(digest) as writer:
                    while data := await on_disk(_DOING, partial(file.read, _CHUNK_BYTES)):
                        await writer.write(data)
        except DigestMismatch as error:
            raise FailedPrecondition(f"{location!r} changed while it was being stored") from error


@contextmanager
def open_output(location: str) -> Iterator[BinaryIO]:
    """Open a regular file that an action left; one without the permission is given it (OUT-20).

    Raises FailedPrecondition if it cannot be read all the same. Follows no symbolic link.
    """
    try:
        descriptor = _open_readable(location)
    except OSError as error:
        raise FailedPrecondition(f"output {location!r} cannot be read: {error.strerror}") from error
    with open(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FailedPrecondition(f"output {location!r} is a regular file no more")
        yield file


def _open_readable(location: str) -> int:
    # Without O_NONBLOCK, a fifo that took the file's place would block for ever.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(location, flags)
    except PermissionError:
        os.chmod(location, 0o600)
        return os.open(location, flags)


def _hash_some(file: BinaryIO, hasher: Hasher) -> int:
    """Hash the next bytes of `file`, and return how many they were."""
    total = 0
    while total < _BYTES_AT_ONCE and (data := file.read(_CHUNK_BYTES)):
        hasher.update(data)
        total += len(data)
    return total


def _batches(files: Iterable[LocalFile]) -> Iterator[list[LocalFile]]:
    batch: list[LocalFile] = []
    size_bytes = 0
    for file in files:
        batch.append(file)
        # Larger ones take trips of their own.
        size_bytes += min(file.size_bytes, _SMALL_BYTES)
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
