"""What a platform may wish of the sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker import spi
from stoker_sandbox_bubblewrap import wishes
from stoker_sandbox_bubblewrap.settings import BubblewrapSettings

OFF = BubblewrapSettings()
ASKABLE = BubblewrapSettings(network_by_property=True)
HOST = BubblewrapSettings(network="host")


@pytest.mark.parametrize(
    ("settings", "properties", "given"),
    [
        (OFF, {}, "off"),
        (OFF, {"dockerNetwork": ("off",)}, "off"),
        (OFF, {"sandbox-network": ("off",)}, "off"),
        (OFF, {"requires-network": ("0",)}, "off"),
        (ASKABLE, {}, "off"),
        (ASKABLE, {"dockerNetwork": ("standard",)}, "host"),
        (ASKABLE, {"sandbox-network": ("host",)}, "host"),
        (ASKABLE, {"requires-network": ("",)}, "host"),
        (ASKABLE, {"requires-network": ("1",), "block-network": ("1",)}, "off"),
        (HOST, {}, "host"),
        (HOST, {"dockerNetwork": ("standard",)}, "host"),
        (HOST, {"dockerNetwork": ("off",)}, "off"),
        (HOST, {"block-network": ("",)}, "off"),
        (HOST, {"block-network": ("false",)}, "host"),
    ],
)
def test_the_network(  # ISO-05
    settings: BubblewrapSettings, properties: wishes.Properties, given: str
) -> None:
    assert wishes.network(settings, properties) == given


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ({"dockerNetwork": ("standard",)}, "dockerNetwork=standard"),
        ({"sandbox-network": ("host",)}, "sandbox-network=host"),
        ({"requires-network": ("1",)}, "requires-network"),
        ({"dockerNetwork": ("bridge",)}, "dockerNetwork=bridge"),
    ],
)
def test_a_network_that_is_forbidden_is_refused_by_name(  # ISO-03
    properties: wishes.Properties, named: str
) -> None:
    with pytest.raises(spi.FailedPrecondition, match=named):
        wishes.network(OFF, properties)


def _spec(*inputs: str, root_changes: bool = False) -> spi.ProcessSpec:
    return spi.ProcessSpec(
        argv=("true",),
        environment={},
        root=Path("root"),
        temporary_directory=Path("temporary"),
        stderr=Path("stderr"),
        properties={"sandbox-inputs": inputs} if inputs else {},
        root_changes=root_changes,
    )


def test_the_overlay() -> None:
    always = BubblewrapSettings(inputs="overlay")
    assert not wishes.overlay(OFF, _spec())
    assert wishes.overlay(OFF, _spec("overlay"))
    assert wishes.overlay(always, _spec())
    assert not wishes.overlay(always, _spec(root_changes=True))
    assert not wishes.overlay(OFF, _spec("overlay", root_changes=True))


def test_an_overlay_that_the_server_relies_on_cannot_be_refused() -> None:
    with pytest.raises(spi.FailedPrecondition, match="sandbox-inputs=as-laid"):
        wishes.overlay(BubblewrapSettings(inputs="overlay"), _spec("as-laid"))
    with pytest.raises(spi.FailedPrecondition, match="sandbox-inputs=upside-down"):
        wishes.overlay(OFF, _spec("upside-down"))
