"""Which actions can use a worker, with which tool, and as what request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from stoker.action import LoadedAction
from stoker.digest import SHA256
from stoker.errors import InputsMissing, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.worker_protocol_pb2 import WorkRequest
from stoker.storage.input_tree import InputFile, InputTree
from stoker.storage.memory import MemoryBlobStore
from stoker.workers.plan import WorkerPlan, plan_worker
from stoker.workers.requests import build_request

from .trees import tree_of
from .workshop import load

PROTOCOLS = ("proto", "json")
ASKED = {"persistentWorkerKey": "abc"}


def an_action(
    arguments: Sequence[str] = ("bin/tool", "@flags"),
    platform: Mapping[str, str] = ASKED,
    working_directory: str = "",
) -> LoadedAction:
    command = reapi.Command(arguments=arguments, working_directory=working_directory)
    return load(command, platform)


def a_tree(
    *paths: str, tools: Sequence[str] = (), symlinks: Mapping[str, str] | None = None
) -> InputTree:
    """A tree in which each file holds its own path."""
    files = {
        path: InputFile(path, SHA256.digest(path.encode()), False, path in tools, None, None)
        for path in sorted({*paths, *tools})
    }
    return tree_of(files, symlinks)


TREE = a_tree("flags", "src/a", tools=["bin/tool"])


def planned(action: LoadedAction, tree: InputTree = TREE) -> WorkerPlan:
    plan = plan_worker(action, tree, PROTOCOLS)
    assert isinstance(plan, WorkerPlan), plan
    return plan


@pytest.mark.parametrize(
    "platform",
    [{}, {"persistentWorkerKey": ""}, {"supports-workers": "0"}, {"OSFamily": "linux"}],
)
def test_who_does_not_ask_gets_no_plan(platform: dict[str, str]) -> None:
    assert plan_worker(an_action(platform=platform), TREE, PROTOCOLS) is None


# PWK-01, PWK-02
@pytest.mark.parametrize(
    ("platform", "protocol"),
    [
        ({"persistentWorkerKey": "k"}, "proto"),
        ({"persistentWorkerKey": "k", "persistentWorkerProtocol": "json"}, "json"),
        ({"supports-workers": "1"}, "proto"),
        ({"supports-workers": "1", "requires-worker-protocol": "json"}, "json"),
        ({"persistentWorkerKey": "k", "persistentWorkerMultiplex": "1"}, "proto"),  # PWK-19
        ({"persistentWorkerKey": "k", "container-image": "i", "dockerReuse": "True"}, "proto"),
    ],
)
def test_who_asks_gets_the_protocol_it_names(platform: dict[str, str], protocol: str) -> None:
    plan = planned(an_action(platform=platform))
    assert plan.protocol == plan.key.protocol == protocol
    assert plan.startup == ("bin/tool",)
    assert plan.flag_files == ("@flags",)
    assert plan.key.argv == ("bin/tool", "--persistent_worker")


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (an_action(["bin/tool", "x"]), "no argument names a flag file"),
        (an_action(["@flags"]), "no argument is left to start a worker with"),
        (an_action(["bin/tool", "@none"]), "flag file 'none' is not among the inputs"),
        (an_action(["bin/tool", "@/flags"]), "flag file '/flags' is not among the inputs"),
        (an_action(["bin/tool", "@../flags"]), "flag file '../flags' is not among"),
        (
            an_action(platform={**ASKED, "persistentWorkerProtocol": "xml"}),
            "worker protocol 'xml' is not offered; offered are: json, proto",
        ),
        (
            an_action(platform={**ASKED, "container-image": "docker://image"}),  # PWK-03
            "container-image is set without dockerReuse=True",
        ),
    ],
)
def test_who_cannot_have_a_worker_is_told_why(action: LoadedAction, reason: str) -> None:
    plan = plan_worker(action, TREE, PROTOCOLS)
    assert isinstance(plan, str)
    assert reason in plan


def test_marked_inputs_are_the_tool() -> None:
    tree = a_tree("flags", "bin/tool.runfiles/x", tools=["bin/tool", "lib/b"])
    assert planned(an_action(), tree).tools == {"bin/tool", "lib/b"}


def test_a_marked_flag_file_is_no_tool() -> None:
    assert planned(an_action(), a_tree(tools=["bin/tool", "flags"])).tools == {"bin/tool"}


def test_an_unmarked_tool_is_inferred_from_what_starts_it() -> None:
    arguments = ["bin/tool", "-cp", "lib/a.jar:lib/b.jar", "--plugins=plugins", "@flags", "."]
    tools = {
        "w/bin/tool",
        "w/bin/tool.runfiles/lib/x",
        "w/bin/tool.runfiles_manifest",
        "w/lib/a.jar",
        "w/lib/b.jar",
        "w/plugins/deep/p",
    }
    tree = a_tree(*tools, "w/flags", "w/src/a", "w/bin/toolbox", "bin/tool", "lib/a.jar")
    assert planned(an_action(arguments, working_directory="w"), tree).tools == tools


def test_the_file_behind_a_link_is_the_tool() -> None:
    symlinks = {"bin": "real", "real/tool": "../opt/tool-1"}
    tree = a_tree("flags", "opt/tool-1", "opt/tool-2", symlinks=symlinks)
    assert planned(an_action(), tree).tools == {"opt/tool-1"}


def test_equal_actions_share_a_key_and_sources_do_not_matter() -> None:
    other = planned(an_action(), a_tree("flags", "src/b", tools=["bin/tool"])).key
    key = planned(an_action()).key
    assert key == other
    assert hash(key) == hash(other)
    assert key.difference(other) == ()


def with_tool(**changes: Any) -> InputTree:
    tool = TREE.files["bin/tool"]._replace(**changes)
    return tree_of({**TREE.files, "bin/tool": tool})


# PWK-11, PWK-12
@pytest.mark.parametrize(
    ("action", "tree", "component"),
    [
        (replace(an_action(), namespace="other"), TREE, "namespace"),
        (an_action(["bin/tool", "-x", "@flags"]), TREE, "argv"),
        (an_action(), with_tool(digest=SHA256.digest(b"new")), "tools"),
        (an_action(), with_tool(is_executable=True), "tools"),
        (an_action(), a_tree("flags", tools=["bin/tool", "bin/more"]), "tools"),
        (an_action(), tree_of(TREE.files, {"alias": "bin/tool"}), "tools"),
    ],
)
def test_what_differs_is_named(action: LoadedAction, tree: InputTree, component: str) -> None:
    assert planned(an_action()).key.difference(planned(action, tree).key) == (component,)


@pytest.mark.parametrize(
    ("platform", "components"),
    [
        ({"persistentWorkerKey": "other"}, ("platform",)),
        ({**ASKED, "cache-silo-key": "s"}, ("silo", "platform")),
        ({**ASKED, "persistentWorkerProtocol": "json"}, ("platform", "protocol")),
    ],
)
def test_the_platform_is_part_of_the_key(
    platform: dict[str, str], components: tuple[str, ...]
) -> None:
    other = planned(an_action(platform=platform)).key
    assert planned(an_action()).key.difference(other) == components


def test_environment_counts_whatever_its_order() -> None:
    actions = [an_action(), an_action(), an_action()]
    for action, names in zip(actions, ["AB", "BA", "B"], strict=True):
        for name in names:
            action.command.environment_variables.add(name=name, value="1")
    one, two, three = (planned(action).key for action in actions)
    assert one == two
    assert one.difference(three) == ("environment",)


async def request_for(
    tree: InputTree, contents: Mapping[str, bytes], action: LoadedAction
) -> WorkRequest:
    blobs = MemoryBlobStore()
    files = dict(tree.files)
    for path, data in contents.items():
        files[path] = files[path]._replace(digest=SHA256.digest(data))
        await blobs.write_many({SHA256.digest(data): data})
    tree = tree_of(files, tree.symlinks)
    return await build_request(planned(action, tree), action, tree, blobs)


async def test_a_request_names_all_inputs_with_their_digests() -> None:
    # PWK-07
    tree = a_tree("flags", "src/a", tools=["bin/tool"], symlinks={"link": "src/a", "dir": "src"})
    request = await request_for(tree, {"flags": b"-o\nx\n"}, an_action())
    assert list(request.arguments) == ["-o", "x"]
    assert request.request_id == 0
    source = SHA256.digest(b"src/a").hash.encode()
    assert sorted((entry.path, entry.digest) for entry in request.inputs) == [
        ("bin/tool", SHA256.digest(b"bin/tool").hash.encode()),
        ("flags", SHA256.digest(b"-o\nx\n").hash.encode()),
        ("link", source),
        ("src/a", source),
    ]


async def test_paths_are_as_the_worker_sees_them() -> None:
    tree = a_tree("w/flags", "src/a", "w/src/b", symlinks={"w/more": "../src/more"})
    tree = tree_of({**tree.files, **a_tree("src/more").files}, tree.symlinks)
    action = an_action(["./tool", "@flags"], working_directory="w")
    request = await request_for(tree, {"w/flags": b"1\n@more", "src/more": b"2\n"}, action)
    assert list(request.arguments) == ["1", "2"]
    paths = sorted(entry.path for entry in request.inputs)
    assert paths == ["../src/a", "../src/more", "flags", "more", "src/b"]


async def test_an_empty_flag_file_needs_no_store() -> None:
    tree = a_tree("flags", tools=["bin/tool"])
    empty = tree.files["flags"]._replace(digest=SHA256.empty)
    tree = tree_of({**tree.files, "flags": empty}, tree.symlinks)
    action = an_action()
    request = await build_request(planned(action, tree), action, tree, MemoryBlobStore())
    assert list(request.arguments) == []


async def test_a_flag_file_that_left_the_store_is_missing() -> None:
    action = an_action()
    with pytest.raises(InputsMissing):
        await build_request(planned(action), action, TREE, MemoryBlobStore())


@pytest.mark.parametrize("path", ["none", "../flags", "/etc/passwd", "loop"])
async def test_a_nested_flag_file_must_be_an_input(path: str) -> None:
    tree = a_tree("flags", tools=["bin/tool"], symlinks={"loop": "loop"})
    with pytest.raises(InvalidRequest, match="not among the inputs"):
        await request_for(tree, {"flags": f"@{path}".encode()}, an_action())
