"""What a blob is called: a digest function, a hash and a size.

Source: build.bazel.remote.execution.v2.Digest and DigestFunction.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import NamedTuple, Protocol

from stoker.errors import InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi


class Hasher(Protocol):
    """The part of a :mod:`hashlib` object that stoker uses."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class DigestFunction:
    """One member of REAPI's ``DigestFunction.Value`` that stoker can compute.

    Instances are compared by identity, which keeps hashing a :class:`Digest` cheap.
    """

    __slots__ = ("_pattern", "empty", "hash_length", "name", "new", "number")

    def __init__(
        self,
        name: str,
        number: reapi.DigestFunction.Value.ValueType,
        hash_length: int,
        new: Callable[[], Hasher],
    ) -> None:
        self.name = name
        self.number = number
        self.hash_length = hash_length
        self.new = new
        self._pattern = re.compile(rf"[0-9a-f]{{{hash_length}}}")
        self.empty = Digest(new().hexdigest(), 0, self)

    def __repr__(self) -> str:
        return self.name

    def digest(self, data: bytes | memoryview) -> Digest:
        """The digest of `data`."""
        hasher = self.new()
        hasher.update(data)
        return Digest(hasher.hexdigest(), len(data), self)

    def named(self, hash_: str, size_bytes: int) -> Digest:
        """A digest that somebody claims. Raises InvalidRequest unless it is well formed."""
        if self._pattern.fullmatch(hash_) is None:
            raise InvalidRequest(
                f"{hash_!r} is not a {self.name} hash: "
                f"expected {self.hash_length} lower-case hexadecimal digits"
            )
        if size_bytes < 0:
            raise InvalidRequest(f"digest {hash_}/{size_bytes} has a negative size")
        return Digest(hash_, size_bytes, self)

    def parse(self, message: reapi.Digest) -> Digest:
        """The digest that `message` names. Raises InvalidRequest unless it is well formed."""
        return self.named(message.hash, message.size_bytes)


class Digest(NamedTuple):
    """The identity of a blob. Equal bytes under two digest functions are two blobs (GEN-10)."""

    hash: str
    size_bytes: int
    function: DigestFunction

    def __str__(self) -> str:
        return f"{self.hash}/{self.size_bytes}"

    def to_proto(self) -> reapi.Digest:
        """The same digest as a REAPI message."""
        return reapi.Digest(hash=self.hash, size_bytes=self.size_bytes)


SHA256 = DigestFunction("SHA256", reapi.DigestFunction.SHA256, 64, hashlib.sha256)

DIGEST_FUNCTIONS: tuple[DigestFunction, ...] = (SHA256,)
"""What this build of stoker can compute, in the order in which it is advertised."""


def digest_function(number: int, hash_length: int | None = None) -> DigestFunction:
    """The function that a request means by its ``digest_function`` field.

    Where the field is unset, the length of a hash decides (GEN-06). Raises InvalidRequest,
    naming what is supported, for a function that stoker does not compute (GEN-08).
    """
    for function in DIGEST_FUNCTIONS:
        if number == function.number:
            return function
        if number == reapi.DigestFunction.UNKNOWN and hash_length in (None, function.hash_length):
            return function
    supported = ", ".join(function.name for function in DIGEST_FUNCTIONS)
    if number == reapi.DigestFunction.UNKNOWN:
        raise InvalidRequest(
            f"a hash of {hash_length} digits fits no supported digest function ({supported})"
        )
    raise InvalidRequest(f"digest function {number} is not supported; supported are {supported}")
