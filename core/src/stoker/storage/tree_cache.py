"""Input trees of a store, each Directory message of which is read and parsed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Set
from functools import partial
from typing import NamedTuple
from weakref import WeakValueDictionary

import trio

from stoker.digest import Digest
from stoker.errors import InputsMissing, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import HELD_SECONDS, BlobStore
from stoker.storage.file_records import FileRecords, NamedEntry
from stoker.storage.input_tree import (
    FileEntry,
    InputDirectory,
    InputTree,
    distinct_directories,
)
from stoker.storage.recent import read_soon
from stoker.storage.threads import run
from stoker.storage.tree import (
    RawBatch,
    are_sound,
    check_directory,
    check_links,
    directory_batches,
    entry_count,
    parse_batch,
    parse_directory,
    parse_in,
    read_properties,
    read_raw,
)

MAX_INPUT_ENTRIES = 1_000_000
"""How many files, directories and links an input tree may hold unless told otherwise."""

KEPT_ENTRIES = 250_000
"""How many entries the trees that are kept may have, unless told otherwise; they take some
500 bytes each, and 150 more where they were inputs of persistent workers. What trees share is
counted for each of them."""

CHECK_AGAIN_SECONDS = 300.0
"""After how long files of a tree that is kept are looked for in the store once more, so that to
the store they go on being in use."""

# Parsing or linking an entry takes 3 µs or so; beyond this number others should not wait for it.
_INLINE_ENTRIES = 2_000
# Of so little each record is looked at: about as many entries.
_FEW_BYTES = 128 * 1024
# How many files are remembered to have been in the store, about 200 bytes each.
_SEEN_FILES = 100_000
# Names are short but a path repeats those of all its parents: a deep chain grows quadratically.
_MAX_PATH_CHARACTERS = 256 * 1024 * 1024


class _Parsed(NamedTuple):
    """A directory that was found sound, with its digests parsed, but not what they name."""

    files: Mapping[str, FileEntry]
    directories: Mapping[str, Digest]
    symlinks: Mapping[str, str]

    @property
    def names(self) -> Set[str]:
        return {*self.files, *self.directories, *self.symlinks}

    @property
    def entry_count(self) -> int:
        return len(self.files) + len(self.directories) + len(self.symlinks)


class _Seen(NamedTuple):
    """A file that was in the store."""

    entry: FileEntry
    """What it is in most directories: shared by them."""
    at: float


class InputTrees:
    """Reads input trees from `blobs`, and keeps those used last. Calls may overlap.

    A directory that is part of any tree still in use, here or elsewhere, is not read again.
    """

    def __init__(
        self,
        blobs: BlobStore,
        *,
        max_entries: int = MAX_INPUT_ENTRIES,
        kept_entries: int = KEPT_ENTRIES,
    ) -> None:
        self._blobs = blobs
        self._max_entries = max_entries
        self._known: WeakValueDictionary[Digest, InputDirectory] = WeakValueDictionary()
        self._kept: OrderedDict[Digest, InputDirectory] = OrderedDict()
        # When a file was last seen in the store: a directory that is new has most of its files from
        # another one, as a rule. In the order in which they were seen.
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._records = FileRecords()
        self._kept_entries = 0
        self._most_kept_entries = kept_entries

    async def read(self, root: Digest) -> InputTree:
        """The input tree that begins at Directory `root`.

        What was not known of it is read, and its files are looked for. Raises InputsMissing with
        every blob that is missing then, directories and files together; InvalidRequest, naming
        directory and entry, for names that are no single path segment or occur twice (EXE-26),
        for what does not parse, and for more than the bound of entries. The empty Directory
        needs no upload. Cancellation leaves nothing behind.
        """
        directory = self._known.get(root)
        if directory is None:
            directory = await self._read_new(root)
        else:
            await self._check_again(directory)
        self._keep(directory)
        return InputTree(directory)

    async def find_missing(self, tree: InputTree) -> list[Digest]:
        """Every file of `tree` that is not in the store now, and every directory (EXE-04)."""
        directories = distinct_directories(tree.root)
        digests = dict.fromkeys(
            directory.digest
            for directory in directories
            if directory.digest != directory.digest.function.empty
        )
        return await self._missing(
            [*digests, *_file_digests(directory.files for directory in directories)]
        )

    async def _read_new(self, root: Digest) -> InputDirectory:
        read = partial(read_soon, self._blobs)
        parsed: dict[Digest, _Parsed] = {}
        held: dict[Digest, InputDirectory] = {}
        absent: list[Digest] = []
        level, seen, entries = [root], {root}, 0
        while level:
            below: dict[Digest, None] = {}
            for digests in directory_batches(level):
                raw = await read_raw(read, digests)
                absent += raw.absent
                listings = await self._parse(root, raw)
                parsed |= listings
                entries += sum(listing.entry_count for listing in listings.values())
                if entries > self._max_entries:
                    raise _too_many(root, self._max_entries)
                for listing in listings.values():
                    below.update(dict.fromkeys(listing.directories.values()))
            level = [digest for digest in below if digest not in seen]
            seen.update(level)
            level = self._unknown(level, held)
        since = await self._check_files(parsed, held, absent)
        inline = entries < _INLINE_ENTRIES
        linked = await run(_link, root, parsed, held, self._max_entries, inline=inline)
        for new in linked.values():
            new.checked_at = since
            self._known[new.digest] = new
        return linked[root]

    async def _parse(self, root: Digest, raw: RawBatch) -> dict[Digest, _Parsed]:
        if raw.size_bytes < _FEW_BYTES:
            return {digest: self._parse_few(digest, data) for digest, data in raw.found.items()}
        found = (await parse_batch(raw)).found
        size = sum(entry_count(directory) for _, directory in found)
        if size > self._max_entries:
            raise _too_many(root, self._max_entries)
        return await run(_parse_all, found, self._seen, inline=size < _INLINE_ENTRIES)

    def _parse_few(self, digest: Digest, data: bytes) -> _Parsed:
        """As `_parse`, of what may differ little from a directory of the last time."""
        parse = partial(_parse_files, seen=self._seen)
        files, rest = self._records.read(digest, data, parse)
        parsed = _Parsed(dict(files), *_parse_rest(digest, rest))
        if not are_sound(parsed.names, len(files) + len(rest.directories) + len(rest.symlinks)):
            # Names all that it holds in its error.
            check_directory(digest, parse_directory(digest, data), parsed.names)
        check_links(digest, rest)
        return parsed

    def _unknown(self, level: Iterable[Digest], held: dict[Digest, InputDirectory]) -> list[Digest]:
        """Those of `level` that are to be read. The others are held."""
        unknown = []
        for digest in level:
            directory = self._known.get(digest)
            if directory is None:
                unknown.append(digest)
            else:
                held[digest] = directory
        return unknown

    async def _check_files(
        self,
        parsed: Mapping[Digest, _Parsed],
        held: Mapping[Digest, InputDirectory],
        absent: list[Digest],
    ) -> float:
        """Raise InputsMissing with `absent` and all missing files, if there are any.

        Files of directories that are held were looked for not long ago, and so were some of those
        of new ones. They are looked for again only where something is missing anyway, so that one
        answer names all. Returns since when all files of `parsed` were seen to be there.
        """
        now = trio.current_time()
        new = _file_digests(listing.files for listing in parsed.values())
        due = _due(held.values(), now)
        unseen, since = self._unseen(new, now)
        missing = absent + await self._missing(
            [*unseen, *_file_digests(directory.files for directory in due)]
        )
        if missing:
            missing += await self._missing(new.keys() - unseen)
            known = [below for root in held.values() for below in distinct_directories(root)]
            missing += await self._missing(_file_digests(directory.files for directory in known))
            raise InputsMissing(list(dict.fromkeys(missing)))
        for directory in due:
            directory.checked_at = now
        self._see(unseen, now)
        return since

    def _unseen(self, digests: Collection[Digest], now: float) -> tuple[set[Digest], float]:
        """Those of `digests` that are to be looked for, and since when the others were there."""
        since, too_long_ago = now, now - CHECK_AGAIN_SECONDS
        unseen = set()
        for digest in digests:
            seen = self._seen.get(digest.hash)
            if seen is None or seen.at <= too_long_ago or seen.entry.digest != digest:
                unseen.add(digest)
            elif seen.at < since:
                since = seen.at
        # Nobody has to wait for what was in the store a moment ago.
        held = self._blobs.held(unseen)
        if held:
            since = min(since, now - HELD_SECONDS)
            self._see(held, now - HELD_SECONDS)
        return unseen - held.keys(), since

    def _see(self, digests: Iterable[Digest], at: float) -> None:
        for digest in digests:
            self._seen[digest.hash] = _Seen(FileEntry(digest), at)
            self._seen.move_to_end(digest.hash)
        while len(self._seen) > _SEEN_FILES:
            self._seen.popitem(last=False)

    async def _check_again(self, root: InputDirectory) -> None:
        now = trio.current_time()
        if now - root.checked_at < CHECK_AGAIN_SECONDS:
            return
        due = _due([root], now)
        if await self._missing(_file_digests(directory.files for directory in due)):
            raise InputsMissing(await self.find_missing(InputTree(root)))
        for directory in due:
            directory.checked_at = now

    async def _missing(self, digests: Iterable[Digest]) -> list[Digest]:
        asked = dict.fromkeys(digests)
        missing = await self._blobs.find_missing(asked.keys()) if asked else set()
        return [digest for digest in asked if digest in missing] if missing else []

    def _keep(self, root: InputDirectory) -> None:
        if root.digest not in self._kept:
            self._kept_entries += root.entries
        self._kept[root.digest] = root
        self._kept.move_to_end(root.digest)
        while self._kept_entries > self._most_kept_entries and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self._kept_entries -= oldest.entries


async def read_input_tree(
    blobs: BlobStore, root: Digest, *, max_entries: int = MAX_INPUT_ENTRIES
) -> InputTree:
    """As `InputTrees.read` does, of a single tree."""
    return await InputTrees(blobs, max_entries=max_entries).read(root)


def _due(roots: Iterable[InputDirectory], now: float) -> list[InputDirectory]:
    return [
        directory
        for root in roots
        for directory in distinct_directories(root)
        if now - directory.checked_at >= CHECK_AGAIN_SECONDS
    ]


def _file_digests(listings: Iterable[Mapping[str, FileEntry]]) -> dict[Digest, None]:
    return {
        file.digest: None
        for files in listings
        for file in files.values()
        if file.digest.size_bytes or file.digest != file.digest.function.empty
    }


def _parse_all(
    found: list[tuple[Digest, reapi.Directory]], seen: Mapping[str, _Seen]
) -> dict[Digest, _Parsed]:
    return {digest: _parse(digest, directory, seen) for digest, directory in found}


def _parse(digest: Digest, directory: reapi.Directory, seen: Mapping[str, _Seen]) -> _Parsed:
    files = dict(_parse_files(digest, directory.files, seen))
    parsed = _Parsed(files, *_parse_rest(digest, directory))
    check_directory(digest, directory, parsed.names)
    return parsed


def _parse_rest(
    digest: Digest, directory: reapi.Directory
) -> tuple[Mapping[str, Digest], Mapping[str, str]]:
    directories = {node.name: parse_in(digest, node) for node in directory.directories}
    return directories, {link.name: link.target for link in directory.symlinks}


def _parse_files(
    directory: Digest, nodes: Iterable[reapi.FileNode], seen: Mapping[str, _Seen]
) -> list[NamedEntry]:
    """One loop: it is done for each file of a directory that is new."""
    files, function, look = list[NamedEntry](), directory.function, seen.get
    for node in nodes:
        named = node.digest
        before = look(named.hash)
        # What was found well formed before need not be looked at again: that takes longest.
        entry = None if before is None else before.entry
        if (
            entry is None
            or entry.digest.size_bytes != named.size_bytes
            or entry.digest.function is not function
        ):
            entry = FileEntry(parse_in(directory, node))
        if node.is_executable or node.HasField("node_properties"):
            properties = read_properties(directory, node)
            entry = FileEntry(entry.digest, node.is_executable, *properties)
        files.append((node.name, entry))
    return files


def _link(
    root: Digest,
    parsed: Mapping[Digest, _Parsed],
    held: Mapping[Digest, InputDirectory],
    max_entries: int,
) -> dict[Digest, InputDirectory]:
    """All that was parsed, as directories, from the leaves up.

    Raises InvalidRequest at the first directory that is too large: going on, the sizes of a chain
    of directories that each name the next one twice would have as many digits as it has links.
    """
    linked: dict[Digest, InputDirectory] = {}
    waiting = [root]
    while waiting:
        digest = waiting[-1]
        if digest in linked:  # which several directories had named
            waiting.pop()
            continue
        listing = parsed[digest]
        named = set(listing.directories.values())
        if unlinked := named.difference(linked, held):
            waiting += unlinked
            continue
        below = {
            name: linked.get(child) or held[child] for name, child in listing.directories.items()
        }
        linked[digest] = InputDirectory(digest, listing.files, below, listing.symlinks)
        _check_size(root, linked[digest], max_entries)
    return linked


def _check_size(root: Digest, directory: InputDirectory, max_entries: int) -> None:
    if directory.entries > max_entries:
        raise _too_many(root, max_entries)
    if directory.path_characters > _MAX_PATH_CHARACTERS:
        raise InvalidRequest(f"the paths of input root {root} are too long to be written out")


def _too_many(root: Digest, max_entries: int) -> InvalidRequest:
    return InvalidRequest(f"input root {root} has more than {max_entries} entries")
