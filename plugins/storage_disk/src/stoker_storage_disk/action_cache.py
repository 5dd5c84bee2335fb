"""An action cache in a folder: one file an entry."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import lru_cache

import trio
from google.protobuf.message import DecodeError

from stoker.spi import DIGEST_FUNCTIONS, ActionCache, ActionKey, ActionResult, InvalidRequest
from stoker_storage_disk.absent import AbsentNames
from stoker_storage_disk.folder import read_exactly
from stoker_storage_disk.upkeep import FoundFile, Upkeep, found_files

# An entry is this line, the SHA-256 of the rest, the length of the namespace, the namespace, and
# the message. Without the hash, a file cut short by a loss of power could still parse: as a result
# with fewer outputs. Without the namespace, of which the path has but a hash, nobody could list
# the entries. Entries of format 1, which lacked it, count as damaged.
_HEADER = b"stoker action result 2\n"
_HASHED = len(_HEADER) + hashlib.sha256().digest_size
_LENGTH = struct.Struct(">I")

_FUNCTIONS = {function.name.lower(): function for function in DIGEST_FUNCTIONS}


class DiskActionCache(ActionCache):
    """Action results in a folder. See README.md for the layout and for what survives a crash.

    Calls may overlap freely. A damaged entry counts as absent and is removed (ACG-11).
    """

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self._threads = upkeep.threads
        self._files = upkeep.files
        self._absent = AbsentNames()
        upkeep.chores.append(self._learn_absent)

    async def get(self, key: ActionKey) -> ActionResult | None:
        # Nearly every action that is run was asked for here before, in vain.
        if self._absent.surely(_name(key)):
            await trio.lowlevel.checkpoint_if_cancelled()
            return None
        return await self._threads.read(self._get, key)

    async def peek(self, key: ActionKey) -> ActionResult | None:
        return await self._threads.read(self._peek, key)

    async def update(self, key: ActionKey, result: ActionResult) -> None:
        data = _encode(key.namespace, result)
        await self._upkeep.write(lambda: self._write(_name(key), data))

    @asynccontextmanager
    async def open_entries(self) -> AsyncIterator[AsyncIterator[ActionKey]]:
        """As promised by `ActionCache`; damaged entries are removed on the way."""
        async with aclosing(self._entries()) as entries:
            yield entries

    async def remove(self, keys: Collection[ActionKey]) -> None:
        """Remove these entries; no error for absent ones. Raises Unavailable."""
        await self._threads.write(self._files.remove, [_name(key) for key in keys])

    async def _entries(self) -> AsyncGenerator[ActionKey, None]:
        keys = self._keys()
        while (some := await self._threads.read(next, keys, None)) is not None:
            for key in some:
                yield key

    def _keys(self) -> Iterator[list[ActionKey]]:
        for found in found_files(self._files.folder):
            keys = (self._key(file) for file in found)
            yield [key for key in keys if key is not None]

    def _key(self, file: FoundFile) -> ActionKey | None:
        function, _, path = file.name.partition("/")
        hash_ = path.rpartition("/")[2].partition("-")[0]
        try:
            action = _FUNCTIONS[function].named(hash_, file.size_in_name)
        except (KeyError, InvalidRequest):
            # Not a name that this stoker gives; it never looks there either.
            return None
        entry = self._look_at(file.name)
        return None if entry is None else ActionKey(entry[0], action)

    def _peek(self, key: ActionKey) -> ActionResult | None:
        entry = self._look_at(_name(key))
        return None if entry is None else entry[1]

    def _look_at(self, name: str) -> tuple[str, ActionResult] | None:
        # Past the bookkeeping: to be listed is not to be used.
        return self._read(name, self._files.folder.open_file(name))

    def _get(self, key: ActionKey) -> ActionResult | None:
        name = _name(key)
        entry = self._read(name, self._files.open_file(name))
        return None if entry is None else entry[1]

    def _read(self, name: str, descriptor: int | None) -> tuple[str, ActionResult] | None:
        if descriptor is None:
            return None
        try:
            found = os.fstat(descriptor)
            entry = _decode(read_exactly(name, descriptor, 0, found.st_size))
            if entry is None:
                self._files.remove_damaged(name, found, "it is not a whole action result")
            return entry
        finally:
            os.close(descriptor)

    def _write(self, name: str, data: bytes) -> None:
        try:
            with self._files.part() as part:
                self._files.append(part, data)
                failures = self._files.publish({name: part}, replace=True)
                if failures:
                    raise failures[name]
        finally:
            # After a failure too: it may have come so far.
            self._absent.note_present(name)

    def _learn_absent(self) -> None:
        """From the index, while it knows every file."""
        index = self._files.index
        generation = index.generation
        if self._absent.is_due and self._files.is_counted:
            self._absent.renew(
                index.count(),
                index.all_names(),
                lambda: self._files.is_counted and index.generation == generation,
            )


def _name(key: ActionKey) -> str:
    # A namespace is any text: hashed, it can name no other place (SEC-05).
    namespace = _hashed(key.namespace)
    hash_ = key.action.hash
    function = key.action.function.name.lower()
    return f"{function}/{namespace}/{hash_[:2]}/{hash_}-{key.action.size_bytes}"


@lru_cache
def _hashed(namespace: str) -> str:
    return hashlib.sha256(_bytes(namespace)).hexdigest()


def _bytes(namespace: str) -> bytes:
    return namespace.encode("utf-8", "surrogatepass")


def _encode(namespace: str, result: ActionResult) -> bytes:
    name = _bytes(namespace)
    rest = _LENGTH.pack(len(name)) + name + result.SerializeToString()
    return _HEADER + hashlib.sha256(rest).digest() + rest


def _decode(data: bytes) -> tuple[str, ActionResult] | None:
    rest = data[_HASHED:]
    if data[:_HASHED] != _HEADER + hashlib.sha256(rest).digest() or len(rest) < _LENGTH.size:
        return None
    end = _LENGTH.size + _LENGTH.unpack_from(rest)[0]
    try:
        namespace = rest[_LENGTH.size : end].decode("utf-8", "surrogatepass")
        return namespace, ActionResult.FromString(rest[end:])
    except (DecodeError, UnicodeDecodeError):
        return None
