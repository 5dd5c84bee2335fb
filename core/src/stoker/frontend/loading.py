"""Actions as they lie in the CAS, read and checked."""

from __future__ import annotations

from stoker.action import LoadedAction, load_action, parse_action, parse_command
from stoker.digest import Digest
from stoker.errors import InputsMissing, InvalidRequest
from stoker.frontend.instances import Instance
from stoker.protos import remote_execution_pb2 as reapi
from stoker.storage.recent import read_soon

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""What an Action or Command may weigh: they are read whole."""


async def read_action(
    instance: Instance, digest: Digest, *, metadata: reapi.RequestMetadata, principal: str
) -> LoadedAction:
    """The action of this digest, and its command, on behalf of this client.

    Raises InputsMissing, which makes a client upload them (EXE-03), and InvalidRequest for what
    is unsound.
    """
    message = parse_action(digest, await _read(instance, digest))
    command_digest = digest.function.parse(message.command_digest)
    command = parse_command(command_digest, await _read(instance, command_digest))
    return load_action(
        digest,
        message,
        command,
        namespace=instance.name,
        metadata=metadata,
        principal=principal,
        max_blob_bytes=instance.max_blob_bytes,
    )


def within_limits(instance: Instance, action: LoadedAction) -> list[str]:
    """The executors whose longest timeout `action` keeps to. Raises InvalidRequest (EXE-10)."""
    asked = action.timeout_seconds or 0.0
    within = [name for name, limit in instance.executors.items() if asked <= limit]
    if not within:
        longest = max(instance.executors.values())
        raise InvalidRequest(
            f"the action's timeout of {asked:g} s is longer than the {longest:g} s that "
            f"instance {instance.name!r} allows"
        )
    return within


async def _read(instance: Instance, digest: Digest) -> bytes:
    if digest.size_bytes > MAX_MESSAGE_BYTES:
        raise InvalidRequest(f"blob {digest} is too large for an Action or Command")
    blobs = await read_soon(instance.blobs, [digest])
    if digest not in blobs:
        raise InputsMissing([digest])
    return blobs[digest]
