"""What a blob is called: a digest function, a hash and a size.

Source: build.bazel.remote.execution.v2.Digest and DigestFunction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, Protocol

from blake3 import blake3

from stoker.errors import InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi


class Hasher(Protocol):
    """The part of a :mod:`hashlib` object that stoker uses."""

    def update(self, data: bytes | memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


class DigestFunction:
    """One member of REAPI's ``DigestFunction.Value`` that stoker can compute.

    Instances are compared by identity, which keeps hashing a :class:`Digest` cheap.
    """

    __slots__ = ("empty", "hash_length", "name", "new", "number", "segment")

    def __init__(
        self,
        name: str,
        number: reapi.DigestFunction.Value.ValueType,
        hash_length: int,
        new: Callable[[], Hasher],
        *,
        told_by_length: bool = True,
    ) -> None:
        """`told_by_length`: whether REAPI lets the length of a hash stand for this function."""
        self.name = name
        self.number = number
        self.hash_length = hash_length
        self.new = new
        self.segment = "" if told_by_length else f"{name.lower()}/"
        """What comes before a hash in the name of a blob, with its slash (BSR-03, EXE-05)."""
        self.empty = Digest(new().hexdigest(), 0, self)

    def __repr__(self) -> str:
        return self.name

    @property
    def told_by_length(self) -> bool:
        """Whether the length of a hash stands for this function where nothing names one."""
        return not self.segment

    def digest(self, data: bytes | memoryview) -> Digest:
        """The digest of `data`."""
        hasher = self.new()
        hasher.update(data)
        return Digest(hasher.hexdigest(), len(data), self)

    def named(self, hash_: str, size_bytes: int) -> Digest:
        """A digest that somebody claims. Raises InvalidRequest unless it is well formed."""
        if len(hash_) != self.hash_length or not _is_lower_case_hexadecimal(hash_):
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


def _is_lower_case_hexadecimal(text: str) -> bool:
    # A quarter of what a regular expression costs, and this is asked for every digest.
    try:
        return bytes.fromhex(text).hex() == text
    except ValueError:
        return False


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
BLAKE3 = DigestFunction("BLAKE3", reapi.DigestFunction.BLAKE3, 64, blake3, told_by_length=False)
SHA384 = DigestFunction("SHA384", reapi.DigestFunction.SHA384, 96, hashlib.sha384)
SHA512 = DigestFunction("SHA512", reapi.DigestFunction.SHA512, 128, hashlib.sha512)
# Both are broken as proof against malice. A client that picks one can deceive itself only: its
# blobs are never those of another function (GEN-10).
SHA1 = DigestFunction(
    "SHA1", reapi.DigestFunction.SHA1, 40, partial(hashlib.sha1, usedforsecurity=False)
)
MD5 = DigestFunction(
    "MD5", reapi.DigestFunction.MD5, 32, partial(hashlib.md5, usedforsecurity=False)
)

DIGEST_FUNCTIONS: tuple[DigestFunction, ...] = (SHA256, BLAKE3, SHA384, SHA512, SHA1, MD5)
"""What this build of stoker can compute, in the order in which it is advertised."""


DIGEST_FUNCTION_NAMES = MappingProxyType({f.name.lower(): f for f in DIGEST_FUNCTIONS})
"""The same by the names that resource names and TOML use."""


def digest_function(
    number: int,
    hash_length: int | None = None,
    offered: Sequence[DigestFunction] = DIGEST_FUNCTIONS,
) -> DigestFunction:
    """The one of `offered` that a request means by its ``digest_function`` field.

    Where the field is unset, the length of a hash decides among the functions that REAPI tells by
    it (GEN-06, GEN-07); where there is no hash either, it is the first one. Raises InvalidRequest,
    naming what is offered, for any other function (GEN-08).
    """
    names = ", ".join(function.name for function in offered)
    if number != reapi.DigestFunction.UNKNOWN:
        for function in offered:
            if number == function.number:
                return function
        raise InvalidRequest(f"digest function {_name(number)} is not offered; there are {names}")
    if hash_length is None:
        return offered[0]
    for function in offered:
        if function.told_by_length and hash_length == function.hash_length:
            return function
    raise InvalidRequest(
        f"digest_function is not set, and a hash of {hash_length} digits tells none of those "
        f"that are offered ({names})"
    )


def check_lengths(function: DigestFunction, hashes: Iterable[str]) -> None:
    """Raise InvalidRequest unless every hash of a request has the length of `function` (GEN-02)."""
    for hash_ in hashes:
        if len(hash_) != function.hash_length:
            raise InvalidRequest(
                f"{hash_!r} is not a {function.name} hash, which all digests of the request "
                f"have to be: expected {function.hash_length} digits"
            )


def _name(number: int) -> str:
    try:
        return reapi.DigestFunction.Value.Name(number)  # type: ignore[arg-type] # checked here
    except ValueError:
        return str(number)
