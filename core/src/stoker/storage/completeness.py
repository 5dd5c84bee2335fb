"""An action cache that serves a result only while all that it names can be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import structlog
import trio
from google.protobuf.message import DecodeError

from stoker.action import CacheAnswer, CacheVerdict
from stoker.digest import Digest
from stoker.errors import BlobNotFound, DataLoss, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import ActionCache, ActionKey, ActionResult, BlobStore
from stoker.storage.tree import file_digests, subdirectories, walk_directories

_log = structlog.get_logger(__name__)

# Parsing a tree of this size takes a millisecond or so, which others need not wait for.
_THREAD_THRESHOLD_BYTES = 256 * 1024

MAX_TREE_BYTES = 64 * 1024 * 1024
"""How large the trees of one result may be together, unless told otherwise."""

_NAMED_GAPS = 5


class Lookup(NamedTuple):
    """A result that may be served, or why there is none."""

    result: ActionResult | None
    answer: CacheAnswer


class CompleteActionCache(ActionCache):
    """`inner`, where a result with anything missing from `blobs` counts as absent (ACG-02).

    What a result names: its output files, its trees and every file inside, the whole closure of
    its root directories, stdout and stderr. Trees are read first; then one `find_missing` asks
    for everything, which also prolongs the life of it all (ACG-03). The empty blob is always
    there (ACG-05). Calls may overlap freely.

    A result whose exit code is not zero is neither filed nor served, unless `cache_failures`
    (ACG-12). A result is also absent, with a line in the log, where a digest in it is malformed, a
    tree does not parse, or the trees take more than `max_tree_bytes` together (ACG-13, ACG-15).
    """

    def __init__(
        self,
        inner: ActionCache,
        blobs: BlobStore,
        *,
        max_tree_bytes: int = MAX_TREE_BYTES,
        cache_failures: bool = False,
    ) -> None:
        self._inner = inner
        self._blobs = blobs
        self._max_tree_bytes = max_tree_bytes
        self._cache_failures = cache_failures

    @property
    def cache_failures(self) -> bool:
        """Whether results of failures are filed and served."""
        return self._cache_failures

    async def get(self, key: ActionKey) -> ActionResult | None:
        """The result filed under `key` if it is whole, or None. Raises Unavailable."""
        return (await self.look_up(key)).result

    async def look_up(self, key: ActionKey) -> Lookup:
        """As `get`, and why there is none."""
        result = await self._inner.get(key)
        if result is None:
            return _nothing(CacheVerdict.ABSENT)
        if self._is_unwanted(result):
            return _nothing(CacheVerdict.FAILURE, f"it has exit code {result.exit_code}")
        try:
            gap = await self._gap(key.action, result)
        except (_Unusable, InvalidRequest, DataLoss) as reason:
            _log.warning("cached result not served", action=str(key.action), reason=str(reason))
            return _nothing(CacheVerdict.UNUSABLE, str(reason))
        return _nothing(CacheVerdict.INCOMPLETE, gap) if gap else Lookup(result, _HIT)

    async def update(self, key: ActionKey, result: ActionResult) -> None:
        """File `result`, never as an empty message (ACU-08), unless it tells of a failure.

        Raises InvalidRequest for a malformed digest in it (ACU-11), StorageFull or Unavailable.
        """
        for message in _named_digests(result):
            key.action.function.parse(message)
        if self._is_unwanted(result):
            # No error: clients that upload whatever they have would take it for trouble.
            await trio.lowlevel.checkpoint()
            return
        if not result.ByteSize():
            result = ActionResult(execution_metadata=reapi.ExecutedActionMetadata(worker="unknown"))
        await self._inner.update(key, result)

    def _is_unwanted(self, result: ActionResult) -> bool:
        return result.exit_code != 0 and not self._cache_failures

    async def _gap(self, action: Digest, result: ActionResult) -> str:
        """What is missing of `result`, as a sentence; empty where it is whole."""
        needed = _Needed(action, self._max_tree_bytes)
        needed.add_all(_named_digests(result))
        for directory in result.output_directories:
            needed.take_tree_bytes(directory.tree_digest)
            needed.take_tree_bytes(directory.root_directory_digest)
        if missing := await self._add_trees(needed, result):
            return _describe_gap(missing, result)
        if absent := await self._add_closures(needed, result):
            return _describe_gap([absent], result)
        needed.digests.discard(needed.empty)
        missing = await self._blobs.find_missing(needed.digests) if needed.digests else set()
        return _describe_gap(missing, result) if missing else ""

    async def _add_trees(self, needed: _Needed, result: ActionResult) -> set[Digest]:
        """Add what the trees of `result` name. Returns those that are missing."""
        trees = needed.parse_all(
            directory.tree_digest
            for directory in result.output_directories
            if directory.tree_digest.ByteSize()
        )
        # The empty blob is an empty Tree, and a store need not know it.
        trees.discard(needed.empty)
        blobs = await self._blobs.read_many(trees) if trees else {}
        for tree, data in blobs.items():
            if len(data) < _THREAD_THRESHOLD_BYTES:
                needed.add_tree(tree, data)
            else:
                await trio.to_thread.run_sync(needed.add_tree, tree, data)
        return trees - blobs.keys()

    async def _add_closures(self, needed: _Needed, result: ActionResult) -> Digest | None:
        """Add what is below the root directories of `result`. Returns one that is missing."""
        roots = needed.parse_all(
            directory.root_directory_digest
            for directory in result.output_directories
            if directory.root_directory_digest.ByteSize()
        )
        try:
            # Together, as one may be in another: each directory is read once.
            async for directories in walk_directories(self._blobs, roots):
                for digest, directory in directories:
                    needed.add_directory(digest, directory)
        except BlobNotFound as error:
            return error.digest
        return None


_HIT = CacheAnswer(CacheVerdict.HIT)


def _nothing(verdict: CacheVerdict, detail: str = "") -> Lookup:
    return Lookup(None, CacheAnswer(verdict, detail))


def _describe_gap(missing: Iterable[Digest], result: ActionResult) -> str:
    names = _names_in(result)
    inside = "a blob inside of an output directory"
    gaps = sorted(f"{names.get(digest.hash, inside)} ({digest})" for digest in missing)
    more = f" and {len(gaps) - _NAMED_GAPS} more" if len(gaps) > _NAMED_GAPS else ""
    return f"no longer in the CAS: {', '.join(gaps[:_NAMED_GAPS])}{more}"


def _names_in(result: ActionResult) -> dict[str, str]:
    """What each digest in the message is of, by its hash."""
    names = {result.stdout_digest.hash: "stdout", result.stderr_digest.hash: "stderr"}
    for directory in result.output_directories:
        for digest in (directory.tree_digest, directory.root_directory_digest):
            names[digest.hash] = f"output directory {directory.path!r}"
    return names | {f.digest.hash: f"output file {f.path!r}" for f in result.output_files}


class _Unusable(Exception):
    """Why a stored result is treated as absent, for the log."""


class _Needed:
    """Collects what one result needs, and counts the bytes of its trees against their bound."""

    def __init__(self, action: Digest, max_tree_bytes: int) -> None:
        self._function = action.function
        self._max_tree_bytes = max_tree_bytes
        self._tree_bytes = 0
        self.empty = action.function.empty
        self.digests: set[Digest] = set()

    def parse_all(self, messages: Iterable[reapi.Digest]) -> set[Digest]:
        return {self._function.parse(message) for message in messages}

    def add_all(self, messages: Iterable[reapi.Digest]) -> None:
        self.digests |= self.parse_all(messages)

    def take_tree_bytes(self, message: reapi.Digest | Digest) -> None:
        self._tree_bytes += message.size_bytes
        if self._tree_bytes > self._max_tree_bytes:
            raise _Unusable(f"its trees take more than {self._max_tree_bytes} bytes")

    def add_tree(self, tree: Digest, data: bytes) -> None:
        try:
            message = reapi.Tree.FromString(data)
        except DecodeError as error:
            raise _Unusable(f"blob {tree} is not a Tree message") from error
        for directory in (message.root, *message.children):
            self.add_all(file.digest for file in directory.files)

    def add_directory(self, digest: Digest, directory: reapi.Directory) -> None:
        self.digests.update(file_digests(digest, directory))
        for below in subdirectories(digest, directory):
            if below not in self.digests:
                self.take_tree_bytes(below)
                self.digests.add(below)


def _named_digests(result: ActionResult) -> Iterator[reapi.Digest]:
    """The digests in the message itself. An output without its digest yields a malformed one."""
    for file in result.output_files:
        yield file.digest
    for directory in result.output_directories:
        if directory.tree_digest.ByteSize() or not directory.root_directory_digest.ByteSize():
            yield directory.tree_digest
        if directory.root_directory_digest.ByteSize():
            yield directory.root_directory_digest
    for stream in (result.stdout_digest, result.stderr_digest):
        # Some clients send an empty message for a stream that they do not have.
        if stream.ByteSize():
            yield stream
