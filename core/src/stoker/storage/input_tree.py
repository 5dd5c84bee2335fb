"""Input trees in memory: directories that are parsed once and shared by all trees they are in.

Nothing here recurses, so that depth is bounded by memory only, and nothing reads a store.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from stoker.digest import Digest


class InputFile(NamedTuple):
    """A file of an input tree."""

    path: str
    """Relative to the root."""
    digest: Digest
    is_executable: bool
    is_tool: bool
    """Whether the client marked it as part of a tool (node property ``bazel_tool_input``)."""
    mtime_ns: int | None
    """Nanoseconds since 1970, where the client sets it."""
    unix_mode: int | None


class FileEntry(NamedTuple):
    """A file of an input directory. The fields are those of `InputFile`."""

    digest: Digest
    is_executable: bool = False
    is_tool: bool = False
    mtime_ns: int | None = None
    unix_mode: int | None = None


class InputDirectory:
    """A Directory message, parsed, and what it names. Never changed once it is made.

    Equal digests mean equal content, all the way down.
    """

    __slots__ = (
        "__weakref__",
        "checked_at",
        "depth",
        "derived",
        "digest",
        "directories",
        "entries",
        "file_count",
        "files",
        "path_characters",
        "size_bytes",
        "symlinks",
        "tree",
    )

    entries: int
    """How many files, directories and links there are below it, at any depth."""
    file_count: int
    size_bytes: int
    """What all files below it have together."""
    path_characters: int
    """How long all paths below it are together, once they are spelt out."""
    depth: int
    """How many directories there are on the longest way down from it."""

    def __init__(
        self,
        digest: Digest,
        files: Mapping[str, FileEntry],
        directories: Mapping[str, InputDirectory],
        symlinks: Mapping[str, str],
    ) -> None:
        self.digest = digest
        self.files = files
        self.directories = directories
        self.symlinks = symlinks
        self.tree: SpeltTree | None = None
        """Every path below it, once somebody has asked for that."""
        self.checked_at = 0.0
        """When it was last seen that its files are in the store; kept by whoever looks."""
        self.derived: dict[str, Any] = {}
        """What others have worked out of it, each under a name of theirs. It lives as long as the
        directory, so that it must not grow without bound, nor hold what the directory does not."""
        self._add_up()

    def _add_up(self) -> None:
        self.entries = len(self.files) + len(self.directories) + len(self.symlinks)
        self.file_count = len(self.files)
        self.size_bytes = sum(file.digest.size_bytes for file in self.files.values())
        names = (*self.files, *self.directories, *self.symlinks)
        self.path_characters = sum(map(len, names))
        self.depth = max((below.depth + 1 for below in self.directories.values()), default=0)
        for name, below in self.directories.items():
            self.entries += below.entries
            self.file_count += below.file_count
            self.size_bytes += below.size_bytes
            self.path_characters += below.path_characters + below.entries * (len(name) + 1)


class SpeltTree(NamedTuple):
    """All entries of a tree by path, in sorted order."""

    files: Mapping[str, InputFile]
    directories: Collection[str]
    symlinks: Mapping[str, str]


Entry = InputDirectory | FileEntry | str
"""A directory, a file, or the target of a symbolic link."""


@dataclass(frozen=True, slots=True)
class InputTree:
    """An input tree. Its paths are spelt out when they are first asked for, once for all trees
    of one root."""

    root: InputDirectory

    @property
    def files(self) -> Mapping[str, InputFile]:
        """By path, relative to the root and in sorted order."""
        return self._spelt.files

    @property
    def directories(self) -> Collection[str]:
        """All but the root itself, empty ones included; parents come before their children."""
        return self._spelt.directories

    @property
    def symlinks(self) -> Mapping[str, str]:
        """Paths of links, and their targets as the client wrote them."""
        return self._spelt.symlinks

    @property
    def _spelt(self) -> SpeltTree:
        if self.root.tree is None:
            self.root.tree = _spell_out(self.root)
        return self.root.tree


def entry_in(directory: InputDirectory, name: str) -> Entry | None:
    """What is called `name` in `directory`."""
    return (
        directory.directories.get(name) or directory.files.get(name) or directory.symlinks.get(name)
    )


def distinct_directories(root: InputDirectory) -> Iterable[InputDirectory]:
    """`root` and every directory below it, each once."""
    seen = {root.digest: root}
    waiting = [root]
    while waiting:
        for below in waiting.pop().directories.values():
            if below.digest not in seen:
                seen[below.digest] = below
                waiting.append(below)
    return seen.values()


def _spell_out(root: InputDirectory) -> SpeltTree:
    """A directory that occurs at two places is expanded at both."""
    files: dict[str, InputFile] = {}
    directories: list[str] = []
    symlinks: dict[str, str] = {}
    waiting = [("", root)]
    while waiting:
        prefix, directory = waiting.pop()
        for name, file in directory.files.items():
            path = prefix + name
            files[path] = InputFile(path, *file)
        for name, target in directory.symlinks.items():
            symlinks[prefix + name] = target
        for name, below in directory.directories.items():
            directories.append(prefix + name)
            waiting.append((f"{prefix}{name}/", below))
    return SpeltTree(
        files=MappingProxyType(dict(sorted(files.items()))),
        directories=tuple(sorted(directories)),
        symlinks=MappingProxyType(dict(sorted(symlinks.items()))),
    )
