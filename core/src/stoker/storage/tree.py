"""Reading REAPI trees: Directory messages that name further Directory messages by digest.

Source: build.bazel.remote.execution.v2, messages Directory, FileNode, NodeProperties. Nothing
here recurses, so that depth is bounded by memory only (GTR-11).
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Set,
)
from typing import NamedTuple

from google.protobuf.message import DecodeError

from stoker.digest import Digest
from stoker.errors import BlobNotFound, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobStore
from stoker.storage.threads import run

# A Directory of a million files takes about 120 MB; a digest that claims more is no directory.
_MAX_DIRECTORY_BYTES = 256 * 1024 * 1024
# Directories of one level are read in batches, so that a wide level does not fill the memory.
_BATCH_BYTES = 2 * 1024 * 1024
_BATCH_DIRECTORIES = 1_000
# Handling an entry takes 3 µs or so; beyond this number others should not wait for it.
_INLINE_ENTRIES = 2_000
# Parsing so much takes a millisecond or so.
_INLINE_BYTES = 256 * 1024

_TOOL_PROPERTY = "bazel_tool_input"
_NO_NAMES = frozenset({"", ".", ".."})


def walk_directories(
    blobs: BlobStore, roots: Iterable[Digest]
) -> AsyncIterator[list[tuple[Digest, reapi.Directory]]]:
    """Every Directory below and including `roots`, breadth first, each distinct one once.

    Each item is a part of one level. Sub-directories that are absent are skipped (GTR-03).
    Raises BlobNotFound when a root is absent and InvalidRequest for a blob that is no Directory
    (GTR-10). Names are not checked. The iterator may be abandoned at any point.
    """
    return _FoundDirectories(blobs, frozenset(roots))


def parse_directory(digest: Digest, data: bytes) -> reapi.Directory:
    """The Directory message in `data`. Raises InvalidRequest."""
    try:
        return reapi.Directory.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"blob {digest} is not a Directory message") from error


def check_directory(digest: Digest, directory: reapi.Directory, names: Set[str]) -> None:
    """Raise InvalidRequest unless every name is one path segment and occurs once (EXE-26).

    `names` are those in `directory`: whoever parses it has them at hand. Order is not looked at.
    Links must have a target.
    """
    if not are_sound(names, entry_count(directory)):
        raise InvalidRequest(f"directory {digest}: {_culprit(directory)}")
    check_links(digest, directory)


def are_sound(names: Set[str], count: int) -> bool:
    """Whether each of `count` names is one path segment, and occurs once among `names`."""
    joined = "".join(names)
    return (
        len(names) == count
        and names.isdisjoint(_NO_NAMES)
        and "/" not in joined
        and "\0" not in joined
    )


def check_links(digest: Digest, directory: reapi.Directory) -> None:
    """Raise InvalidRequest for a link without a target."""
    for link in directory.symlinks:
        if not link.target or "\0" in link.target:
            raise InvalidRequest(
                f"directory {digest}: symlink {link.name!r} has the target {link.target!r}"
            )


def subdirectories(digest: Digest, directory: reapi.Directory) -> list[Digest]:
    """The digests of the directories in `directory`, which is blob `digest`.

    Raises InvalidRequest for a malformed one.
    """
    return [parse_in(digest, node) for node in directory.directories]


def file_digests(digest: Digest, directory: reapi.Directory) -> list[Digest]:
    """As `subdirectories`, of the files in `directory`."""
    return [parse_in(digest, node) for node in directory.files]


class Batch(NamedTuple):
    """Directories that were read, and those that are not in the store."""

    found: list[tuple[Digest, reapi.Directory]]
    absent: list[Digest]


class _Walk:
    """Reads directories level by level. No async generator, so that callers may just stop."""

    def __init__(self, blobs: BlobStore, roots: Set[Digest]) -> None:
        self._blobs = blobs
        self._seen = set(roots)
        self._below: dict[Digest, None] = {}
        self._level = directory_batches(roots)

    async def read_next(self) -> Batch | None:
        """The next part of a level, or None after the last."""
        if (digests := next(self._level, None)) is None:
            await run(self._descend, inline=len(self._below) < _INLINE_ENTRIES)
            if (digests := next(self._level, None)) is None:
                return None
        batch = await read_directories(self._blobs.read_many, digests)
        entries = sum(entry_count(directory) for _, directory in batch.found)
        await run(self._note_below, batch.found, inline=entries < _INLINE_ENTRIES)
        return batch

    def _note_below(self, found: list[tuple[Digest, reapi.Directory]]) -> None:
        for digest, directory in found:
            self._below.update(dict.fromkeys(subdirectories(digest, directory)))

    def _descend(self) -> None:
        level = [digest for digest in self._below if digest not in self._seen]
        self._seen.update(level)
        self._below = {}
        self._level = directory_batches(level)


class _FoundDirectories(AsyncIterator[list[tuple[Digest, reapi.Directory]]]):
    def __init__(self, blobs: BlobStore, roots: Set[Digest]) -> None:
        self._walk = _Walk(blobs, roots)
        self._roots = roots

    async def __anext__(self) -> list[tuple[Digest, reapi.Directory]]:
        while (batch := await self._walk.read_next()) is not None:
            for digest in batch.absent:
                if digest in self._roots:
                    raise BlobNotFound(digest)
            if batch.found:
                return batch.found
        raise StopAsyncIteration


def directory_batches(digests: Iterable[Digest]) -> Iterator[list[Digest]]:
    """`digests` in lists that may be read at once. Raises InvalidRequest for absurd sizes."""
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


Read = Callable[[Collection[Digest]], Awaitable[Mapping[Digest, bytes]]]
"""Reads blobs, and leaves out those that are absent."""


class RawBatch(NamedTuple):
    """Directories that were read, as bytes, and those that are not in the store."""

    found: dict[Digest, bytes]
    absent: list[Digest]

    @property
    def size_bytes(self) -> int:
        """Of all directories that were found."""
        return sum(map(len, self.found.values()))


async def read_raw(read: Read, digests: list[Digest]) -> RawBatch:
    """Read directories; the empty one is always there."""
    stored = [digest for digest in digests if digest != digest.function.empty]
    data = dict(await read(stored)) if stored else {}
    data.update((digest, b"") for digest in digests if digest == digest.function.empty)
    return RawBatch(
        {digest: data[digest] for digest in digests if digest in data},
        [digest for digest in digests if digest not in data],
    )


async def read_directories(read: Read, digests: list[Digest]) -> Batch:
    """Read and parse directories; the empty one is always there. Raises InvalidRequest."""
    return await parse_batch(await read_raw(read, digests))


async def parse_batch(raw: RawBatch) -> Batch:
    """The messages that were read. Raises InvalidRequest."""
    inline = raw.size_bytes < _INLINE_BYTES
    return Batch(await run(_parse_all, raw.found, inline=inline), raw.absent)


def _parse_all(found: Mapping[Digest, bytes]) -> list[tuple[Digest, reapi.Directory]]:
    return [(digest, parse_directory(digest, data)) for digest, data in found.items()]


def read_properties(directory: Digest, node: reapi.FileNode) -> tuple[bool, int | None, int | None]:
    """Whether a file is a tool's, its mtime in nanoseconds and its mode, where they are set."""
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


def parse_in(directory: Digest, node: reapi.FileNode | reapi.DirectoryNode) -> Digest:
    """The digest of `node`, which is in `directory`. Raises InvalidRequest, naming both."""
    try:
        return directory.function.parse(node.digest)
    except InvalidRequest as error:
        raise InvalidRequest(f"directory {directory}: entry {node.name!r}: {error}") from error


def _culprit(directory: reapi.Directory) -> str:
    names = [
        node.name
        for nodes in (directory.files, directory.directories, directory.symlinks)
        for node in nodes
    ]
    seen: set[str] = set()
    for name in names:
        if name in _NO_NAMES or "/" in name or "\0" in name:
            return f"entry {name!r} is not a single path segment"
        if name in seen:
            return f"entry {name!r} occurs twice"
        seen.add(name)
    raise AssertionError("unreachable")


def entry_count(directory: reapi.Directory) -> int:
    """How many files, directories and links `directory` names."""
    return len(directory.files) + len(directory.directories) + len(directory.symlinks)
