"""The operator's rules: which counts, and what each of their settings does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from stoker.workers.key import Mode
from stoker.workers.plan import WorkerPlan, WorkerTerms, plan_worker
from stoker.workers.rules import find_rule, rules_never_reached
from stoker.workers.settings import WorkerRule, WorkerSettings

from .actions import ASKED, PROTOCOLS, TREE, an_action, planned, refused

UNASKED: Mapping[str, str] = {}


def under(*rules: WorkerRule, platform: Mapping[str, str] = ASKED, **settings: Any) -> WorkerPlan:
    return planned(an_action(platform=platform), settings=WorkerSettings(rules=rules, **settings))


@pytest.mark.parametrize(
    ("mnemonics", "programs", "fits"),
    [
        ((), (), True),
        (("Tool/Run",), (), True),
        (("Tool*",), ("*/tool",), True),
        (("Javac", "T[a-p]ol*"), ("x", "bin/????"), True),
        (("tool*",), (), False),
        (("Tool",), (), False),
        (("Tool*",), ("*/javac",), False),
        (("Javac",), ("*/tool",), False),
        ((), ("tool",), False),
    ],
)
def test_which_actions_a_rule_fits(
    mnemonics: tuple[str, ...],
    programs: tuple[str, ...],
    fits: bool,
) -> None:
    plan = under(WorkerRule(mnemonics=mnemonics, programs=programs, verbosity=10))
    assert plan.verbosity == (10 if fits else 0)


def test_the_first_rule_that_fits_counts_alone() -> None:
    rules = (
        WorkerRule(mnemonics=("Javac",), verbosity=1),
        WorkerRule(mnemonics=("Tool*",), cancellation=True),
        WorkerRule(verbosity=3, multiplex=True),
    )
    plan = under(*rules)
    assert (plan.cancellable, plan.verbosity, plan.key.mode) == (True, 0, Mode.SINGLEPLEX)
    assert find_rule((), "Javac", "x") == WorkerRule()


def test_whether_a_worker_is_used() -> None:
    always = WorkerSettings(rules=(WorkerRule(use="always"),))
    never = WorkerSettings(rules=(WorkerRule(use="never"),))
    asked, unasked = an_action(), an_action(platform=UNASKED)
    assert planned(unasked, settings=always).startup == ("bin/tool",)
    assert "no argument names a flag file" in refused(
        an_action(["bin/tool"], platform=UNASKED), settings=always
    )
    assert "configuration says never" in refused(asked, settings=never)
    assert plan_worker(unasked, TREE, PROTOCOLS, never) is None
    # The action's own word counts first.
    declined = an_action(platform={"supports-workers": "0"})
    assert plan_worker(declined, TREE, PROTOCOLS, always) is None


# WORKERS 8.1: the operator can say what clients before Bazel 9 cannot.
def test_what_the_action_does_not_say_the_rule_does() -> None:
    rule = WorkerRule(protocol="json", multiplex=True, multiplex_sandboxing=True, cancellation=True)
    plan = under(rule)
    assert plan.protocol == plan.key.protocol == "json"
    assert (plan.key.mode, plan.cancellable) == (Mode.SANDBOXED_MULTIPLEX, True)


def test_what_the_action_says_counts_before_the_rule() -> None:
    rule = WorkerRule(protocol="json", multiplex=True, multiplex_sandboxing=True, cancellation=True)
    properties = {
        "persistentWorkerProtocol": "proto",
        "supports-multiplex-sandboxing": "0",
        "supports-worker-cancellation": "0",
    }
    plan = under(rule, platform=ASKED | properties)
    assert (plan.protocol, plan.key.mode, plan.cancellable) == ("proto", Mode.MULTIPLEX, False)
    plan = under(rule, platform={**ASKED, "supports-multiplex-workers": "0"})
    assert plan.key.mode is Mode.SINGLEPLEX
    rule = WorkerRule(multiplex=False)
    assert under(rule, platform={**ASKED, "persistentWorkerMultiplex": "1"}).key.mode is (
        Mode.MULTIPLEX
    )


def test_a_protocol_of_a_rule_that_is_not_offered_is_named() -> None:
    settings = WorkerSettings(rules=(WorkerRule(protocol="xml"),))
    assert "worker protocol 'xml' is not offered" in refused(an_action(), settings=settings)


def test_extra_flags_come_last() -> None:
    # Launchers that read leading flags for themselves break on any other place.
    plan = under(WorkerRule(extra_flags=("--debug", "-x")))
    assert plan.key.argv == ("bin/tool", "--persistent_worker", "--debug", "-x")
    assert plan.startup == ("bin/tool",)


def test_containers_may_be_kept_by_rule() -> None:
    platform = {**ASKED, "container-image": "image"}
    assert under(WorkerRule(keep_containers=True), platform=platform).key.mode is Mode.SINGLEPLEX


def test_containers_may_be_kept_or_not_by_strategy() -> None:  # PWK-03
    action = an_action(platform={**ASKED, "container-image": "image"})
    kept = plan_worker(action, TREE, PROTOCOLS, keeps_containers=True)
    assert isinstance(kept, WorkerPlan)
    by_rule = WorkerSettings(rules=(WorkerRule(keep_containers=True),))
    refused = plan_worker(action, TREE, PROTOCOLS, by_rule, keeps_containers=False)
    assert isinstance(refused, str)
    assert "never kept" in refused


def test_terms_are_those_of_the_settings_unless_the_rule_has_its_own() -> None:
    settings: dict[str, Any] = {
        "max_workers_per_key": 2,
        "max_workers_per_mnemonic": 3,
        "max_requests": 100,
        "max_requests_in_flight": 5,
    }
    multiplex = {**ASKED, "persistentWorkerMultiplex": "1"}
    general = WorkerTerms(**settings)
    assert under(platform=multiplex, **settings).terms == general
    assert under(**settings).terms == replace(general, max_requests_in_flight=1)
    own: dict[str, Any] = {
        "max_workers_per_key": 1,
        "max_workers_per_mnemonic": 7,
        "max_requests": 9,
        "max_requests_in_flight": 2,
        "high_priority": True,
    }
    assert under(WorkerRule(**own), platform=multiplex, **settings).terms == WorkerTerms(**own)


# PWK-19
def test_a_multiplex_worker_that_is_to_have_one_request_is_none() -> None:
    multiplex = {**ASKED, "persistentWorkerMultiplex": "1", "supports-multiplex-sandboxing": "1"}
    plan = under(WorkerRule(max_requests_in_flight=1), platform=multiplex)
    assert (plan.key.mode, plan.terms.max_requests_in_flight) == (Mode.SINGLEPLEX, 1)


@pytest.mark.parametrize(
    ("rules", "unreached"),
    [
        ([WorkerRule(), WorkerRule(mnemonics=("A",))], [(1, 0)]),
        ([WorkerRule(mnemonics=("*",)), WorkerRule()], [(1, 0)]),
        ([WorkerRule(mnemonics=("A*", "B")), WorkerRule(mnemonics=("B", "A1"))], [(1, 0)]),
        ([WorkerRule(programs=("x",)), WorkerRule(mnemonics=("A",), programs=("x",))], [(1, 0)]),
        ([WorkerRule(mnemonics=("A",)), WorkerRule(), WorkerRule()], [(2, 1)]),
        ([WorkerRule(mnemonics=("A",)), WorkerRule()], []),
        ([WorkerRule(mnemonics=("A",)), WorkerRule(mnemonics=("A*",))], []),
        ([WorkerRule(mnemonics=("A?",)), WorkerRule(mnemonics=("A*",))], []),
        ([WorkerRule(mnemonics=("A",), programs=("x",)), WorkerRule(mnemonics=("A",))], []),
    ],
)
def test_rules_that_never_count_are_found(
    rules: list[WorkerRule], unreached: list[tuple[int, int]]
) -> None:
    assert list(rules_never_reached(rules)) == unreached
