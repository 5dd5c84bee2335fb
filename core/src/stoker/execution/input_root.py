"""A folder that holds an action's input root."""

# ruff: noqa: PTH103
# Strings: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Set
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from stoker.digest import Digest
from stoker.errors import BlobNotFound, FailedPrecondition, InputsMissing
from stoker.execution.arrangement import (
    Folders,
    LaidFolder,
    changes_to,
    cost_of_change,
    folders_beyond,
    forget,
    is_small_change,
    joined,
)
from stoker.execution.cleaning import Cleaning, is_untouched
from stoker.execution.disk import Pace, disk_errors, on_disk, write_all
from stoker.execution.folder_watch import FolderWatch
from stoker.execution.layout import DistantFile, Layout, Policy, Sources
from stoker.execution.removal import empty_folder, remove_path, remove_tree
from stoker.execution.union import find, union, without
from stoker.spi import BlobStore, ProcessUser, locate_in
from stoker.storage.input_tree import InputDirectory, InputTree

_DOING = "laying out inputs:"

# Folders with so many entries are compared faster than a thread is asked to.
_FEW_ENTRIES = 2000

# Blobs up to this size are read whole, several in one call of the store.
_SMALL_BYTES = 2**20
_FEW_BLOBS = 32
_SMALL_AT_ONCE = 1000
_SMALL_AT_ONCE_BYTES = 4 * 2**20


class RootReplaced(FailedPrecondition):
    """Where the input root was is something else, or nothing."""


class InputRoot:
    """A folder, and what is laid out in it. One task uses it at a time.

    With `link`, inputs are hard links to the store's own files, of mode 0444 and 0555: only for
    processes that cannot change those (RUN-02). Otherwise they are copies, of mode 0644 and 0755.
    Folders are made to belong to `user`, and so are copies that may be written to.
    """

    def __init__(
        self,
        folder: Path,
        blobs: BlobStore,
        *,
        link: bool = False,
        user: ProcessUser | None = None,
        watch: FolderWatch | None = None,
    ) -> None:
        """Use `folder`, which need not exist yet. What it may hold is not trusted.

        A `watch` saves looks at copies, where one root serves many actions.
        """
        self._watch = watch
        self.folder = folder
        self._top = os.fspath(folder)
        self._blobs = blobs
        self._policy = Policy(link, user)
        self._identity: tuple[int, int] | None = None
        self._laid: LaidFolder | None = None
        self._beyond: Folders = {}
        self._is_clean = False
        self._pace = Pace()

    @property
    def is_known(self) -> bool:
        """Whether it is known what the folder holds, but for what an action did to it."""
        return self._laid is not None

    @property
    def directory(self) -> InputDirectory | None:
        """What was laid out last, if that is known."""
        return None if self._laid is None else self._laid.directory

    def cost(self, tree: InputTree) -> int:
        """About how many entries must be made or removed to lay out `tree`."""
        return cost_of_change(self._laid or LaidFolder(), tree.root)

    async def lay_out(self, tree: InputTree, parents: Collection[str] = ()) -> None:
        """Bring the folder to exactly `tree` and the folders `parents`, with those above them.

        Only what differs from the last layout is changed, and all that an action left or changed
        since is removed or redone, unless `clean` has been there already. The folder's own inode
        stays, so that it may be the working directory of a living process, and so do files that
        need no change.

        Raises InputsMissing with all blobs that are not in the store, InvalidRequest for a tree
        that no folder can hold, RootReplaced if the folder is not the one of the last time,
        Unavailable for a disk that is full. After an exception, cancellation included, the folder
        is in doubt: it is emptied when it is laid out again.
        """
        beyond = folders_beyond(tree.root, parents)
        if self._is_laid_out(tree.root, beyond):
            self._is_clean = False
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        await self._bring_to(tree.root, beyond, await self._clean_laid())

    async def add(
        self, tree: InputTree, parents: Collection[str] = (), outputs: Collection[str] = ()
    ) -> None:
        """Lay out `tree` and `parents` beside what is there, which others go on using.

        What is at a path of `tree` with another content gives way, what is at one of `outputs`
        and not in `tree` is removed, and all else stays, whoever has made it. The next `lay_out`
        removes what is not wanted then. Raises what `lay_out` raises, and RootReplaced where it
        is not known what the folder holds.
        """
        beyond = folders_beyond(tree.root, parents)
        laid, root = await on_disk(
            _DOING, partial(self._make_room, tree.root, _absent_from(tree, outputs))
        )
        whole = joined(root, self._beyond, beyond)
        await self._bring_to(root, whole, laid, sweep=True)

    async def drop(self, paths: Collection[str]) -> None:
        """Remove what is at `paths`, and nothing else.

        Raises RootReplaced, or Unavailable where something withstands; then the folder is in
        doubt, as it is after cancellation, which waits for the end.
        """
        self._is_clean = False
        self._laid = await on_disk("removing outputs:", partial(self._without, paths))

    async def clean(self) -> None:
        """Undo what an action did, as far as that needs no blob: the next layout does the rest.

        Nobody may touch the folder until then. Cancellation waits for the end. Raises RootReplaced,
        or Unavailable where something withstands; then the folder is in doubt.
        """
        await on_disk("cleaning an input root:", self.clean_now)

    def clean_now(self) -> None:
        """As `clean`, but blocks, and raises OSError where something withstands."""
        laid, self._laid = self._laid, None
        if laid is None:
            raise RootReplaced("it is not known what the input root holds")
        self._clean(laid)
        self._laid, self._is_clean = laid, True

    def skip_cleaning(self) -> bool:
        """Count as clean where a few looks tell that nothing was done to the folder.

        Returns whether so; if not, only `clean` can tell. Nobody may touch the folder meanwhile.
        """
        laid = self._laid
        link, watch = self._policy.link, self._watch
        if laid is not None and is_untouched(self._top, laid, links=link, watch=watch):
            self._is_clean = True
        return self._is_clean

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
        self._laid, self._identity = None, None
        await on_disk("removing an input root:", partial(remove_tree, self._top))

    # --- in threads

    def _is_laid_out(self, root: InputDirectory, beyond: Folders) -> bool:
        laid = self._laid
        return (
            self._is_clean
            and laid is not None
            and laid.directory.digest == root.digest
            and self._beyond == beyond
            and (laid.is_exact or _is_whole(laid, beyond))
        )

    async def _clean_laid(self) -> LaidFolder:
        if self._is_clean and self._laid is not None:
            with disk_errors(_DOING):
                return self._take_laid()
        return await on_disk(_DOING, self._take_laid)

    async def _bring_to(
        self, root: InputDirectory, beyond: Folders, laid: LaidFolder, *, sweep: bool = False
    ) -> None:
        """Make `laid` into `root` with `beyond`. With `sweep`, what nobody has laid out may be
        where something is to go, and gives way."""
        prepare = partial(self._prepare, root, beyond, laid, sweep=sweep)
        # What is little is done here: a trip to a thread takes as long.
        is_small = laid.stamp is not None and is_small_change(laid, root, _FEW_ENTRIES)
        layout, plain, executable = prepare() if is_small else await on_disk(_DOING, prepare)
        await self._carry_out(layout, plain, executable)
        self._laid, self._beyond = laid, beyond

    def _prepare(
        self, root: InputDirectory, beyond: Folders, laid: LaidFolder, *, sweep: bool
    ) -> tuple[Layout, Set[Digest], Set[Digest]]:
        changes = list(changes_to(laid, root, beyond, link=self._policy.link))
        if sweep:
            for change in changes:
                change.sweep()
        layout = Layout(self._top, changes, self._policy)
        return layout, *layout.digests()

    def _make_room(
        self, root: InputDirectory, outputs: Collection[str]
    ) -> tuple[LaidFolder, InputDirectory]:
        """What is there, less what is at `outputs`, and what is to be there with `root`."""
        laid = self._without(outputs)
        self._laid = None
        beneath = laid.directory
        for path in outputs:
            beneath = without(beneath, path)
        return laid, union(beneath, root)

    def _without(self, paths: Collection[str]) -> LaidFolder:
        laid, self._laid = self._laid, None
        if laid is None:
            raise RootReplaced("it is not known what the input root holds")
        self.check_intact()
        for path in paths:
            remove_path(self._top, path)
            forget(laid, path)
        return laid

    def _take_laid(self) -> LaidFolder:
        """What the folder holds, which is clean. It counts as in doubt from now on."""
        laid, self._laid = self._laid, None
        is_clean, self._is_clean = self._is_clean, False
        if self._identity is None:
            os.makedirs(self._top, exist_ok=True)
            self._identity = _identity(os.lstat(self._top))
        self.check_intact()
        if laid is None:
            empty_folder(self._top)
            return LaidFolder()
        if not is_clean:
            self._clean(laid)
        return laid

    def _clean(self, laid: LaidFolder) -> None:
        self.check_intact()
        link, user = self._policy
        Cleaning(self._top, laid, links=link, user=user, watch=self._watch).run()

    # --- contents

    async def _carry_out(self, layout: Layout, plain: Set[Digest], executable: Set[Digest]) -> None:
        held = {} if self._policy.link else self._blobs.held(plain)
        if not executable and len(held) == len(plain):
            work = layout.run(Sources(_nowhere, _nowhere, held))
            if layout.is_tiny and self._pace.is_quick:
                await self._do_here(work)
            else:
                await _do(work)
            return
        async with (
            self._programs(executable) as programs,
            self._blobs.open_locations(plain | (executable - programs.keys())) as locate,
        ):
            held = await self._read_few([digest for digest in plain if locate(digest) is None])
            await _do(layout.run(Sources(locate, locate_in(programs), held)))
        if layout.distant:
            digests = {file.file.digest for file in layout.distant}
            async with self._blobs.open_paths(digests) as paths:
                await _do(layout.try_again(Sources(locate_in(paths), _nowhere)))
        missing = await self._write_small(layout, filter(_is_small, layout.distant))
        for file in layout.distant:
            if not _is_small(file):
                missing += await self._stream(layout, file)
        if missing:
            raise InputsMissing(list(dict.fromkeys(missing)))

    async def _do_here(self, work: Iterator[None]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        with disk_errors(_DOING), self._pace.measured():
            for _ in work:
                pass

    async def _read_few(self, digests: Collection[Digest]) -> Mapping[Digest, bytes]:
        """Those of `digests` that may as well be in memory, which saves trips to threads."""
        size_bytes = sum(digest.size_bytes for digest in digests)
        if not digests or len(digests) > _FEW_BLOBS or size_bytes > _SMALL_BYTES:
            return {}
        return await self._blobs.read_many(digests)

    @asynccontextmanager
    async def _programs(self, digests: Collection[Digest]) -> AsyncIterator[Mapping[Digest, Path]]:
        if not digests:
            yield {}
            return
        async with self._blobs.open_executable_paths(digests) as paths:
            yield paths

    async def _write_small(self, layout: Layout, files: Iterable[DistantFile]) -> list[Digest]:
        """Write files whose blobs fit into memory. Returns the digests that were not found."""
        missing: list[Digest] = []
        for batch in _batches(files):
            blobs = await self._blobs.read_many({file.file.digest for file in batch})
            await on_disk(_DOING, partial(layout.write, batch, blobs))
            missing += [f.file.digest for f in batch if f.file.digest not in blobs]
        return missing

    async def _stream(self, layout: Layout, file: DistantFile) -> list[Digest]:
        """Write a file piece by piece. Returns the digest if it was not found."""
        try:
            async with self._blobs.open_read(file.file.digest) as reader:
                streamed = await on_disk(_DOING, partial(layout.begin, file))
                try:
                    while data := await reader.read(_SMALL_BYTES):
                        await on_disk(_DOING, partial(write_all, streamed.part.descriptor, data))
                    await on_disk(_DOING, partial(layout.end, file, streamed))
                except BaseException:
                    streamed.discard()
                    raise
        except BlobNotFound as error:
            return [error.digest]
        return []


async def _do(work: Iterator[None]) -> None:
    """One step a trip to a thread."""
    while await on_disk(_DOING, lambda: next(work, True)) is None:
        pass


def _nowhere(_: Digest) -> None:
    pass


def _absent_from(tree: InputTree, paths: Collection[str]) -> list[str]:
    return [path for path in paths if find(tree.root, path) is None]


def _is_whole(laid: LaidFolder, beyond: Folders) -> bool:
    """Whether all of a folder is there that was laid out with the folders `beyond`."""
    directory = laid.directory
    return (
        laid.files.keys() == directory.files.keys()
        and laid.symlinks.keys() == directory.symlinks.keys()
        and laid.folders.keys() == directory.directories.keys() | beyond.keys()
        and all(
            child.is_exact or _is_whole(child, beyond.get(name, {}))
            for name, child in laid.folders.items()
        )
    )


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_small(file: DistantFile) -> bool:
    return file.file.digest.size_bytes <= _SMALL_BYTES


def _batches(files: Iterable[DistantFile]) -> Iterator[list[DistantFile]]:
    """`files` in lists that may be in memory at once."""
    batch: list[DistantFile] = []
    size_bytes = 0
    for file in files:
        size_bytes += file.file.digest.size_bytes
        if batch and (len(batch) == _SMALL_AT_ONCE or size_bytes > _SMALL_AT_ONCE_BYTES):
            yield batch
            batch, size_bytes = [], file.file.digest.size_bytes
        batch.append(file)
    if batch:
        yield batch
