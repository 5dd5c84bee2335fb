"""What a folder holds, what it should hold, and the difference. Without a disk.

A directory whose digest is the one that was laid out is skipped with all that is below it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from stoker.digest import SHA256, Digest
from stoker.errors import InvalidRequest
from stoker.storage.input_tree import FileEntry, InputDirectory, entry_in

FOLDER_MODE = 0o755
LINKED_MODE = 0o444
LINKED_EXECUTABLE_MODE = 0o555

DEFAULT_MTIME_NS = 946_684_800 * 10**9
"""2000-01-01, for files without a time of their own: results must not depend on when they are
laid out, and archivers such as zip know nothing before 1980 (RUN-04)."""

MAX_DEPTH = 256
"""How many directories deep a tree may be to be laid out."""
_EMPTY = InputDirectory(SHA256.empty, {}, {}, {})

Folders = dict[str, "Folders"]
"""Folders by name, each with those in it."""


class Form(NamedTuple):
    """All of a file that an action can see, but for its name."""

    digest: Digest
    mode: int
    mtime_ns: int

    @property
    def is_linkable(self) -> bool:
        """Whether a blob's own file, or its executable copy, looks like this (RUN-04)."""
        return self.mtime_ns == DEFAULT_MTIME_NS and self.mode in (
            LINKED_MODE,
            LINKED_EXECUTABLE_MODE,
        )


def form_of(file: FileEntry, *, link: bool) -> Form:
    """How `file` is laid out.

    Copies may be written to, for it harms nobody; and a tool that copies an input with its mode
    and goes on to edit the copy breaks on a read-only one (RUN-03). Bits that lend the owner's
    rights to whoever runs the file are not for clients to set.
    """
    if file.unix_mode is not None:
        mode = file.unix_mode & 0o777
    elif link:
        mode = LINKED_EXECUTABLE_MODE if file.is_executable else LINKED_MODE
    else:
        mode = 0o755 if file.is_executable else 0o644
    return Form(file.digest, mode, DEFAULT_MTIME_NS if file.mtime_ns is None else file.mtime_ns)


class FileState(NamedTuple):
    """What the file system says of a file. It differs once anybody has written to the file."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    mode: int


@dataclass(slots=True)
class LaidFolder:
    """A folder as it was laid out, less what has been found gone since."""

    directory: InputDirectory = _EMPTY
    """What it was laid out from; empty for a folder that is there for outputs only."""
    is_exact: bool = False
    """Whether it holds just what `directory` says, and so does all below it."""
    files: dict[str, int | FileState] = field(default_factory=dict)
    """Those of the files that are there: the inode number of a link, the state of a copy."""
    symlinks: dict[str, str] = field(default_factory=dict)
    folders: dict[str, LaidFolder] = field(default_factory=dict)
    has_copies: bool = False
    """Whether some of the files, in a root of links, are copies that the action may change."""
    stamp: FileState | None = None
    watch: int = 0
    """Its number with the `FolderWatch`; 0 where it is not watched."""
    stamped_ns: int = 0
    """When the stamp was taken, in nanoseconds since 1970."""


_NOTHING = LaidFolder()


@dataclass(slots=True, kw_only=True)
class FolderChange:
    """What is to be done in one folder, in this order: removing, making, linking, writing."""

    depth: int
    name: str
    """In the folder above, whose change, or place, comes before; empty for the top."""
    laid: LaidFolder
    remove: list[str]
    folders: list[str]
    symlinks: dict[str, str]
    files: Mapping[str, FileEntry]
    replaced: frozenset[str]
    """Those of `files` that are there with another content, which somebody may have open."""

    def sweep(self) -> None:
        """Have what somebody has made removed from where something is to go."""
        if self.laid.stamp is not None:  # else the folder is made now, and empty
            self.remove += [*self.folders, *self.symlinks, *(self.files.keys() - self.replaced)]

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to be done in the folder itself."""
        return bool(
            self.remove or self.folders or self.symlinks or self.files or self.laid.stamp is None
        )


def parent_of(path: str) -> str:
    """The folder that `path` is in; empty for the top."""
    return path.rpartition("/")[0]


def folders_beyond(root: InputDirectory, paths: Collection[str]) -> Folders:
    """Those of the folders `paths`, and of the ones above them, that are not part of `root`.

    Raises InvalidRequest where one is a file of the tree. One below a symbolic link of the tree
    is left out: where the link leads is the action's affair.
    """
    beyond: Folders = {}
    for path in paths:
        kept = _kept_part(root, path)
        into = beyond
        for name in kept:
            into = into.setdefault(name, {})
    return beyond


def _kept_part(root: InputDirectory, path: str) -> list[str]:
    names = [name for name in path.split("/") if name]
    directory: InputDirectory | None = root
    needed = False
    for position, name in enumerate(names):
        entry = None if directory is None else entry_in(directory, name)
        if isinstance(entry, str):
            return names[:position] if needed else []
        if isinstance(entry, FileEntry):
            there = "/".join(names[: position + 1])
            raise InvalidRequest(f"{path!r} must be a directory, but input {there!r} is a file")
        needed |= entry is None
        directory = entry
    return names if needed else []


def changes_to(
    top: LaidFolder, root: InputDirectory, beyond: Folders, *, link: bool
) -> Iterator[FolderChange]:
    """What makes `top` into `root` with the folders `beyond`: parents before what is in them.

    `top` and what is below it tell of the new state as soon as the iterator has passed it, except
    for files, symbolic links and stamps, which are for whoever makes the changes to note.
    Raises InvalidRequest for what no folder should hold.
    """
    waiting: list[tuple[int, str, LaidFolder, InputDirectory, Folders]] = [
        (0, "", top, root, beyond)
    ]
    while waiting:
        depth, name, laid, directory, more = waiting.pop()
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"the input root is more than {MAX_DEPTH} directories deep")
        change = _change(depth, name, laid, directory, more, link=link)
        laid.directory = directory
        laid.is_exact = not more
        yield change
        for below in {**directory.directories, **more}:
            child = laid.folders[below]
            wanted = directory.directories.get(below, _EMPTY)
            inner = more.get(below, {})
            if inner or not (child.is_exact and child.directory.digest == wanted.digest):
                waiting.append((depth + 1, below, child, wanted, inner))


def _change(
    depth: int,
    name: str,
    laid: LaidFolder,
    directory: InputDirectory,
    more: Folders,
    *,
    link: bool,
) -> FolderChange:
    folders = {**directory.directories, **more}
    stale = _stale_files(laid, directory, link=link)
    remove = [
        *laid.files.keys() - directory.files.keys(),
        *(n for n, target in laid.symlinks.items() if directory.symlinks.get(n) != target),
        *laid.folders.keys() - folders.keys(),
    ]
    for gone in remove:
        laid.files.pop(gone, None)
        laid.symlinks.pop(gone, None)
        laid.folders.pop(gone, None)
    for below in (made := [below for below in folders if below not in laid.folders]):
        laid.folders[below] = LaidFolder()
    return FolderChange(
        depth=depth,
        name=name,
        laid=laid,
        remove=remove,
        folders=made,
        symlinks={n: t for n, t in directory.symlinks.items() if n not in laid.symlinks},
        files=directory.files
        if not laid.files
        else {n: f for n, f in directory.files.items() if n not in laid.files or n in stale},
        replaced=stale,
    )


def _stale_files(laid: LaidFolder, directory: InputDirectory, *, link: bool) -> frozenset[str]:
    """Names of files that are there, and are to be others."""
    before = laid.directory.files
    if not laid.files or before is directory.files:
        return frozenset()
    return frozenset(
        name
        for name, file in directory.files.items()
        # Directories share what is the same in them, as a rule.
        if before.get(name) is not file
        and name in laid.files
        and before[name] != file
        and form_of(before[name], link=link) != form_of(file, link=link)
    )


def is_small_change(laid: LaidFolder, root: InputDirectory, limit: int) -> bool:
    """Whether at most `limit` entries lie in folders that differ. Looks at no entry itself."""
    waiting = [(laid, root)]
    while waiting:
        old, new = waiting.pop()
        limit -= len(new.files) + len(old.files) + len(new.symlinks) + len(new.directories)
        if limit < 0:
            return False
        for name, below in new.directories.items():
            child = old.folders.get(name) or _NOTHING
            if not (child.is_exact and child.directory.digest == below.digest):
                waiting.append((child, below))
    return True


def forget(top: LaidFolder, path: str) -> None:
    """What was laid out at `path` is not there any more."""
    *above, name = path.split("/")
    laid = top
    laid.is_exact = False
    for below in above:
        child = laid.folders.get(below)
        if child is None:
            return
        laid = child
        laid.is_exact = False
    laid.files.pop(name, None)
    laid.symlinks.pop(name, None)
    laid.folders.pop(name, None)


def joined(root: InputDirectory, *several: Folders) -> Folders:
    """All folders of `several`, less those where `root` has a file or a link."""
    whole: Folders = {}
    for folders in several:
        for name, below in folders.items():
            entry = entry_in(root, name)
            if entry is None or isinstance(entry, InputDirectory):
                inside = _EMPTY if entry is None else entry
                whole[name] = joined(inside, whole.get(name, {}), below)
    return whole


def cost_of_change(laid: LaidFolder, root: InputDirectory) -> int:
    """About how many entries must be made or removed to make `laid` into `root`."""
    cost = 0
    waiting = [(laid, root)]
    while waiting:
        old, new = waiting.pop()
        if old.is_exact and old.directory.digest == new.digest:
            continue
        if old.directory.files is not new.files:
            cost += len(dict(old.directory.files).items() ^ dict(new.files).items())
        cost += len(new.files) - len(old.files) if len(old.files) < len(new.files) else 0
        cost += len(old.symlinks) + len(new.symlinks)
        for name, child in old.folders.items():
            below = new.directories.get(name)
            if below is None:
                cost += child.directory.entries + 1
            else:
                waiting.append((child, below))
        cost += sum(
            below.entries + 1 for name, below in new.directories.items() if name not in old.folders
        )
    return cost
