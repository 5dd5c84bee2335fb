"""An action cache in a folder: one file an entry."""

from __future__ import annotations

import hashlib
import os

import trio
from google.protobuf.message import DecodeError

from stoker.spi import ActionCache, ActionKey, ActionResult
from stoker_storage_disk.folder import Folder, read_exactly
from stoker_storage_disk.threads import INLINE_BYTES, run

# An entry is this line, the SHA-256 of the message, and the message. Without the hash, a file cut
# short by a loss of power could still parse: as a result with fewer outputs.
_HEADER = b"stoker action result 1\n"
_MESSAGE_START = len(_HEADER) + hashlib.sha256().digest_size


class DiskActionCache(ActionCache):
    """Action results in `folder`. See README.md for the layout and for what survives a crash.

    Calls may overlap freely. A damaged entry counts as absent and is removed (ACG-11).
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    async def get(self, key: ActionKey) -> ActionResult | None:
        path = self._path(key)
        await trio.lowlevel.checkpoint()
        descriptor = self._folder.open_file(path)
        if descriptor is None:
            return None
        try:
            found = os.fstat(descriptor)
            return await run(
                lambda: self._read(path, descriptor, found), inline=found.st_size <= INLINE_BYTES
            )
        finally:
            os.close(descriptor)

    async def update(self, key: ActionKey, result: ActionResult) -> None:
        await trio.to_thread.run_sync(self._write, self._path(key), _encode(result))

    def _path(self, key: ActionKey) -> str:
        # A namespace is any text: hashed, it can name no other place (SEC-05).
        namespace = hashlib.sha256(key.namespace.encode("utf-8", "surrogatepass")).hexdigest()
        action = key.action
        return os.path.join(
            self._folder.path,
            action.function.name.lower(),
            namespace,
            action.hash[:2],
            f"{action.hash}-{action.size_bytes}",
        )

    def _read(self, path: str, descriptor: int, found: os.stat_result) -> ActionResult | None:
        result = _decode(read_exactly(path, descriptor, 0, found.st_size))
        if result is None:
            self._folder.remove_damaged(path, found, "it is not a whole action result")
        return result

    def _write(self, path: str, data: bytes) -> None:
        part = self._folder.create_part()
        try:
            part.append(data)
            self._folder.publish(part, path)
        finally:
            part.discard()


def _encode(result: ActionResult) -> bytes:
    message = result.SerializeToString()
    return _HEADER + hashlib.sha256(message).digest() + message


def _decode(data: bytes) -> ActionResult | None:
    message = data[_MESSAGE_START:]
    if data[:_MESSAGE_START] != _HEADER + hashlib.sha256(message).digest():
        return None
    try:
        return ActionResult.FromString(message)
    except DecodeError:
        return None
