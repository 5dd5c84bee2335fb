"""Metadata: the headers and trailers of a call."""

import re
from collections.abc import Iterable, Iterator
from typing import overload

Pair = tuple[str, str | bytes]

_LEGAL_KEY = re.compile(r"[0-9a-z_.-]+")
_LEGAL_TEXT = re.compile(r"[\x20-\x7e]*")


class Metadata:
    """The pairs of key and value that came with a call, in their order.

    Keys are lower case and may repeat. The value of a key that ends in `-bin` is bytes, any
    other is text.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self._pairs = pairs if isinstance(pairs, tuple) else tuple(pairs)

    @overload
    def get(self, key: str) -> str | bytes | None: ...
    @overload
    def get(self, key: str, default: str | bytes) -> str | bytes: ...
    def get(self, key: str, default: str | bytes | None = None) -> str | bytes | None:
        """Return the first value of `key`, `default` when there is none."""
        return next((value for name, value in self._pairs if name == key), default)

    def get_all(self, key: str) -> list[str | bytes]:
        """Return every value of `key`, in order."""
        return [value for name, value in self._pairs if name == key]

    def __contains__(self, key: object) -> bool:
        return any(name == key for name, _ in self._pairs)

    def __iter__(self) -> Iterator[Pair]:
        return ((key, value) for key, value in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        # Values may be credentials: a representation that lands in a log names keys only.
        return f"Metadata({[key for key, _ in self._pairs]})"


def checked_pairs(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """Return `pairs` as they may be sent; ValueError or TypeError says what may not.

    gRPC refuses a whole batch for one illegal pair, and names none: so check before.
    """
    return tuple(_checked(key, value) for key, value in pairs)


def _checked(key: str, value: str | bytes) -> Pair:
    if not _LEGAL_KEY.fullmatch(key) or key.startswith("grpc-"):
        raise ValueError(f"metadata key {key!r} is not lower case ASCII, or is reserved for gRPC")
    if key.endswith("-bin") != isinstance(value, bytes):
        raise TypeError(f"metadata {key!r}: keys ending in -bin take bytes, all others text")
    if isinstance(value, str) and not _LEGAL_TEXT.fullmatch(value):
        raise ValueError(f"metadata {key!r} holds characters other than printable ASCII")
    return key, value
