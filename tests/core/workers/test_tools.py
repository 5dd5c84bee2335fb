"""Which inputs are the tool's, and who says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given

from stoker.digest import Digest
from stoker.storage.input_tree import InputDirectory, InputTree
from stoker.workers.plan import WorkerPlan
from stoker.workers.settings import WorkerRule, WorkerSettings
from stoker.workers.tools import find_tools

from .actions import a_tree, an_action, planned
from .random_trees import FOLDERS, end_of, made
from .trees import tree_of


def links(plan: WorkerPlan) -> Mapping[str, str]:
    return plan.tool_tree.symlinks


def test_marked_inputs_are_the_tool() -> None:
    tree = a_tree("flags", "bin/tool.runfiles/x", tools=["bin/tool", "lib/b"])
    plan = planned(an_action(), tree)
    assert plan.tools_by == "marked"
    assert plan.tools == {"bin/tool", "lib/b"}
    assert plan.tool_tree.files["lib/b"] == tree.files["lib/b"]


def test_marks_count_before_patterns() -> None:
    settings = WorkerSettings(rules=(WorkerRule(tools=("src/*",)),))
    plan = planned(an_action(), a_tree("flags", "src/a", tools=["bin/tool"]), settings)
    assert plan.tools_by == "marked"
    assert plan.tools == {"bin/tool"}


def test_links_that_lead_to_marked_files_are_the_tools() -> None:
    symlinks = {
        "alias": "bin/tool",
        "lib/up": "../bin",  # a folder that has marked files
        "chain": "alias",
        "src/link": "a",
        "src/out": "../../tool",
        "absolute": "/bin/tool",
        "dangling": "bin/none",
        "circle": "circle",
    }
    tree = a_tree("flags", "src/a", tools=["bin/tool"], symlinks=symlinks)
    plan = planned(an_action(), tree)
    assert plan.tools == {"bin/tool"}
    assert links(plan) == {name: symlinks[name] for name in ("alias", "chain", "lib/up")}


@pytest.mark.parametrize("marked", [True, False])
def test_a_flag_file_is_no_tool(marked: bool) -> None:
    files = ["bin/tool", "bin/sub/flags", "bin/sub/x"]
    tree = a_tree(*files, tools=files if marked else ())
    plan = planned(an_action(["bin/tool", "--all=bin", "@bin/sub/flags"]), tree)
    assert plan.tools == {"bin/tool", "bin/sub/x"}


def test_an_unmarked_tool_is_inferred_from_what_starts_it() -> None:
    arguments = ["bin/tool", "-cp", "lib/a.jar:lib/b.jar", "--plugins=plugins", "@flags", ".", "-x"]
    tools = {
        "w/bin/tool",
        "w/bin/tool.runfiles/lib/x",
        "w/bin/tool.runfiles_manifest",
        "w/lib/a.jar",
        "w/lib/b.jar",
        "w/plugins/deep/p",
    }
    tree = a_tree(*tools, "w/flags", "w/src/a", "w/bin/toolbox", "bin/tool", "lib/a.jar")
    plan = planned(an_action(arguments, working_directory="w"), tree)
    assert plan.tools_by == "inferred"
    assert plan.tools == tools


@pytest.mark.parametrize("argument", ["--root=.", "--root=..", "w", "--root=../w/../", "/w"])
def test_what_names_all_names_no_tool(argument: str) -> None:
    tree = a_tree("w/bin/tool", "w/flags", "w/src/a", "up")
    plan = planned(an_action(["bin/tool", argument, "@flags"], working_directory="w"), tree)
    assert plan.tools == {"w/bin/tool"}


def test_a_program_of_the_machine_has_the_files_that_it_is_given() -> None:
    tree = a_tree("flags", "tool.py", "src/a")
    assert planned(an_action(["/usr/bin/python3", "tool.py", "@flags"]), tree).tools == {"tool.py"}
    assert planned(an_action(["/usr/bin/javac", "@flags"]), tree).tools == frozenset()


def test_the_file_behind_a_link_is_the_tool_and_so_is_the_link() -> None:
    symlinks = {"bin": "real", "real/tool": "../opt/tool-1"}
    plan = planned(an_action(), a_tree("flags", "opt/tool-1", "opt/tool-2", symlinks=symlinks))
    assert plan.tools == {"opt/tool-1"}
    assert links(plan) == symlinks


def test_what_links_in_runfiles_lead_to_is_the_tools() -> None:
    symlinks = {
        "bin/tool.runfiles/main.py": "../../src/main.py",
        "bin/tool.runfiles/deep/lib": "../../../lib",
        "bin/tool.runfiles/near": "deep/lib/x",
        "bin/tool.runfiles/all": "../..",
        "lib/more": "../more",
    }
    tree = a_tree("flags", "bin/tool", "src/main.py", "src/a", "lib/x", "more/y", symlinks=symlinks)
    plan = planned(an_action(), tree)
    assert plan.tools == {"bin/tool", "src/main.py", "lib/x", "more/y"}
    assert links(plan) == symlinks


def test_patterns_find_what_the_command_line_does_not_name() -> None:
    settings = WorkerSettings(rules=(WorkerRule(tools=("jdk/*", "*.so", "alias")),))
    symlinks = {"alias": "opt/x", "other": "opt/y", "jdk/link": "lib/modules"}
    tools = ["bin/tool", "jdk/bin/java", "jdk/lib/modules", "lib/deep/a.so", "opt/x"]
    tree = a_tree("flags", "src/a", "opt/y", *tools, symlinks=symlinks)
    plan = planned(an_action(), tree, settings)
    assert plan.tools_by == "patterns"
    assert plan.tools == {*tools}
    assert links(plan) == {"alias": "opt/x", "jdk/link": "lib/modules"}


def test_a_folder_of_links_to_the_tool_is_not_the_tools() -> None:
    symlinks = {"a/x/link": "../y/tool", "to-link": "a/x", "to-tool": "a/y"}
    plan = planned(an_action(), a_tree("flags", tools=["a/y/tool"], symlinks=symlinks))
    assert links(plan).keys() == {"a/x/link", "to-tool"}


@given(first=FOLDERS, second=FOLDERS)
def test_marked_tools_are_those_of_a_naive_spelling_out(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    known: dict[Digest, InputDirectory] = {}
    for folder in ({"x": first, "y": second}, {"x": first, "y": first, **second}, first):
        tree = InputTree(made(folder, known))
        files = {path for path, file in tree.files.items() if file.is_tool}
        if files:
            holding = files | {path[:i] for path in files for i, c in enumerate(path) if c == "/"}
            symlinks = {
                path: text
                for path, text in tree.symlinks.items()
                if end_of(tree, path) in {*holding, ""}
            }
            found = find_tools(tree, "", ["x"])
            assert found.tree.files.keys() == files
            assert found.tree.symlinks == symlinks


def sharing(tree: InputTree, *, twice: bool) -> InputTree:
    """`tree` again, at two places: what one is found in has been looked through for the other."""
    root = tree.root
    return InputTree(type(root)(root.digest, {}, {"a": root} | ({"b": root} if twice else {}), {}))


def test_patterns_tell_equal_folders_at_two_places_apart() -> None:
    settings = WorkerSettings(rules=(WorkerRule(tools=("b/bin/*",)),))
    tree = a_tree("bin/tool", "flags")
    action = an_action(["b/none", "@a/flags"])
    assert planned(action, sharing(tree, twice=True), settings).tools == {"b/bin/tool"}
    assert planned(action, sharing(tree, twice=False), settings).tools == frozenset()


def test_the_tools_can_be_laid_out_by_themselves() -> None:
    tree = a_tree("flags", "src/a", tools=["bin/tool", "lib/b"], symlinks={"alias": "bin/tool"})
    expected = tree_of({path: tree.files[path] for path in ("bin/tool", "lib/b")}, tree.symlinks)
    plan = planned(an_action(), tree)
    assert plan.tool_tree.files == expected.files
    assert plan.tool_tree.symlinks == expected.symlinks
    assert list(plan.tool_tree.directories) == list(expected.directories)
