"""Instance names: which storage and which executors a request means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stoker.digest import Digest, DigestFunction, digest_function
from stoker.errors import InstanceNotFound, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import ActionCache, ActionKey, BlobStore

RESERVED_SEGMENTS = frozenset(
    {"blobs", "uploads", "actions", "actionResults", "operations", "capabilities"}
    | {"compressed-blobs"}
)
"""What no segment of an instance name may be: resource names could not be told apart (GEN-19)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What stands behind one instance name."""

    name: str
    blobs: BlobStore
    actions: ActionCache
    executors: tuple[str, ...] = ()
    """Names of the executors that run its actions; empty where it only caches."""
    max_timeout_seconds: float = 0.0
    """The longest timeout that an action may ask for."""
    client_updates: bool = True
    """Whether clients may write to the action cache."""
    check_actions: bool = False
    """Whether a result that a client writes needs its Action and Command in the CAS."""

    def action_key(self, digest: Digest) -> ActionKey:
        """What the result of an action of this instance is filed under."""
        return ActionKey(self.name, digest)


class Instances:
    """The instances of this server, by name."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._instances = {instance.name: instance for instance in instances}

    def resolve(self, name: str) -> Instance:
        """The instance of this name. Raises InvalidRequest or InstanceNotFound (GEN-18)."""
        if instance := self._instances.get(name):
            return instance
        check_instance_name(name)
        raise InstanceNotFound(name)


def check_instance_name(name: str) -> None:
    """Raise InvalidRequest for what cannot be an instance name (GEN-19)."""
    if not name:
        return
    segments = name.split("/")
    if "" in segments:
        raise InvalidRequest(f"instance name {name!r} has a slash too many")
    if reserved := RESERVED_SEGMENTS.intersection(segments):
        raise InvalidRequest(f"instance name {name!r} has the reserved segment {min(reserved)!r}")


def request_function(number: int, digests: Iterable[reapi.Digest]) -> DigestFunction:
    """The digest function of a request, by its field or else by the hashes in it (GEN-06)."""
    first = next(iter(digests), None)
    return digest_function(number, len(first.hash) if first else None)


def request_digest(number: int, field_name: str, message: reapi.Digest) -> Digest:
    """The digest in a request's field. Raises InvalidRequest where it is unset or malformed."""
    if not message.hash:
        raise InvalidRequest(f"{field_name} is not set")
    return digest_function(number, len(message.hash)).parse(message)
