"""Which executor satisfies which platform. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, get_args

from stoker.action import Platform
from stoker.errors import InvalidRequest
from stoker.resources import RESOURCE_PROPERTIES, Capacity, Request

PropertyKind = Literal["one of", "exact", "at least", "consumed", "pattern", "ignored"]
"""How a property that an action asks for is held against what an executor declares.

- ``one of``: each value asked for is among those declared; ``*`` among those is any.
- ``exact``: the values are the same; an executor that declares the property takes no action that
  does not ask for it.
- ``at least``: both are numbers, and the executor's is as large.
- ``consumed``: so too, and what runs at once may not ask for more together.
- ``pattern``: each value asked for fits one that is declared, with ``*`` and ``?`` as in names of
  files; without the digest of an image, too.
- ``ignored``: it does not matter.
"""

PROPERTY_KINDS: tuple[PropertyKind, ...] = get_args(PropertyKind)
NUMERIC_KINDS: frozenset[PropertyKind] = frozenset({"at least", "consumed"})

Amounts = tuple[tuple[str, int], ...]
"""Consumed properties by name, and thousandths of what is asked for."""

_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,3})?")
_IMAGE_DIGEST = re.compile(r"@[a-z0-9]+:[0-9a-fA-F]+$")


UNROUTED = frozenset(
    {
        "persistentWorkerKey",
        "persistentWorkerProtocol",
        "persistentWorkerMultiplex",
        "persistent-workers",
        "supports-workers",
        "supports-multiplex-workers",
        "supports-multiplex-sandboxing",
        "supports-worker-cancellation",
        "requires-worker-protocol",
        "worker-key-mnemonic",
        "cache-silo-key",
        "dockerReuse",
    }
)
"""Properties that say how to run an action, not where: a key is unlike for every tool, so that
matching by it would leave the queue of each without an executor."""

DEFAULT_KINDS: Mapping[str, PropertyKind] = {
    **dict.fromkeys(UNROUTED, "ignored"),
    "container-image": "pattern",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """What an executor declares."""

    properties: Mapping[str, tuple[str, ...]]
    """A property's name to the values that it satisfies; ``*`` is any."""
    capacity: Capacity


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an action needs of an executor."""

    platform: Platform
    """What is held against the executor's values."""
    request: Request
    amounts: Amounts


def parse_number(text: str) -> int:
    """Thousandths of the number that `text` is. Raises ValueError for any other text."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no number")
    whole, _, fraction = text.partition(".")
    return int(whole) * 1000 + int(fraction.ljust(3, "0"))


def declared_number(values: Collection[str]) -> int:
    """The number that an executor declares, in thousandths; 0 where it declares none."""
    return max(map(parse_number, values), default=0)


@dataclass(frozen=True, slots=True)
class Matching:
    """The kinds of properties, and what follows of them."""

    declared_kinds: Mapping[str, PropertyKind] = field(default_factory=dict)
    """By name; they take the place of the default kinds."""

    def kind(self, name: str) -> PropertyKind:
        """The kind of a property; ``one of`` for what nobody has named."""
        return self.declared_kinds.get(name) or DEFAULT_KINDS.get(name, "one of")

    def requirements(self, platform: Platform, request: Request) -> Requirements:
        """What `platform`, which asks for `request`, needs.

        Raises InvalidRequest for what should be a number and is none.
        """
        routed = {
            name: values
            for name, values in platform.items()
            if name not in RESOURCE_PROPERTIES and self.kind(name) != "ignored"
        }
        numbers = {n: _asked_number(n, v) for n, v in routed.items() if self._is_number(n)}
        consumed = ((n, amount) for n, amount in numbers.items() if self.kind(n) == "consumed")
        return Requirements(routed, request, tuple(sorted(consumed)))

    def amounts(self, offer: Offer) -> dict[str, int]:
        """What an executor with `offer` has of consumed properties, in thousandths."""
        return {
            name: declared_number(values)
            for name, values in offer.properties.items()
            if self.kind(name) == "consumed"
        }

    def satisfies(self, offer: Offer, needs: Requirements) -> bool:
        """Whether an executor with `offer` can ever run what needs `needs`."""
        return not any(True for _ in self.differences(offer, needs))

    def differences(self, offer: Offer, needs: Requirements) -> Iterable[str]:
        """What keeps an executor with `offer` from running what needs `needs`, in words."""
        yield from offer.capacity.shortfalls(needs.request)
        for name, values in needs.platform.items():
            lacking = _LACKING[self.kind(name)](values, offer.properties.get(name, ()))
            if lacking:
                yield f"wants {name}={','.join(lacking)}, {_in_words(offer, name)}"
        for name in offer.properties:
            if self.kind(name) == "exact" and name not in needs.platform:
                yield f"does not ask for {name}, {_in_words(offer, name)}"

    def _is_number(self, name: str) -> bool:
        return self.kind(name) in NUMERIC_KINDS


def _asked_number(name: str, values: Iterable[str]) -> int:
    try:
        return max(map(parse_number, values))
    except ValueError:
        raise InvalidRequest(
            f"platform property {name}={','.join(values)!r}: expected a number such as 2 or 0.5"
        ) from None


def _in_words(offer: Offer, name: str) -> str:
    offered = offer.properties.get(name)
    return f"offers {', '.join(offered)}" if offered else "does not have that property"


# What of the values that are asked for an executor's values do not satisfy.
_Lacking = Callable[[tuple[str, ...], tuple[str, ...]], Collection[str]]


def _not_among(asked: tuple[str, ...], offered: tuple[str, ...]) -> Collection[str]:
    return () if "*" in offered else [value for value in asked if value not in offered]


def _not_the_same(asked: tuple[str, ...], offered: tuple[str, ...]) -> Collection[str]:
    return () if set(asked) == set(offered) else asked


def _too_large(asked: tuple[str, ...], offered: tuple[str, ...]) -> Collection[str]:
    most = declared_number(offered)
    return () if offered and max(map(parse_number, asked)) <= most else asked


def _fitting_none(asked: tuple[str, ...], offered: tuple[str, ...]) -> Collection[str]:
    return [value for value in asked if not any(_fits(value, pattern) for pattern in offered)]


def _fits(value: str, pattern: str) -> bool:
    # An image is another one after every build of it, and runs in the same places.
    return (
        value == pattern
        or fnmatchcase(value, pattern)
        or fnmatchcase(_IMAGE_DIGEST.sub("", value), pattern)
    )


def _nothing(_asked: tuple[str, ...], _offered: tuple[str, ...]) -> Collection[str]:
    return ()


_LACKING: Mapping[PropertyKind, _Lacking] = {
    "one of": _not_among,
    "exact": _not_the_same,
    "at least": _too_large,
    "consumed": _too_large,
    "pattern": _fitting_none,
    "ignored": _nothing,
}
