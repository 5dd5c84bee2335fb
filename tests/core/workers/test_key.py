"""What makes two actions share a worker, and what keeps them apart (PWK-11, PWK-12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest

from stoker.action import LoadedAction
from stoker.digest import SHA256
from stoker.storage.input_tree import InputTree
from stoker.workers.key import WorkerKey
from stoker.workers.plan import Planner, WorkerPlan
from stoker.workers.settings import WorkerRule, WorkerSettings

from .actions import ASKED, PROTOCOLS, TREE, a_tree, an_action, planned
from .trees import tree_of


def with_tool(**changes: Any) -> InputTree:
    tool = TREE.files["bin/tool"]._replace(**changes)
    return tree_of({**TREE.files, "bin/tool": tool})


def with_environment(**variables: str) -> LoadedAction:
    action = an_action()
    for name, value in variables.items():
        action.command.environment_variables.add(name=name, value=value)
    return action


def under(rule: WorkerRule, platform: Mapping[str, str] = ASKED) -> WorkerPlan:
    return planned(an_action(platform=platform), settings=WorkerSettings(rules=(rule,)))


def test_equal_actions_share_a_key_and_sources_do_not_matter() -> None:
    other = planned(an_action(["bin/tool", "@more"]), a_tree("more", "x/b", tools=["bin/tool"]))
    key = planned(an_action()).key
    assert key == other.key
    assert hash(key) == hash(other.key)
    assert key.difference(other.key) == ()


OTHERS: Mapping[str, Sequence[WorkerPlan]] = {
    "namespace": [planned(replace(an_action(), namespace="other"))],
    "principal": [
        planned(
            replace(an_action(), principal="alice"), settings=WorkerSettings(separate_clients=True)
        )
    ],
    "silo": [planned(an_action(platform={**ASKED, "cache-silo-key": "s"}))],
    "client_key": [planned(an_action(platform={"persistentWorkerKey": "other"}))],
    "platform": [planned(an_action(platform={**ASKED, "OSFamily": "linux"}))],
    # WORKERS 8.15: an argument of the target's own at start-up means no reuse, and is named.
    "argv": [
        planned(an_action(["bin/tool", "--target=//a", "@flags"])),
        under(WorkerRule(extra_flags=("--debug",))),
    ],
    "environment": [planned(with_environment(A="1"))],
    "protocol": [under(WorkerRule(protocol="json"))],
    "mode": [
        under(WorkerRule(multiplex=True)),
        under(WorkerRule(multiplex=True, multiplex_sandboxing=True)),
    ],
    "surroundings": [planned(an_action()).within("sha256:another")],
    # WORKERS 8.2, WORKERS 8.3: whatever of the tool changes, and whatever key the client sends.
    "tools": [
        planned(an_action(), with_tool(digest=SHA256.digest(b"new"))),
        planned(an_action(), with_tool(is_executable=True)),
        planned(an_action(), a_tree("flags", tools=["bin/tool", "bin/more"])),
        planned(an_action(), tree_of(TREE.files, {"alias": "bin/tool"})),
        planned(an_action(), tree_of(TREE.files, {"alias": "bin"})),
        planned(an_action(), a_tree("flags", "bin/tool")),  # nothing is marked any more
    ],
}


@pytest.mark.parametrize(
    ("component", "number"),
    [(component, number) for component, plans in OTHERS.items() for number in range(len(plans))],
)
def test_each_component_by_itself_makes_another_key(component: str, number: int) -> None:
    key, other = planned(an_action()).key, OTHERS[component][number].key
    assert key != other
    assert key.difference(other) == other.difference(key) == (component,)


def test_clients_share_workers_unless_it_is_said() -> None:  # PWK-11
    alice, bob = (replace(an_action(), principal=name) for name in ("alice", "bob"))
    assert planned(alice).key == planned(bob).key
    planner = Planner(PROTOCOLS, WorkerSettings(separate_clients=True))
    plans = [planner.plan(action, TREE) for action in (alice, bob, alice)]
    names = [plan.key.principal for plan in plans if isinstance(plan, WorkerPlan)]
    assert names == ["alice", "bob", "alice"]


def test_every_component_was_tried() -> None:
    # From another directory the same words mean other files.
    names = {field.name for field in fields(WorkerKey)}
    assert names == {*OTHERS, "working_directory"}


@pytest.mark.parametrize("name", ["cache-silo-key", "persistentWorkerKey"])
def test_several_values_are_not_one(name: str) -> None:
    keys = {
        planned(replace(an_action(), platform={"supports-workers": ("1",), name: values})).key
        for values in [("a", "b"), ("a, b",), ("a",)]
    }
    assert len(keys) == 3


def test_the_working_directory_counts() -> None:
    tree = a_tree("flags", "w/flags", "w/bin/tool", tools=["bin/tool"])
    top = planned(an_action(["/bin/tool", "@flags"]), tree).key
    below = planned(an_action(["/bin/tool", "@flags"], working_directory="w"), tree).key
    assert top.difference(below) == ("working_directory",)


# WORKERS 8.3: the same key of the client for two versions of an unmarked tool.
@pytest.mark.parametrize("changed", ["bin/tool", "bin/tool.runfiles/x", "jdk/lib"])
def test_an_unmarked_tool_that_changes_is_another(changed: str) -> None:
    settings = WorkerSettings(rules=(WorkerRule(tools=("jdk/*",)),))
    tree = a_tree("flags", "src/a", "bin/tool", "bin/tool.runfiles/x", "jdk/lib")
    edited = {**tree.files, changed: tree.files[changed]._replace(digest=SHA256.digest(b"new"))}
    sources = {**tree.files, "src/a": tree.files["src/a"]._replace(digest=SHA256.digest(b"new"))}
    key = planned(an_action(), tree, settings).key
    assert key.difference(planned(an_action(), tree_of(edited), settings).key) == ("tools",)
    assert key == planned(an_action(), tree_of(sources), settings).key


def test_a_mnemonic_does_not_keep_workers_apart() -> None:
    key = planned(an_action()).key
    assert planned(replace(an_action(), mnemonic="Other")).key == key
    assert planned(an_action(platform={**ASKED, "worker-key-mnemonic": "Other"})).key == key


# WORKERS 8.5
def test_the_environment_is_the_commands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_SECRET", "s")
    assert planned(an_action()).key.environment == ()
    one, two = with_environment(A="1", B="2"), with_environment(B="2", A="1")
    assert planned(one).key == planned(two).key
    assert planned(one).key.environment == (("A", "1"), ("B", "2"))
