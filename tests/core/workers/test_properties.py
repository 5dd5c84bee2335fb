"""What actions say of workers by their platforms, in all dialects (PWK-01, PWK-02)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stoker.workers.key import Mode
from stoker.workers.plan import plan_worker

from .actions import ASKED, PROTOCOLS, TREE, an_action, planned, refused

SINGLE, MULTIPLEX, SANDBOXED = Mode.SINGLEPLEX, Mode.MULTIPLEX, Mode.SANDBOXED_MULTIPLEX


@pytest.mark.parametrize(
    "platform",
    [
        {},
        {"OSFamily": "linux"},
        {"persistentWorkerKey": ""},
        {"supports-workers": "0"},
        {"supports-workers": ""},
        {"persistent-workers": "false"},
        {"supports-workers": "0", "persistent-workers": "False"},
        # To say how a worker would be is not to ask for one.
        {"persistentWorkerProtocol": "json", "supports-multiplex-workers": "1"},
    ],
    ids=str,
)
def test_who_does_not_ask_gets_no_plan(platform: dict[str, str]) -> None:
    assert plan_worker(an_action(platform=platform), TREE, PROTOCOLS) is None


@pytest.mark.parametrize(
    "platform",
    [
        {"persistentWorkerKey": "any"},
        {"persistentWorkerKey": "0"},
        {"supports-workers": "1"},
        {"supports-workers": "true"},
        {"persistent-workers": "true"},
        {"persistent-workers": "True"},
        {"persistentWorkerKey": "any", "supports-workers": "1", "persistent-workers": "1"},
    ],
    ids=str,
)
def test_any_dialect_asks(platform: dict[str, str]) -> None:  # PWK-01, PWK-02
    plan = planned(an_action(platform=platform))
    assert plan.startup == ("bin/tool",)
    assert plan.flag_files == ("@flags",)
    assert plan.key.argv == ("bin/tool", "--persistent_worker")
    assert (plan.protocol, plan.key.mode, plan.cancellable) == ("proto", SINGLE, False)
    assert plan.name == "Tool/Run"


# WORKERS 8.1: whoever wants JSON and gets protobuf sees no more than a hanging or dying tool.
@pytest.mark.parametrize("name", ["persistentWorkerProtocol", "requires-worker-protocol"])
def test_the_protocol_is_the_one_that_is_named(name: str) -> None:
    plan = planned(an_action(platform={**ASKED, name: "json"}))
    assert plan.protocol == plan.key.protocol == "json"
    assert planned(an_action(platform={**ASKED, name: ""})).protocol == "proto"


@pytest.mark.parametrize(
    ("properties", "mode"),
    [
        ({"persistentWorkerMultiplex": "1"}, MULTIPLEX),
        ({"persistentWorkerMultiplex": "True"}, MULTIPLEX),
        ({"supports-multiplex-workers": "1"}, MULTIPLEX),
        ({"supports-multiplex-workers": "0"}, SINGLE),
        ({"supports-multiplex-workers": "1", "supports-multiplex-sandboxing": "0"}, MULTIPLEX),
        ({"supports-multiplex-workers": "1", "supports-multiplex-sandboxing": "1"}, SANDBOXED),
        ({"persistentWorkerMultiplex": "1", "supports-multiplex-sandboxing": "true"}, SANDBOXED),
        ({"supports-multiplex-sandboxing": "1"}, SINGLE),  # PWK-19
    ],
    ids=str,
)
def test_the_mode(properties: dict[str, str], mode: Mode) -> None:
    plan = planned(an_action(platform=ASKED | properties))
    assert plan.key.mode is mode
    assert plan.terms.max_requests_in_flight == (1 if mode is SINGLE else 8)


@pytest.mark.parametrize(
    ("value", "heeded"), [("1", True), ("true", True), ("0", False), ("False", False), ("", False)]
)
def test_whether_cancel_requests_are_heeded(value: str, heeded: bool) -> None:
    platform = {**ASKED, "supports-worker-cancellation": value}
    assert planned(an_action(platform=platform)).cancellable is heeded


def test_the_name_and_the_silo() -> None:
    platform = {**ASKED, "worker-key-mnemonic": "Shared", "cache-silo-key": "s"}
    plan = planned(an_action(platform=platform))
    assert (plan.name, plan.key.silo) == ("Shared", "s")


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"supports-workers": "0"}, "persistentWorkerKey=abc and supports-workers=0 contradict"),
        ({"persistent-workers": "yes"}, "persistent-workers=yes is neither 1, true, 0 nor false"),
        (
            {"persistentWorkerProtocol": "json", "requires-worker-protocol": "proto"},
            "persistentWorkerProtocol=json and requires-worker-protocol=proto contradict",
        ),
        (
            {"persistentWorkerMultiplex": "1", "supports-multiplex-workers": "0"},
            "persistentWorkerMultiplex=1 and supports-multiplex-workers=0 contradict",
        ),
        ({"supports-multiplex-workers": "many"}, "supports-multiplex-workers=many is neither"),
        ({"supports-multiplex-sandboxing": "2"}, "supports-multiplex-sandboxing=2 is neither"),
        ({"supports-worker-cancellation": "-"}, "supports-worker-cancellation=- is neither"),
        # WORKERS 8.1: the mismatch is named.
        (
            {"persistentWorkerProtocol": "xml"},
            "worker protocol 'xml' is not offered; offered are: json, proto",
        ),
        ({"container-image": "docker://image"}, "container-image is set without dockerReuse=True"),
        ({"container-image": "docker://image", "dockerReuse": "False"}, "without dockerReuse"),
    ],
    ids=str,
)
def test_what_is_unclear_or_cannot_be_is_a_reason(properties: dict[str, str], reason: str) -> None:
    assert reason in refused(an_action(platform=ASKED | properties))


# PWK-03
@pytest.mark.parametrize("value", ["True", "true", "1"])
def test_a_container_may_be_kept_if_the_client_says_so(value: str) -> None:
    planned(an_action(platform={**ASKED, "container-image": "i", "dockerReuse": value}))


def test_values_that_contradict_each_other_under_one_name() -> None:
    values: dict[str, tuple[str, ...]] = {"supports-workers": ("0", "1")}
    assert "contradict each other" in refused(replace(an_action(), platform=values))
    values = {"supports-workers": ("1",), "requires-worker-protocol": ("json", "proto")}
    assert "contradict each other" in refused(replace(an_action(), platform=values))
