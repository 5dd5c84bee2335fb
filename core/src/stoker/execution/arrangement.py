"""Which entries a folder should have, and bringing it there, but for the contents of files.

These functions block; call them in a thread. Nothing below a symbolic link is ever touched.
"""

# ruff: noqa: PTH101, PTH102, PTH115, PTH211
# Strings and descriptors: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

from stoker.digest import Digest
from stoker.errors import InvalidRequest
from stoker.execution.removal import remove_tree
from stoker.storage.tree import InputFile, InputTree

FOLDER_MODE = 0o755


class FileState(NamedTuple):
    """What the file system says of a file. It differs once anybody has written to the file."""

    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    mode: int


class LaidFile(NamedTuple):
    """A file as it was laid out."""

    digest: Digest
    mode: int
    mtime_ns: int
    state: FileState


class FileChange(NamedTuple):
    """A file that must be written."""

    file: InputFile
    replaces: bool
    """Whether a file of that name is there, which somebody may have open."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that a folder should hold. Paths are relative to it; the folder itself is not listed."""

    files: Mapping[str, InputFile]
    folders: Set[str]
    symlinks: Mapping[str, str]


def wanted_entries(tree: InputTree, parents: Collection[str]) -> Wanted:
    """`tree` and the folders `parents`, with all folders above either.

    Raises InvalidRequest if a parent is a file of the tree. A parent below a symbolic link of the
    tree is not made: where the link leads is the action's affair.
    """
    folders: set[str] = set()
    _add_with_ancestors(folders, tree.directories)
    _add_with_ancestors(folders, map(parent_of, (*tree.files, *tree.symlinks)))
    for parent in parents:
        _add_with_ancestors(folders, [_outside_links(parent, tree)])
    return Wanted(tree.files, folders, tree.symlinks)


def parent_of(path: str) -> str:
    """The folder that `path` is in; empty for the top."""
    return path.rpartition("/")[0]


def _add_with_ancestors(folders: set[str], paths: Iterable[str]) -> None:
    for path in paths:
        ancestor = path
        while ancestor and ancestor not in folders:
            folders.add(ancestor)
            ancestor = parent_of(ancestor)


def _outside_links(parent: str, tree: InputTree) -> str:
    """The longest part of `parent` that can be made of folders."""
    possible = parent
    for path in _upwards(parent):
        if path in tree.files:
            raise InvalidRequest(f"{parent!r} must be a directory, but input {path!r} is a file")
        if path in tree.symlinks:
            possible = parent_of(path)
    return possible


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = parent_of(path)


def arrange(top: str, wanted: Wanted, held: Mapping[str, LaidFile]) -> list[FileChange]:
    """Bring the folder `top` to `wanted`; files that must be written are returned instead.

    A file stays if it is in `held` as it should be, and has not been touched since.
    """
    present = _clear(top, wanted, held)
    for folder in sorted(wanted.folders - present.folders):
        _make_folder(os.path.join(top, folder))
    for path, target in wanted.symlinks.items():
        if path not in present.symlinks:
            os.symlink(target, os.path.join(top, path))
    return [
        FileChange(file, path in present.stale)
        for path, file in wanted.files.items()
        if path not in present.sound
    ]


def _make_folder(path: str) -> None:
    os.mkdir(path)
    os.chmod(path, FOLDER_MODE)


@dataclass(slots=True)
class _Present:
    """What was found of the wanted, and stays."""

    folders: set[str]
    symlinks: set[str]
    sound: set[str]
    """Files as they should be."""
    stale: set[str]
    """Files of another content."""


def _clear(top: str, wanted: Wanted, held: Mapping[str, LaidFile]) -> _Present:
    """Remove all that is not wanted, and say what there is."""
    present = _Present(set(), set(), set(), set())
    os.chmod(top, FOLDER_MODE)
    unvisited = [""]
    while unvisited:
        prefix = unvisited.pop()
        for entry in _entries(os.path.join(top, prefix)):
            path = f"{prefix}{entry.name}"
            if not _note(present, path, entry, wanted, held):
                remove_tree(entry.path)
            elif path in wanted.folders:
                unvisited.append(path + "/")
    return present


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _note(
    present: _Present,
    path: str,
    entry: os.DirEntry[str],
    wanted: Wanted,
    held: Mapping[str, LaidFile],
) -> bool:
    """Whether `entry` may stay, which is noted in `present`."""
    if entry.is_symlink():
        return _note_symlink(present, path, entry, wanted)
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return _note_folder(present, path, entry, wanted, status)
    return _note_file(present, path, wanted, held, status)


def _note_symlink(present: _Present, path: str, entry: os.DirEntry[str], wanted: Wanted) -> bool:
    if wanted.symlinks.get(path) != os.readlink(entry.path):
        return False
    present.symlinks.add(path)
    return True


def _note_folder(
    present: _Present, path: str, entry: os.DirEntry[str], wanted: Wanted, status: os.stat_result
) -> bool:
    if path not in wanted.folders:
        return False
    if stat.S_IMODE(status.st_mode) != FOLDER_MODE:
        os.chmod(entry.path, FOLDER_MODE)
    present.folders.add(path)
    return True


def _note_file(
    present: _Present,
    path: str,
    wanted: Wanted,
    held: Mapping[str, LaidFile],
    status: os.stat_result,
) -> bool:
    file = wanted.files.get(path)
    if file is None or not stat.S_ISREG(status.st_mode):
        return False
    is_sound = held.get(path) == laid_file(file, state_of(status))
    (present.sound if is_sound else present.stale).add(path)
    return True


DEFAULT_MTIME_NS = 946_684_800 * 10**9
"""2000-01-01, for files without a time of their own: results must not depend on when they are
laid out, and archivers such as zip know nothing before 1980 (RUN-04)."""


def mode_of(file: InputFile) -> int:
    """The permissions that `file` is laid out with.

    Inputs are copies, so a write to one harms nobody; and a tool that copies an input with its
    mode and goes on to edit the copy breaks on a read-only one (RUN-03). Bits that lend the
    owner's rights to whoever runs the file are not for clients to set.
    """
    if file.unix_mode is not None:
        return file.unix_mode & 0o777
    return 0o755 if file.is_executable else 0o644


def mtime_ns_of(file: InputFile) -> int:
    """The modification time that `file` is laid out with (RUN-04)."""
    return DEFAULT_MTIME_NS if file.mtime_ns is None else file.mtime_ns


def laid_file(file: InputFile, state: FileState) -> LaidFile:
    """What to remember of `file`, found in `state` after it was laid out."""
    return LaidFile(file.digest, mode_of(file), mtime_ns_of(file), state)


def state_of(status: os.stat_result) -> FileState:
    """The part of `status` that tells whether a file was touched."""
    return FileState(
        status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode
    )
