"""Where the symbolic links of an input tree lead, worked out once for each directory."""

from __future__ import annotations

from typing import NamedTuple

from stoker.storage.input_tree import FileEntry, InputDirectory
from stoker.workers.paths import Astray, walk

_NAME = "links"

MAX_DEPTH = 256
"""How many directories deep a tree may be for what is said here, and in this room, of it: what
is worked out for each directory refers to what is below. Deeper ones cannot be laid out."""


class Link(NamedTuple):
    """A symbolic link that leads to something of its tree. Paths are relative to a directory."""

    path: str
    text: str
    """What it says itself."""
    target: str
    """Where it leads to in the end."""
    entry: FileEntry | InputDirectory


class Links(NamedTuple):
    """The links below a directory, as far as they are its own affair."""

    settled: tuple[Link, ...]
    """Those that lead to something in it, but leave each directory below it on the way."""
    open: tuple[str, ...]
    """Paths of those that leave it. Where they lead, a directory above can tell."""


def links_of(directory: InputDirectory) -> Links:
    """The links that are to be looked at in `directory`: those of directories below that leave
    them, and its own. Dangling ones are left out.

    `directory` must be at most `MAX_DEPTH` deep.
    """
    known: Links | None = directory.derived.get(_NAME)
    if known is None:
        known = directory.derived[_NAME] = _look_up(directory)
    return known


def _look_up(directory: InputDirectory) -> Links:
    paths = list(directory.symlinks)
    for name, below in directory.directories.items():
        if below.symlinks or below.directories:
            paths += [f"{name}/{path}" for path in links_of(below).open]
    if not paths:
        return _NONE
    settled, left_open = [], []
    for path in paths:
        place = walk(directory, path)
        if place is Astray.ABOVE:
            left_open.append(path)
        elif not isinstance(place, Astray) and place.entry is not None:
            # The link itself is the first one on its own way.
            settled.append(Link(path, place.links[0][1], place.path, place.entry))
    return Links(tuple(settled), tuple(left_open))


_NONE = Links((), ())
