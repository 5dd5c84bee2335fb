"""Input trees made of others, directory by directory. Pure.

What is made is told apart by a digest of its own, which no Directory message has. Equal digests
mean equal content here too, and are not looked into.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from stoker.digest import SHA256
from stoker.errors import InvalidRequest
from stoker.execution.arrangement import MAX_DEPTH
from stoker.storage.input_tree import Entry, FileEntry, InputDirectory, entry_in

EntryT = TypeVar("EntryT")


def union(below: InputDirectory, above: InputDirectory, depth: int = 0) -> InputDirectory:
    """All that is in either; where they differ, what is in `above`.

    Raises InvalidRequest for a tree that is too deep for a folder.
    """
    if below.digest == above.digest:
        return above
    _check_depth(depth)
    directories = {
        **_beside(below.directories, above),
        **{
            name: union(below.directories[name], new, depth + 1)
            if name in below.directories
            else new
            for name, new in above.directories.items()
        },
    }
    files = {**_beside(below.files, above), **above.files}
    symlinks = {**_beside(below.symlinks, above), **above.symlinks}
    for whole in (above, below):
        if _is_made_of(whole, files, directories, symlinks):
            return whole
    return _directory(files, directories, symlinks)


def without(directory: InputDirectory, path: str) -> InputDirectory:
    """`directory` less what is at `path`, if anything is."""
    name, _, rest = path.partition("/")
    below = directory.directories.get(name)
    directories = dict(directory.directories)
    if rest:
        kept = None if below is None else without(below, rest)
        if kept is None or kept is below:
            return directory
        directories[name] = kept
        return _directory(directory.files, directories, directory.symlinks)
    if entry_in(directory, name) is None:
        return directory
    return _directory(
        {n: file for n, file in directory.files.items() if n != name},
        {n: child for n, child in directories.items() if n != name},
        {n: target for n, target in directory.symlinks.items() if n != name},
    )


def find(root: InputDirectory, path: str) -> Entry | None:
    """What is at `path`, relative to `root`; the root itself for an empty one."""
    entry: Entry | None = root
    for name in path.split("/") if path else ():
        if not isinstance(entry, InputDirectory):
            return None
        entry = entry_in(entry, name)
    return entry


def agree(one: InputDirectory, other: InputDirectory) -> bool:
    """Whether whatever is in both is the same in both."""
    waiting = [(one, other)]
    while waiting:
        left, right = waiting.pop()
        if left.digest == right.digest:
            continue
        common = _names(left) & _names(right)
        for name in common:
            mine, theirs = entry_in(left, name), entry_in(right, name)
            if isinstance(mine, InputDirectory) and isinstance(theirs, InputDirectory):
                waiting.append((mine, theirs))
            elif mine != theirs:
                return False
    return True


def _names(directory: InputDirectory) -> set[str]:
    return {*directory.files, *directory.directories, *directory.symlinks}


def _beside(held: Mapping[str, EntryT], other: InputDirectory) -> dict[str, EntryT]:
    return {name: entry for name, entry in held.items() if entry_in(other, name) is None}


def _is_made_of(
    directory: InputDirectory,
    files: Mapping[str, FileEntry],
    directories: Mapping[str, InputDirectory],
    symlinks: Mapping[str, str],
) -> bool:
    return (
        files == directory.files
        and symlinks == directory.symlinks
        and directories.keys() == directory.directories.keys()
        and all(
            below.digest == directory.directories[name].digest
            for name, below in directories.items()
        )
    )


def _directory(
    files: Mapping[str, FileEntry],
    directories: Mapping[str, InputDirectory],
    symlinks: Mapping[str, str],
) -> InputDirectory:
    listing = repr(
        (
            sorted((name, tuple(file)) for name, file in files.items()),
            sorted((name, str(below.digest)) for name, below in directories.items()),
            sorted(symlinks.items()),
        )
    )
    # The first byte keeps it apart from what a Directory message begins with.
    return InputDirectory(SHA256.digest(b"\0" + listing.encode()), files, directories, symlinks)


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"the input root is more than {MAX_DEPTH} directories deep")
