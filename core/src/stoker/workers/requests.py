"""The request that gives an action to a worker.

Its list of inputs is by far the largest part, and little of it changes from one request to the
next. So each directory of an input tree keeps its part as bytes: protobuf messages that follow each
other mean what one message with all their repeated fields means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import trio

from stoker.action import LoadedAction
from stoker.digest import Digest
from stoker.errors import InputsMissing, InvalidRequest
from stoker.protos.worker_protocol_pb2 import WorkRequest
from stoker.spi import BlobStore
from stoker.storage.input_tree import FileEntry, InputDirectory, InputTree
from stoker.storage.recent import read_soon
from stoker.workers.arguments import MAX_FLAG_FILE_BYTES, expand_arguments
from stoker.workers.links import links_of
from stoker.workers.paths import find_file, seen_from
from stoker.workers.plan import WorkerPlan

_NAME = "worker inputs"

# A directory that occurs at more places than this, or is seen from more working directories, is
# spelt out anew for some.
_KEPT_VIEWS = 8

# So many take some milliseconds.
_AT_ONCE = 2_000


class SpeltRequest(NamedTuple):
    """A request, most of which is serialized already."""

    head: WorkRequest
    """All but its inputs."""
    inputs: tuple[bytes, ...]
    """Serialized requests that have nothing but inputs."""

    def whole(self) -> WorkRequest:
        """The request as one message."""
        return WorkRequest.FromString(b"".join((self.head.SerializeToString(), *self.inputs)))


async def build_request(
    plan: WorkerPlan, action: LoadedAction, tree: InputTree, blobs: BlobStore, request_id: int = 0
) -> SpeltRequest:
    """The request that gives `action` to a worker, with every file of `tree` as an input (PWK-07).

    Paths are as the worker sees them from its working directory; a link to a file is listed with
    the digest of that file. The order of inputs depends on `tree` and working directory alone.
    Raises InvalidRequest for flag files that cannot be expanded, InputsMissing for one that is not
    in `blobs`, and what `blobs` raises.
    """
    working_directory = action.command.working_directory

    async def read(path: str) -> bytes:
        return await _read_flag_file(tree, working_directory, path, blobs)

    arguments = await expand_arguments(plan.flag_files, read)
    await _prepare(tree, working_directory)
    head = WorkRequest(arguments=arguments, request_id=request_id, verbosity=plan.verbosity)
    return SpeltRequest(head, list_inputs(tree, working_directory))


def list_inputs(tree: InputTree, working_directory: str) -> tuple[bytes, ...]:
    """The inputs, as serialized requests that have nothing else.

    What shares its directories with an earlier tree costs as much as the directories it does not
    share have entries. `tree` must be one that can be laid out, as it is for every `WorkerPlan`.
    """
    return _parts(tree.root, _View("", working_directory))


async def _prepare(tree: InputTree, working_directory: str) -> None:
    """Work out what is to be kept of a large tree, without holding up others for long."""
    if tree.root.entries < _AT_ONCE:
        return
    entries = 0
    for directory, view in _new_ones(tree.root, _View("", working_directory)):
        _parts(directory, view)
        entries += len(directory.files)
        if entries >= _AT_ONCE:
            await trio.lowlevel.checkpoint()
            entries = 0


class _View(NamedTuple):
    """How a worker sees a directory."""

    prefix: str
    """What comes before the names in it, unless `ahead` tells."""
    ahead: str | None
    """Where the worker is, relative to the directory; None if it is not in there."""

    def path(self, path: str) -> str:
        """What is at `path` in the directory."""
        return self.prefix + path if self.ahead is None else seen_from(self.ahead, path)

    def paths(self, names: Iterable[str]) -> Iterable[str]:
        """What all `names` in the directory are."""
        up = "" if not self.ahead else "../" * len(self.ahead.split("/"))
        return map((self.prefix + up).__add__, names)

    def below(self, name: str) -> _View:
        """The directory `name` in it."""
        if self.ahead:
            first, _, rest = self.ahead.partition("/")
            if name == first:
                return _View("", rest)
        return _View(self.path(name) + "/", None)


def _parts(directory: InputDirectory, view: _View) -> tuple[bytes, ...]:
    """The list of `directory` and all below it, in the parts that directories keep."""
    kept: dict[_View, tuple[bytes, ...]] = directory.derived.setdefault(_NAME, {})
    parts = kept.get(view)
    if parts is None:
        parts = _spell_out(directory, view)
        if len(kept) >= _KEPT_VIEWS:
            del kept[next(iter(kept))]
        kept[view] = parts
    return parts


def _new_ones(directory: InputDirectory, view: _View) -> Iterator[tuple[InputDirectory, _View]]:
    """Directories of which nothing is kept, those below before the one they are in."""
    if view in directory.derived.get(_NAME, ()):
        return
    for name, below in directory.directories.items():
        yield from _new_ones(below, view.below(name))
    yield directory, view


def _spell_out(directory: InputDirectory, view: _View) -> tuple[bytes, ...]:
    parts = []
    if own := _own_part(directory, view):
        parts.append(own)
    for name, below in directory.directories.items():
        parts += _parts(below, view.below(name))
    return tuple(parts)


def _own_part(directory: InputDirectory, view: _View) -> bytes:
    """Bazel sends the hexadecimal text of the hash, and tools compare no more than that."""
    request = WorkRequest()
    inputs = request.inputs
    for path, file in zip(view.paths(directory.files), directory.files.values(), strict=True):
        inputs.add(path=path, digest=file.digest.hash.encode())
    for link in links_of(directory).settled:
        if isinstance(link.entry, FileEntry):
            inputs.add(path=view.path(link.path), digest=link.entry.digest.hash.encode())
    return request.SerializeToString()


async def _read_flag_file(
    tree: InputTree, working_directory: str, path: str, blobs: BlobStore
) -> bytes:
    file = find_file(tree, working_directory, path)
    if file is None:
        raise InvalidRequest(f"flag file {path!r} is not among the inputs")
    if file.digest.size_bytes > MAX_FLAG_FILE_BYTES:
        raise InvalidRequest(f"flag file {path!r} is larger than {MAX_FLAG_FILE_BYTES} bytes")
    return await _read_blob(file.digest, blobs)


async def _read_blob(digest: Digest, blobs: BlobStore) -> bytes:
    if digest == digest.function.empty:
        return b""
    found = await read_soon(blobs, [digest])
    if digest not in found:
        raise InputsMissing([digest])
    return found[digest]
