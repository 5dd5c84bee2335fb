"""Which executor satisfies which platform. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stoker.action import Platform

Offer = Mapping[str, tuple[str, ...]]
"""What an executor declares: a property's name to the values that it satisfies; ``*`` is any."""

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
    """The part of `platform` that an executor has to offer."""
    return {name: values for name, values in platform.items() if name not in UNROUTED}


def satisfies(offer: Offer, required: Platform) -> bool:
    """Whether an executor with `offer` can run what needs `required`."""
    return not any(True for _ in differences(offer, required))


def differences(offer: Offer, required: Platform) -> Iterable[str]:
    """What keeps an executor with `offer` from running what needs `required`, in words."""
    for name, values in required.items():
        offered = offer.get(name, ())
        if "*" in offered:
            continue
        if lacking := [value for value in values if value not in offered]:
            has = f"offers {', '.join(offered)}" if offered else "does not have that property"
            yield f"wants {name}={','.join(lacking)}, {has}"
