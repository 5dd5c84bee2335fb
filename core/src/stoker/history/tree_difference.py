"""What two input trees differ in: only directories whose digests differ are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import trio

from stoker.digest import Digest
from stoker.history.difference import Difference, encoding_difference
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobStore
from stoker.storage.tree import directory_batches, parse_in, read_directories

MAX_DIRECTORIES = 2_000
"""How many directories of both trees together are read at most."""

_PAIRS_AT_A_TIME = 250


@dataclass(slots=True)
class TreeDifferences:
    """What was found."""

    differences: list[Difference] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """Directories that could not be compared, as their Directory messages are gone."""
    cut_off: bool = False
    """Whether there may be more than what was found, as a bound was reached."""


class _Pair(NamedTuple):
    path: str
    before: Digest
    after: Digest


async def tree_differences(
    blobs: BlobStore, before: Digest, after: Digest, *, max_differences: int
) -> TreeDifferences:
    """What tree `after` differs in from `before`, upper directories first, each in order of name.

    Of a directory that is in one tree only, the directory itself is told. Raises Unavailable, and
    InvalidRequest for what is no tree.
    """
    found = TreeDifferences()
    waiting = [_Pair("", before, after)] if before != after else []
    budget = MAX_DIRECTORIES
    while waiting and not found.cut_off:
        pairs, waiting = waiting[:_PAIRS_AT_A_TIME], waiting[_PAIRS_AT_A_TIME:]
        budget -= 2 * len(pairs)
        directories = await _read(blobs, {d for pair in pairs for d in (pair.before, pair.after)})
        for pair in pairs:
            # Directories may be large: others have their turn after each.
            await trio.lowlevel.checkpoint()
            waiting += _compare_pair(pair, directories, found)
            if len(found.differences) > max_differences:
                break
        found.cut_off = len(found.differences) > max_differences or (budget <= 0 and bool(waiting))
    del found.differences[max_differences:]
    return found


async def _read(blobs: BlobStore, digests: set[Digest]) -> dict[Digest, reapi.Directory]:
    found: dict[Digest, reapi.Directory] = {}
    for batch in directory_batches(sorted(digests, key=str)):
        found |= dict((await read_directories(blobs.read_many, batch)).found)
    return found


def _compare_pair(
    pair: _Pair, directories: Mapping[Digest, reapi.Directory], found: TreeDifferences
) -> list[_Pair]:
    """Add what differs in the two directories themselves. Returns what is to be compared below."""
    before, after = directories.get(pair.before), directories.get(pair.after)
    if before is None or after is None:
        found.gone.append(pair.path or ".")
        return []
    prefix = f"{pair.path}/" if pair.path else ""
    below: list[_Pair] = []
    old, new = _nodes(pair.before, before), _nodes(pair.after, after)
    start = len(found.differences)
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        if isinstance(was, _Directory) and isinstance(now, _Directory):
            below.append(_Pair(prefix + name, was.digest, now.digest))
        else:
            found.differences.append(_difference(prefix + name, was, now))
    found.differences.extend(_own_differences(pair.path, before, after))
    if not below and len(found.differences) == start:
        found.differences.append(encoding_difference(f"directory {pair.path or '.'}"))
    return below


class _Directory(NamedTuple):
    digest: Digest

    def __str__(self) -> str:
        return "directory"


class _Link(NamedTuple):
    target: str
    properties: bytes

    def __str__(self) -> str:
        return f"link to {self.target}"


class _File(NamedTuple):
    digest: Digest
    is_executable: bool
    properties: bytes

    def __str__(self) -> str:
        return f"{self.digest}{' executable' if self.is_executable else ''}"


_Node = _Directory | _Link | _File


def _nodes(digest: Digest, directory: reapi.Directory) -> dict[str, _Node]:
    nodes: dict[str, _Node] = {
        node.name: _Directory(parse_in(digest, node)) for node in directory.directories
    }
    for link in directory.symlinks:
        nodes[link.name] = _Link(link.target, _properties(link))
    for file in directory.files:
        nodes[file.name] = _File(parse_in(digest, file), file.is_executable, _properties(file))
    return nodes


def _properties(node: reapi.FileNode | reapi.SymlinkNode | reapi.Directory) -> bytes:
    return node.node_properties.SerializeToString(deterministic=True)


def _difference(path: str, before: _Node | None, after: _Node | None) -> Difference:
    if before is None:
        return Difference("input", "added", path, "", str(after))
    if after is None:
        return Difference("input", "removed", path, str(before), "")
    change = "changed"
    if isinstance(before, _File) and isinstance(after, _File) and before.digest == after.digest:
        same_bit = before.is_executable == after.is_executable
        change = "properties changed" if same_bit else "mode changed"
    elif isinstance(before, _Link) and isinstance(after, _Link) and before.target == after.target:
        change = "properties changed"
    if change == "properties changed":
        was = reapi.NodeProperties.FromString(_bytes_of(before))
        now = reapi.NodeProperties.FromString(_bytes_of(after))
        return Difference("input", _property_change(was, now), path, _told(was), _told(now))
    return Difference("input", change, path, str(before), str(after))


def _bytes_of(node: _Node) -> bytes:
    return b"" if isinstance(node, _Directory) else node.properties


def _own_differences(
    path: str, before: reapi.Directory, after: reapi.Directory
) -> Iterator[Difference]:
    was, now = before.node_properties, after.node_properties
    if was != now:
        yield Difference("input", _property_change(was, now), path or ".", _told(was), _told(now))


def _property_change(before: reapi.NodeProperties, after: reapi.NodeProperties) -> str:
    return "mode changed" if before.unix_mode != after.unix_mode else "properties changed"


def _told(properties: reapi.NodeProperties) -> str:
    parts = [f"{entry.name}={entry.value}" for entry in islice(properties.properties, 20)]
    if properties.HasField("unix_mode"):
        parts.append(f"mode {properties.unix_mode.value:o}")
    if properties.HasField("mtime"):
        parts.append(f"mtime {properties.mtime.seconds}.{properties.mtime.nanos:09}")
    return ", ".join(parts)
