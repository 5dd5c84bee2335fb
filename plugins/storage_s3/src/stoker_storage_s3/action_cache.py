"""An action cache in a bucket: one object an entry."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager

import structlog
import trio
from google.protobuf.message import DecodeError

from stoker.spi import (
    DIGEST_FUNCTIONS,
    ActionCache,
    ActionKey,
    ActionResult,
    Digest,
    InvalidRequest,
)
from stoker_storage_s3.bucket import Bucket, Found
from stoker_storage_s3.concurrency import for_each
from stoker_storage_s3.touching import Toucher

_log = structlog.get_logger(__name__)

# An entry is this line, the SHA-256 of the rest, the length of the namespace, the namespace, and
# the message. Without the hash, an object cut short could still parse: as a result with fewer
# outputs. Without the namespace, of which the key has the hash only, entries could not be listed.
_HEADER = b"stoker action result 1\n"
_BODY_START = len(_HEADER) + hashlib.sha256().digest_size
_LENGTH = struct.Struct(">I")
_FOLDER = "ac"
_FUNCTIONS = {function.name.lower(): function for function in DIGEST_FUNCTIONS}


class BucketActionCache(ActionCache):
    """Action results in `bucket`. README.md has the layout.

    A damaged entry counts as absent, with a warning in the log (ACG-11).
    """

    def __init__(self, bucket: Bucket, toucher: Toucher) -> None:
        self._bucket = bucket
        self._toucher = toucher

    async def get(self, key: ActionKey) -> ActionResult | None:
        found = await self._get(key)
        if found is None:
            return None
        result, facts = found
        self._toucher.consider(_path(key), facts)
        return result

    async def peek(self, key: ActionKey) -> ActionResult | None:
        found = await self._get(key)
        return None if found is None else found[0]

    async def _get(self, key: ActionKey) -> tuple[ActionResult, Found] | None:
        path = _path(key)
        piece = await self._bucket.get_whole(path)
        if piece is None:
            return None
        entry = decode(bytes(piece.data))
        if entry is None or entry[0] != key.namespace:
            _log.warning("damaged action result", bucket=self._bucket.name, key=path)
            return None
        return entry[1], piece.found

    async def update(self, key: ActionKey, result: ActionResult) -> None:
        await self._bucket.put(_path(key), encode(key.namespace, result))

    @asynccontextmanager
    async def open_entries(self) -> AsyncIterator[AsyncIterator[ActionKey]]:
        """As the door says. It costs a request for each 1,000 entries and for each namespace."""
        async with aclosing(self._entries()) as entries:
            yield entries

    async def remove(self, keys: Collection[ActionKey]) -> None:
        await trio.lowlevel.checkpoint()
        paths = [_path(key) for key in keys]
        await for_each(
            paths, self._bucket.delete, width=min(self._bucket.max_connections, len(paths))
        )

    async def _entries(self) -> AsyncGenerator[ActionKey, None]:
        namespaces: dict[str, str] = {}
        async with aclosing(self._bucket.list(_FOLDER)) as paths:
            async for path in paths:
                if (named := _named(path)) is None:
                    continue
                hashed, action = named
                if hashed not in namespaces:
                    # Any one entry tells the name for all of them.
                    piece = await self._bucket.get_whole(path)
                    entry = None if piece is None else decode(bytes(piece.data))
                    if entry is None:
                        continue
                    namespaces[hashed] = entry[0]
                yield ActionKey(namespaces[hashed], action)


async def renew_entry(bucket: Bucket, path: str, _: Found) -> None:
    """Write entry `path` anew, unless it is changed meanwhile: the last update wins."""
    piece = await bucket.get_whole(path)
    if piece is not None:
        await bucket.put_unchanged(path, bytes(piece.data), piece.found)


def encode(namespace: str, result: ActionResult) -> bytes:
    """An entry's bytes."""
    name = _name_bytes(namespace)
    body = _LENGTH.pack(len(name)) + name + result.SerializeToString()
    return _HEADER + hashlib.sha256(body).digest() + body


def decode(data: bytes) -> tuple[str, ActionResult] | None:
    """The namespace and the result of an entry, or None if it is damaged."""
    body = data[_BODY_START:]
    if data[:_BODY_START] != _HEADER + hashlib.sha256(body).digest():
        return None
    try:
        message_start = _LENGTH.size + _LENGTH.unpack_from(body)[0]
        name = body[_LENGTH.size : message_start].decode("utf-8", "surrogatepass")
        return name, ActionResult.FromString(body[message_start:])
    except (struct.error, UnicodeDecodeError, DecodeError):
        return None


def _name_bytes(namespace: str) -> bytes:
    return namespace.encode("utf-8", "surrogatepass")


def _path(key: ActionKey) -> str:
    # A namespace is any text: hashed, it can name no other place (SEC-05).
    namespace = hashlib.sha256(_name_bytes(key.namespace)).hexdigest()
    action = key.action
    function = action.function.name.lower()
    return f"{_FOLDER}/{namespace}/{function}/{action.hash[:2]}/{action.hash}-{action.size_bytes}"


def _named(path: str) -> tuple[str, Digest] | None:
    """The hash of the namespace and the action that `path` names; None for foreign objects."""
    try:
        _, namespace, function, _, name = path.split("/")
        hash_, _, size_bytes = name.partition("-")
        return namespace, _FUNCTIONS[function].named(hash_, int(size_bytes))
    except (ValueError, KeyError, InvalidRequest):
        return None
