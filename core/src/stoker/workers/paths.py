"""Finding out what a path of an input tree means, without a disk.

Each step is a look-up in one directory, so that nothing depends on how large the tree is.
"""

from __future__ import annotations

import enum
import posixpath
from typing import NamedTuple

from stoker.storage.input_tree import FileEntry, InputDirectory, InputTree, entry_in

# As many as Linux follows before it gives up.
_MAX_LINKS = 40


class Place(NamedTuple):
    """Where a path leads, all symbolic links followed."""

    path: str
    """Relative to where the walk began; empty for that directory itself."""
    entry: InputDirectory | FileEntry | None
    """None where the tree has nothing, as where outputs will be."""
    links: tuple[tuple[str, str], ...]
    """The links that were followed: where they are, and what they say."""


class Astray(enum.Enum):
    """Why a path leads nowhere."""

    ABOVE = enum.auto()
    """It leaves the directory where the walk began, upwards."""
    ABSOLUTE = enum.auto()
    """A link leads to a place outside of every tree."""
    CIRCLE = enum.auto()
    """There are more links on the way than anybody follows."""


def walk(start: InputDirectory, path: str) -> Place | Astray:
    """Where the relative `path` leads from `start`, which it must not leave.

    Of two walks along one path, from a directory and from one above it, both that do not go
    astray end at the same place.
    """
    unresolved = _segments(path)
    names: list[str] = []
    entries: list[InputDirectory | FileEntry | None] = [start]
    links: list[tuple[str, str]] = []
    while unresolved:
        segment = unresolved.pop()
        if segment == "..":
            if not names:
                return Astray.ABOVE
            names.pop()
            entries.pop()
            continue
        above = entries[-1]
        entry = entry_in(above, segment) if isinstance(above, InputDirectory) else None
        if not isinstance(entry, str):
            names.append(segment)
            entries.append(entry)
            continue
        links.append(("/".join([*names, segment]), entry))
        if entry.startswith("/"):
            return Astray.ABSOLUTE
        if len(links) == _MAX_LINKS:
            return Astray.CIRCLE
        unresolved += _segments(entry)
    return Place("/".join(names), entries[-1], tuple(links))


def find(tree: InputTree, working_directory: str, path: str) -> Place | None:
    """Where `path`, seen from `working_directory`, leads in `tree`; None where that is outside."""
    if path.startswith("/"):
        return None
    place = walk(tree.root, f"{working_directory}/{path}")
    return place if isinstance(place, Place) else None


def find_file(tree: InputTree, working_directory: str, path: str) -> FileEntry | None:
    """The file that `path` means, seen from `working_directory`, if there is one."""
    place = find(tree, working_directory, path)
    return place.entry if place is not None and isinstance(place.entry, FileEntry) else None


def _segments(path: str) -> list[str]:
    """The segments of `path` that lead somewhere, the last one first."""
    return [segment for segment in reversed(path.split("/")) if segment not in ("", ".")]


def seen_from(working_directory: str, path: str) -> str:
    """`path`, which is relative to the root, as a process in `working_directory` names it."""
    return posixpath.relpath(path, working_directory) if working_directory else path
