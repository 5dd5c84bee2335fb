"""Which executor satisfies which platform. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stoker.action import Platform
from stoker.resources import RESOURCE_PROPERTIES, Capacity, Request


@dataclass(frozen=True, slots=True)
class Offer:
    """What an executor declares."""

    properties: Mapping[str, tuple[str, ...]]
    """A property's name to the values that it satisfies; ``*`` is any."""
    capacity: Capacity


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
    }
)
"""Properties that say how to run an action, not where: a key is unlike for every tool, so that
matching by it would leave the queue of each without an executor."""


def requirements(platform: Platform) -> Platform:
    """The part of `platform` that an executor has to offer by its very values."""
    unmatched = UNROUTED | RESOURCE_PROPERTIES
    return {name: values for name, values in platform.items() if name not in unmatched}


def satisfies(offer: Offer, required: Platform, request: Request) -> bool:
    """Whether an executor with `offer` can ever run what needs `required` and `request`."""
    return not any(True for _ in differences(offer, required, request))


def differences(offer: Offer, required: Platform, request: Request) -> Iterable[str]:
    """What keeps an executor with `offer` from running what needs `required`, in words."""
    yield from offer.capacity.shortfalls(request)
    for name, values in required.items():
        offered = offer.properties.get(name, ())
        if "*" in offered:
            continue
        if lacking := [value for value in values if value not in offered]:
            has = f"offers {', '.join(offered)}" if offered else "does not have that property"
            yield f"wants {name}={','.join(lacking)}, {has}"
