"""A folder that holds an action's input root."""

# ruff: noqa: PTH103
# Strings: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from stoker.digest import Digest
from stoker.errors import BlobNotFound, FailedPrecondition, InputsMissing
from stoker.execution.arrangement import FileChange, LaidFile, Wanted, arrange, wanted_entries
from stoker.execution.disk import on_disk, write_all
from stoker.execution.input_files import PartialFile, copy_bytes, open_source, write_file
from stoker.execution.removal import remove_tree
from stoker.spi import BlobStore
from stoker.storage.tree import InputTree

_DOING = "laying out inputs:"

# One trip to a thread, which cancellation has to wait for.
_FILES_AT_ONCE = 1000
_BYTES_AT_ONCE = 64 * 2**20

# Blobs up to this size are read whole, several in one call of the store.
_SMALL_BYTES = 2**20
_SMALL_AT_ONCE_BYTES = 4 * 2**20


class RootReplaced(FailedPrecondition):
    """Where the input root was is something else, or nothing."""


class InputRoot:
    """A folder, and what was last laid out in it. One task uses it at a time.

    Files are copies, never links: an action that runs as the server's own user could otherwise
    write to the CAS (RUN-02). Permissions and times are those of :mod:`.arrangement`.
    """

    def __init__(self, folder: Path, blobs: BlobStore) -> None:
        """Use `folder`, which need not exist yet. What it may hold is not trusted."""
        self.folder = folder
        self._top = os.fspath(folder)
        self._blobs = blobs
        self._held: dict[str, LaidFile] = {}
        self._identity: tuple[int, int] | None = None

    async def lay_out(self, tree: InputTree, parents: Collection[str] = ()) -> None:
        """Bring the folder to exactly `tree` and the folders `parents`, with those above them.

        From an empty folder this lays out all; from an earlier state only what differs, and all
        that an action left or changed is removed or redone. The folder's own inode stays, so that
        it may be the working directory of a living process, and so do files that need no change.

        Raises InputsMissing with all blobs that are not in the store, InvalidRequest for a tree
        that no folder can hold, RootReplaced if the folder is not the one of the last time,
        Unavailable for a disk that is full. After an exception, cancellation included, the folder
        holds some of both states: lay out again, or remove.
        """
        wanted = wanted_entries(tree, parents)
        held = {path: self._held[path] for path in wanted.files.keys() & self._held.keys()}
        changes = await on_disk(_DOING, partial(self._arrange, wanted, held))
        self._held = held
        await self._write(changes)

    def check_intact(self) -> None:
        """Raise RootReplaced unless the folder is the very one that was laid out.

        An action could otherwise have what lies elsewhere taken for its outputs, or for a
        worker's inputs of the time before, which are deleted.
        """
        try:
            status = os.lstat(self._top)
        except OSError as error:
            raise RootReplaced(f"the input root is gone: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode) or _identity(status) != self._identity:
            raise RootReplaced("the input root was replaced by something else")

    async def remove(self) -> None:
        """Delete the folder and all below it, whatever an action did to it.

        Cancellation waits for the deletion's end. Raises Unavailable where something withstands.
        """
        self._held, self._identity = {}, None
        await on_disk("removing an input root:", partial(remove_tree, self._top))

    def _arrange(self, wanted: Wanted, held: Mapping[str, LaidFile]) -> list[FileChange]:
        if self._identity is None:
            os.makedirs(self._top, exist_ok=True)
            self._identity = _identity(os.lstat(self._top))
        self.check_intact()
        return arrange(self._top, wanted, held)

    async def _write(self, changes: list[FileChange]) -> None:
        sizeable = {change.file.digest for change in changes if change.file.digest.size_bytes}
        async with self._blobs.open_paths(sizeable) as paths:
            distant = await self._copy(changes, paths)
        missing = await self._write_small(c for c in distant if _is_small(c))
        missing += await self._write_large(c for c in distant if not _is_small(c))
        if missing:
            raise InputsMissing(missing)

    async def _copy(
        self, changes: list[FileChange], paths: Mapping[Digest, Path]
    ) -> list[FileChange]:
        """Write what can be copied from files of this machine. Returns the rest."""
        distant: list[FileChange] = []
        for batch in batches(changes, _FILES_AT_ONCE, _BYTES_AT_ONCE):
            written = await on_disk(_DOING, partial(_copy_batch, self._top, batch, paths))
            self._held |= written
            distant += [change for change in batch if change.file.path not in written]
        return distant

    async def _write_small(self, changes: Iterable[FileChange]) -> list[Digest]:
        """Write files whose blobs fit into memory. Returns the digests that were not found."""
        missing: list[Digest] = []
        for batch in batches(changes, _FILES_AT_ONCE, _SMALL_AT_ONCE_BYTES):
            blobs = await self._blobs.read_many({change.file.digest for change in batch})
            self._held |= await on_disk(_DOING, partial(_write_batch, self._top, batch, blobs))
            missing += [c.file.digest for c in batch if c.file.digest not in blobs]
        return missing

    async def _write_large(self, changes: Iterable[FileChange]) -> list[Digest]:
        """Stream files from the store. Returns the digests that were not found."""
        missing: list[Digest] = []
        for change in changes:
            try:
                self._held[change.file.path] = await self._stream(change)
            except BlobNotFound as error:
                missing.append(error.digest)
        return missing

    async def _stream(self, change: FileChange) -> LaidFile:
        async with self._blobs.open_read(change.file.digest) as reader:
            part = await on_disk(_DOING, partial(PartialFile, self._top, change))
            try:
                while data := await reader.read(_SMALL_BYTES):
                    await on_disk(_DOING, partial(write_all, part.descriptor, data))
                return await on_disk(_DOING, part.finish)
            except BaseException:
                part.discard()
                raise


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_small(change: FileChange) -> bool:
    return change.file.digest.size_bytes <= _SMALL_BYTES


def batches(
    changes: Iterable[FileChange], most_files: int, most_bytes: int
) -> Iterator[list[FileChange]]:
    """`changes` in lists of at most so many files and bytes, but at least one file."""
    batch: list[FileChange] = []
    size_bytes = 0
    for change in changes:
        size_bytes += change.file.digest.size_bytes
        if batch and (len(batch) == most_files or size_bytes > most_bytes):
            yield batch
            batch, size_bytes = [], change.file.digest.size_bytes
        batch.append(change)
    if batch:
        yield batch


def _copy_batch(
    top: str, batch: Iterable[FileChange], paths: Mapping[Digest, Path]
) -> dict[str, LaidFile]:
    """Those of `batch` that are empty or have a file in `paths`, written."""
    written = {}
    for change in batch:
        digest = change.file.digest
        if not digest.size_bytes:
            written[change.file.path] = write_file(top, change, partial(write_all, data=b""))
            continue
        with open_source(paths.get(digest)) as source:
            if source is not None:
                fill = partial(_fill_from, source, digest)
                written[change.file.path] = write_file(top, change, fill)
    return written


def _fill_from(source: int, digest: Digest, target: int) -> None:
    copy_bytes(source, target, digest)


def _write_batch(
    top: str, batch: Iterable[FileChange], blobs: Mapping[Digest, bytes]
) -> dict[str, LaidFile]:
    return {
        change.file.path: write_file(
            top, change, partial(write_all, data=blobs[change.file.digest])
        )
        for change in batch
        if change.file.digest in blobs
    }
