"""Instance names: which storage and which executors a request means."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from stoker.digest import (
    DIGEST_FUNCTIONS,
    Digest,
    DigestFunction,
    check_lengths,
    digest_function,
)
from stoker.errors import InstanceNotFound, InvalidRequest, StokerError
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ServerCall
from stoker.spi import ActionKey, BlobStore
from stoker.storage.completeness import CompleteActionCache


class _NamesInstance(Protocol):
    instance_name: str


RequestT = TypeVar("RequestT", bound=_NamesInstance)
ResponseT = TypeVar("ResponseT")

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
    actions: CompleteActionCache
    executors: Mapping[str, float] = field(default_factory=dict)
    """The executors that run its actions, and the longest timeout, in seconds, that each allows;
    empty where it only caches."""
    client_updates: bool = True
    """Whether clients may write to the action cache."""
    digest_functions: tuple[DigestFunction, ...] = DIGEST_FUNCTIONS
    """What its digests may be made by; the first is what clients are told to prefer."""
    max_blob_bytes: int = 0
    """The largest blob that clients may upload, by any way; 0 for no bound (CAP-11)."""
    check_actions: bool = False
    """Whether a result that a client writes needs its Action and Command in the CAS."""

    def request_function(self, number: int, digests: Collection[reapi.Digest]) -> DigestFunction:
        """The digest function of a request: its field's, or else what the hashes tell (GEN-06).

        Raises InvalidRequest, also where the hashes differ in length (GEN-02).
        """
        function = self._function(number, digests)
        check_lengths(function, (digest.hash for digest in digests))
        return function

    def request_digests(self, number: int, digests: Collection[reapi.Digest]) -> list[Digest]:
        """The digests of a request. Raises InvalidRequest where one is malformed."""
        # Parsing looks at the lengths as well.
        function = self._function(number, digests)
        return [function.parse(message) for message in digests]

    def _function(self, number: int, digests: Collection[reapi.Digest]) -> DigestFunction:
        first = next((len(digest.hash) for digest in digests), None)
        return digest_function(number, first, self.digest_functions)

    def request_digest(self, number: int, field_name: str, message: reapi.Digest) -> Digest:
        """The digest in a request's field. Raises InvalidRequest: it is unset or malformed."""
        if not message.hash:
            raise InvalidRequest(f"{field_name} is not set")
        return digest_function(number, len(message.hash), self.digest_functions).parse(message)

    def check_size(self, digest: Digest) -> None:
        """Raise InvalidRequest for a blob that is larger than clients may upload (BSW-23)."""
        if 0 < self.max_blob_bytes < digest.size_bytes:
            raise InvalidRequest(
                f"blob {digest} is larger than the {self.max_blob_bytes} bytes that are taken here"
            )

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


@contextmanager
def naming(subject: str) -> Iterator[None]:
    """Have an error that leaves the context tell what it is about, as in ``instance 'main'``.

    Unless it tells so already (GEN-22).
    """
    try:
        yield
    except StokerError as error:
        name_subject(error, subject)
        raise


def name_subject(error: StokerError, subject: str) -> None:
    """Have `error` tell what it is about, a kind and a name, where it does not name it yet."""
    name = subject.partition(" ")[2]
    if name not in str(error) and subject not in getattr(error, "__notes__", ()):
        error.add_note(subject)


def naming_instance(
    handler: Callable[[RequestT, ServerCall], Awaitable[ResponseT]],
) -> Callable[[RequestT, ServerCall], Awaitable[ResponseT]]:
    """`handler`, with the name of the request's instance in all of its errors."""

    async def handle(request: RequestT, call: ServerCall) -> ResponseT:
        try:
            return await handler(request, call)
        except StokerError as error:
            name_subject(error, f"instance {request.instance_name!r}")
            raise

    return handle
