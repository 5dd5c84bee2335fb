"""What an action's platform may wish of its sandbox, and what it is given. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from stoker import spi
from stoker_sandbox_bubblewrap.settings import BubblewrapSettings, Network

Properties = Mapping[str, tuple[str, ...]]

NETWORK_NAMES = ("sandbox-network", "dockerNetwork")
"""Properties whose value says which network; clients know the second one."""
INPUTS_NAME = "sandbox-inputs"

_NETWORKS: Mapping[str, Network] = {"off": "off", "standard": "host", "host": "host"}
# Bazel's execution requirements, which come as properties with any value or none.
_TAGS: Mapping[str, Network] = {"block-network": "off", "requires-network": "host"}
_NO = frozenset({"0", "false", "no"})


def network(settings: BubblewrapSettings, properties: Properties) -> Network:
    """The network that the action gets (ISO-03, ISO-05). Who asks for none is always heard.

    Raises FailedPrecondition for one that the settings forbid, and for a value that is unknown.
    """
    wishes = _network_wishes(properties)
    if "off" in wishes.values():
        return "off"
    if not wishes or settings.network == "host":
        return settings.network
    if not settings.network_by_property:
        raise spi.FailedPrecondition(
            f"the platform asks for {next(iter(wishes))}, but this sandbox gives no network"
        )
    return "host"


def _network_wishes(properties: Properties) -> dict[str, Network]:
    wishes: dict[str, Network] = {}
    for name in NETWORK_NAMES:
        for value in properties.get(name, ()):
            if value not in _NETWORKS:
                raise spi.FailedPrecondition(f"{name}={value} is none of {', '.join(_NETWORKS)}")
            wishes[f"{name}={value}"] = _NETWORKS[value]
    for name, wish in _TAGS.items():
        if any(value.lower() not in _NO for value in properties.get(name, ())):
            wishes[name] = wish
    return wishes


def overlay(settings: BubblewrapSettings, spec: spi.ProcessSpec) -> bool:
    """Whether the process sees its root through an overlay.

    One whose root changes never does: what the server changes below an overlay need not be seen.
    Raises FailedPrecondition for a value that is unknown or forbidden.
    """
    wishes = spec.properties.get(INPUTS_NAME, ())
    for wish in wishes:
        _check_inputs_wish(settings, wish)
    return not spec.root_changes and (settings.inputs == "overlay" or "overlay" in wishes)


def _check_inputs_wish(settings: BubblewrapSettings, wish: str) -> None:
    allowed: tuple[Literal["as-laid", "overlay"], ...] = ("as-laid", "overlay")
    if wish not in allowed:
        raise spi.FailedPrecondition(f"{INPUTS_NAME}={wish} is none of {', '.join(allowed)}")
    if wish != "overlay" and settings.inputs == "overlay":
        # The server relies on it: the inputs are hard links to blobs.
        raise spi.FailedPrecondition(
            f"the platform asks for {INPUTS_NAME}={wish}, but this sandbox shows overlays only"
        )
