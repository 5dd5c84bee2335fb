"""Which actions can use a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from stoker.digest import SHA256
from stoker.storage.input_tree import InputDirectory, InputTree
from stoker.workers.plan import Planner, plan_worker
from stoker.workers.settings import WorkerRule, WorkerSettings

from .actions import ASKED, PROTOCOLS, TREE, a_tree, an_action, planned, refused


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["bin/tool", "x"], "no argument names a flag file"),
        (["bin/tool", "@"], "no argument names a flag file"),
        (["@flags"], "no argument is left to start a worker with"),
        (["bin/tool", "@none"], "flag file 'none' is not among the inputs"),
        (["bin/tool", "@flags", "@none"], "flag file 'none' is not among the inputs"),
        (["bin/tool", "@src"], "flag file 'src' is not among the inputs"),
        (["bin/tool", "@/flags"], "flag file '/flags' is not among the inputs"),
        (["bin/tool", "@../flags"], "flag file '../flags' is not among"),
    ],
)
def test_who_cannot_have_a_worker_is_told_why(arguments: Sequence[str], reason: str) -> None:
    assert reason in refused(an_action(arguments))


def test_no_protocol_may_be_on_offer() -> None:
    assert plan_worker(an_action(), TREE, ()) == (
        "worker protocol 'proto' is not offered; offered are: none"
    )


def test_flag_files_that_are_not_expanded_need_not_be_there() -> None:
    arguments = ["bin/tool", "--flagfile=none", "@@none", "@repo//:none"]
    assert planned(an_action(arguments)).flag_files == tuple(arguments[1:])


def test_flag_files_are_looked_for_from_the_working_directory() -> None:
    tree = a_tree("w/flags", "more", tools=["w/tool"], symlinks={"w/link": "../more"})
    planned(an_action(["tool", "@flags", "@link"], working_directory="w"), tree)
    assert "'flags' is not among" in refused(an_action(["w/tool", "@flags"]), tree)
    # A directory that only outputs bring about is one to look from as well.
    planned(an_action(["w/tool", "@../../more"], working_directory="out/x"), tree)


def test_a_tree_that_nobody_can_lay_out_is_no_matter_of_workers() -> None:
    directory = TREE.root
    for depth in range(5000):
        directory = InputDirectory(
            SHA256.digest(str(depth).encode()), TREE.root.files, {"d": directory}, {}
        )
    assert "more than 256 directories deep" in refused(an_action(), InputTree(directory))


def test_workers_are_named_by_what_there_is() -> None:
    named = {**ASKED, "worker-key-mnemonic": "Shared"}
    assert planned(an_action(platform=named)).name == "Shared"
    assert planned(an_action()).name == "Tool/Run"
    assert planned(replace(an_action(), mnemonic="")).name == "tool"


def test_a_command_that_is_known_is_planned_as_a_new_one() -> None:
    settings = WorkerSettings(rules=(WorkerRule(mnemonics=("Other",), use="never"),))
    planner = Planner(PROTOCOLS, settings)
    plain, other = an_action(), an_action(["bin/tool", "--x", "@flags"])
    actions = [
        plain,
        other,
        an_action(platform={}),
        an_action(platform=ASKED | {"requires-worker-protocol": "json"}),
        an_action(working_directory="src"),
        replace(plain, mnemonic="Other"),
        replace(plain, namespace="elsewhere"),
        an_action(["bin/tool", "@none"]),
    ]
    trees = [TREE, a_tree("flags", tools=["bin/tool", "bin/more"]), a_tree("x")]
    plans = [plan_worker(each, tree, PROTOCOLS, settings) for each in actions for tree in trees]
    for _ in range(2):
        assert [planner.plan(each, tree) for each in actions for tree in trees] == plans
    assert len({repr(plan) for plan in plans}) > len(actions)
