"""Reading REAPI trees: Directory messages that name further Directory messages by digest.

Source: build.bazel.remote.execution.v2, messages Directory, FileNode, NodeProperties. Nothing
here recurses, so that depth is bounded by memory only (GTR-11).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeVar, TypeVarTuple

import trio
from google.protobuf.message import DecodeError

from stoker.digest import Digest
from stoker.errors import BlobNotFound, InputsMissing, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobStore

MAX_INPUT_ENTRIES = 1_000_000
"""How many files, directories and links an input tree may hold unless told otherwise."""

# A Directory of a million files takes about 120 MB; a digest that claims more is no directory.
_MAX_DIRECTORY_BYTES = 256 * 1024 * 1024
# Directories of one level are read in batches, so that a wide level does not fill the memory.
_BATCH_BYTES = 2 * 1024 * 1024
_BATCH_DIRECTORIES = 1_000
# Listing or expanding an entry takes 3 µs or so; beyond this number others should not wait for it.
_INLINE_ENTRIES = 2_000
# Parsing so much takes a millisecond or so.
_INLINE_BYTES = 256 * 1024
# Names are short but a path repeats those of all its parents: a deep chain grows quadratically.
_MAX_PATH_CHARACTERS = 256 * 1024 * 1024

Answer = TypeVar("Answer")
Arguments = TypeVarTuple("Arguments")

_TOOL_PROPERTY = "bazel_tool_input"
_NO_NAMES = frozenset({"", ".", ".."})


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


@dataclass(frozen=True, slots=True)
class InputTree:
    """An input tree with every path spelt out, relative to the root and in sorted order."""

    files: Mapping[str, InputFile]
    directories: Collection[str]
    """All but the root itself, empty ones included; parents come before their children."""
    symlinks: Mapping[str, str]
    """Paths of links, and their targets as the client wrote them."""


async def read_input_tree(
    blobs: BlobStore, root: Digest, *, max_entries: int = MAX_INPUT_ENTRIES
) -> InputTree:
    """Read the input tree that begins at Directory `root`, and see that its files are there.

    Raises InputsMissing with every blob that is missing, directories and files together;
    InvalidRequest, naming directory and entry, for names that are no single path segment or
    occur twice (EXE-26), for what does not parse, and for more than `max_entries` entries.
    The empty Directory needs no upload. Calls may overlap; cancellation leaves nothing behind.
    """
    listings: dict[Digest, _Listing] = {}
    missing: list[Digest] = []
    entries = 0
    walk = _Walk(blobs, root)
    while (batch := await walk.read_next()) is not None:
        missing += batch.absent
        entries += batch.entries
        if entries > max_entries:
            raise _too_many(root, max_entries)
        listings.update(await _run(_list_all, batch.found, inline=batch.entries < _INLINE_ENTRIES))
    missing += await _missing_files(blobs, listings)
    if missing:
        raise InputsMissing(missing)
    inline = entries < _INLINE_ENTRIES
    total = await _run(_measure, root, listings, max_entries, inline=inline)
    return await _run(_expand, root, listings, inline=total.entries < _INLINE_ENTRIES)


def walk_directories(
    blobs: BlobStore, root: Digest
) -> AsyncIterator[list[tuple[Digest, reapi.Directory]]]:
    """Every Directory below and including `root`, breadth first, each distinct one once.

    Each item is a part of one level. Sub-directories that are absent are skipped (GTR-03).
    Raises BlobNotFound when `root` is absent and InvalidRequest for a blob that is no Directory
    (GTR-10). Names are not checked. The iterator may be abandoned at any point.
    """
    return _FoundDirectories(blobs, root)


def parse_directory(digest: Digest, data: bytes) -> reapi.Directory:
    """The Directory message in `data`. Raises InvalidRequest."""
    try:
        return reapi.Directory.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"blob {digest} is not a Directory message") from error


def check_directory(digest: Digest, directory: reapi.Directory) -> None:
    """Raise InvalidRequest unless every name is one path segment and occurs once (EXE-26).

    Order is not looked at. Links must have a target.
    """
    names = [
        node.name
        for nodes in (directory.files, directory.directories, directory.symlinks)
        for node in nodes
    ]
    distinct = set(names)
    joined = "".join(names)
    if len(distinct) < len(names) or distinct & _NO_NAMES or "/" in joined or "\0" in joined:
        raise InvalidRequest(f"directory {digest}: {_culprit(names)}")
    for link in directory.symlinks:
        if not link.target or "\0" in link.target:
            raise InvalidRequest(
                f"directory {digest}: symlink {link.name!r} has the target {link.target!r}"
            )


def subdirectories(digest: Digest, directory: reapi.Directory) -> list[Digest]:
    """The digests of the directories in `directory`, which is blob `digest`.

    Raises InvalidRequest for a malformed one.
    """
    return [_parse_in(digest, node) for node in directory.directories]


def file_digests(digest: Digest, directory: reapi.Directory) -> list[Digest]:
    """As `subdirectories`, of the files in `directory`."""
    return [_parse_in(digest, node) for node in directory.files]


class _Batch(NamedTuple):
    found: list[tuple[Digest, reapi.Directory]]
    absent: list[Digest]

    @property
    def entries(self) -> int:
        return sum(_entry_count(directory) for _, directory in self.found)


class _Walk:
    """Reads directories level by level. No async generator, so that callers may just stop."""

    def __init__(self, blobs: BlobStore, root: Digest) -> None:
        self._blobs = blobs
        self._seen = {root}
        self._below: dict[Digest, None] = {}
        self._level = _batches([root])

    async def read_next(self) -> _Batch | None:
        """The next part of a level, or None after the last."""
        if (digests := next(self._level, None)) is None:
            await _run(self._descend, inline=len(self._below) < _INLINE_ENTRIES)
            if (digests := next(self._level, None)) is None:
                return None
        batch = await _read_directories(self._blobs, digests)
        await _run(self._note_below, batch.found, inline=batch.entries < _INLINE_ENTRIES)
        return batch

    def _note_below(self, found: list[tuple[Digest, reapi.Directory]]) -> None:
        for digest, directory in found:
            self._below.update(dict.fromkeys(subdirectories(digest, directory)))

    def _descend(self) -> None:
        level = [digest for digest in self._below if digest not in self._seen]
        self._seen.update(level)
        self._below = {}
        self._level = _batches(level)


class _FoundDirectories(AsyncIterator[list[tuple[Digest, reapi.Directory]]]):
    def __init__(self, blobs: BlobStore, root: Digest) -> None:
        self._walk = _Walk(blobs, root)
        self._root = root

    async def __anext__(self) -> list[tuple[Digest, reapi.Directory]]:
        while (batch := await self._walk.read_next()) is not None:
            if self._root in batch.absent:
                raise BlobNotFound(self._root)
            if batch.found:
                return batch.found
        raise StopAsyncIteration


def _batches(digests: Iterable[Digest]) -> Iterator[list[Digest]]:
    batch: list[Digest] = []
    size_bytes = 0
    for digest in digests:
        if digest.size_bytes > _MAX_DIRECTORY_BYTES:
            raise InvalidRequest(f"directory {digest} is larger than {_MAX_DIRECTORY_BYTES} bytes")
        if batch and (
            size_bytes + digest.size_bytes > _BATCH_BYTES or len(batch) == _BATCH_DIRECTORIES
        ):
            yield batch
            batch, size_bytes = [], 0
        batch.append(digest)
        size_bytes += digest.size_bytes
    if batch:
        yield batch


async def _read_directories(blobs: BlobStore, digests: list[Digest]) -> _Batch:
    stored = [digest for digest in digests if digest != digest.function.empty]
    data = await blobs.read_many(stored) if stored else {}
    inline = sum(map(len, data.values())) < _INLINE_BYTES
    return await _run(_parse_batch, digests, data, inline=inline)


def _parse_batch(digests: list[Digest], data: Mapping[Digest, bytes]) -> _Batch:
    batch = _Batch([], [])
    for digest in digests:
        if digest == digest.function.empty:
            batch.found.append((digest, reapi.Directory()))
        elif digest in data:
            batch.found.append((digest, parse_directory(digest, data[digest])))
        else:
            batch.absent.append(digest)
    return batch


class _Listing(NamedTuple):
    """A directory that was found sound, with its digests parsed."""

    files: list[tuple[str, Digest, bool, bool, int | None, int | None]]
    """As InputFile, with names in place of paths."""
    directories: list[tuple[str, Digest]]
    symlinks: list[tuple[str, str]]


class _Size(NamedTuple):
    """How large a tree is once every path is spelt out."""

    entries: int
    characters: int


def _list_all(found: list[tuple[Digest, reapi.Directory]]) -> dict[Digest, _Listing]:
    return {digest: _list(digest, directory) for digest, directory in found}


def _list(digest: Digest, directory: reapi.Directory) -> _Listing:
    check_directory(digest, directory)
    return _Listing(
        [
            (
                node.name,
                _parse_in(digest, node),
                node.is_executable,
                *_read_properties(digest, node),
            )
            for node in directory.files
        ],
        [(node.name, _parse_in(digest, node)) for node in directory.directories],
        [(link.name, link.target) for link in directory.symlinks],
    )


async def _missing_files(blobs: BlobStore, listings: Mapping[Digest, _Listing]) -> list[Digest]:
    """The files that are absent, in the order of the tree."""
    files = dict.fromkeys(
        digest
        for listing in listings.values()
        for _, digest, *_ in listing.files
        if digest != digest.function.empty
    )
    missing = await blobs.find_missing(files.keys()) if files else set()
    return [digest for digest in files if digest in missing] if missing else []


def _measure(root: Digest, listings: Mapping[Digest, _Listing], max_entries: int) -> _Size:
    """The size of the tree below `root`, without spelling it out.

    Raises InvalidRequest at the first directory that is too large: going on, the sizes of a chain
    of directories that each name the next one twice would have as many digits as it has links.
    """
    sizes: dict[Digest, _Size] = {}
    waiting = [root]
    while waiting:
        digest = waiting[-1]
        if digest in sizes:  # which several directories had named
            waiting.pop()
            continue
        listing = listings[digest]
        unknown = {below for _, below in listing.directories if below not in sizes}
        if unknown:
            waiting += unknown
        else:
            sizes[digest] = _add_up(listing, sizes)
            _check_size(root, sizes[digest], max_entries)
    return sizes[root]


def _check_size(root: Digest, size: _Size, max_entries: int) -> None:
    if size.entries > max_entries:
        raise _too_many(root, max_entries)
    if size.characters > _MAX_PATH_CHARACTERS:
        raise InvalidRequest(f"the paths of input root {root} are too long to be written out")


def _add_up(listing: _Listing, sizes: Mapping[Digest, _Size]) -> _Size:
    names = [entry[0] for entries in listing for entry in entries]
    entries, characters = len(names), sum(map(len, names))
    for name, digest in listing.directories:
        below = sizes[digest]
        entries += below.entries
        characters += below.characters + below.entries * (len(name) + 1)
    return _Size(entries, characters)


def _expand(root: Digest, listings: Mapping[Digest, _Listing]) -> InputTree:
    """Spell out every path. A directory that occurs at two places is expanded at both."""
    files: dict[str, InputFile] = {}
    directories: list[str] = []
    symlinks: dict[str, str] = {}
    waiting = [("", root)]
    while waiting:
        prefix, digest = waiting.pop()
        listing = listings[digest]
        for name, file, is_executable, is_tool, mtime_ns, unix_mode in listing.files:
            path = prefix + name
            files[path] = InputFile(path, file, is_executable, is_tool, mtime_ns, unix_mode)
        for name, target in listing.symlinks:
            symlinks[prefix + name] = target
        for name, below in listing.directories:
            directories.append(prefix + name)
            waiting.append((f"{prefix}{name}/", below))
    return InputTree(
        files=MappingProxyType(dict(sorted(files.items()))),
        directories=tuple(sorted(directories)),
        symlinks=MappingProxyType(dict(sorted(symlinks.items()))),
    )


def _read_properties(
    directory: Digest, node: reapi.FileNode
) -> tuple[bool, int | None, int | None]:
    if not node.HasField("node_properties"):
        return False, None, None
    message = node.node_properties
    return (
        any(entry.name == _TOOL_PROPERTY for entry in message.properties),
        _mtime_ns(directory, node) if message.HasField("mtime") else None,
        message.unix_mode.value if message.HasField("unix_mode") else None,
    )


def _mtime_ns(directory: Digest, node: reapi.FileNode) -> int:
    """RUN-04. Raises InvalidRequest for a Timestamp outside of the years 1 to 9999."""
    try:
        return node.node_properties.mtime.ToNanoseconds()
    except ValueError as error:
        raise InvalidRequest(
            f"directory {directory}: entry {node.name!r}: mtime is no valid time: {error}"
        ) from error


def _parse_in(directory: Digest, node: reapi.FileNode | reapi.DirectoryNode) -> Digest:
    try:
        return directory.function.parse(node.digest)
    except InvalidRequest as error:
        raise InvalidRequest(f"directory {directory}: entry {node.name!r}: {error}") from error


async def _run(
    work: Callable[[*Arguments], Answer], *arguments: *Arguments, inline: bool
) -> Answer:
    return work(*arguments) if inline else await trio.to_thread.run_sync(work, *arguments)


def _culprit(names: list[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in _NO_NAMES or "/" in name or "\0" in name:
            return f"entry {name!r} is not a single path segment"
        if name in seen:
            return f"entry {name!r} occurs twice"
        seen.add(name)
    raise AssertionError("unreachable")


def _entry_count(directory: reapi.Directory) -> int:
    return len(directory.files) + len(directory.directories) + len(directory.symlinks)


def _too_many(root: Digest, max_entries: int) -> InvalidRequest:
    return InvalidRequest(f"input root {root} has more than {max_entries} entries")
