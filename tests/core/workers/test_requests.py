"""What a request says, and that keeping parts of it changes nothing."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from stoker.action import LoadedAction
from stoker.digest import SHA256, Digest
from stoker.errors import InputsMissing, InvalidRequest
from stoker.protos.worker_protocol_pb2 import WorkRequest
from stoker.storage.input_tree import FileEntry, InputDirectory, InputTree
from stoker.storage.memory import MemoryBlobStore
from stoker.workers.requests import build_request, list_inputs
from stoker.workers.settings import WorkerRule, WorkerSettings

from .actions import TREE, a_tree, an_action, planned
from .random_trees import FOLDERS, NAMES, end_of, made
from .trees import tree_of


async def request_for(
    tree: InputTree, contents: Mapping[str, bytes], action: LoadedAction
) -> WorkRequest:
    blobs = MemoryBlobStore()
    files = dict(tree.files)
    for path, data in contents.items():
        files[path] = files[path]._replace(digest=SHA256.digest(data))
        await blobs.write_many({SHA256.digest(data): data})
    tree = tree_of(files, tree.symlinks)
    return (await build_request(planned(action, tree), action, tree, blobs)).whole()


# --- inputs


Inputs = list[tuple[str, bytes]]


def listed(tree: InputTree, working_directory: str) -> Inputs:
    request = WorkRequest.FromString(b"".join(list_inputs(tree, working_directory)))
    return sorted((entry.path, entry.digest) for entry in request.inputs)


def spelt_out(tree: InputTree, working_directory: str) -> Inputs:
    """The same without any regard to cost."""
    found = {path: file.digest.hash.encode() for path, file in tree.files.items()}
    for path in tree.symlinks:
        if file := tree.files.get(end_of(tree, path) or ""):
            found[path] = file.digest.hash.encode()
    return sorted(
        (posixpath.relpath(path, working_directory or "."), digest)
        for path, digest in found.items()
    )


def parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]


@given(
    folders=st.lists(FOLDERS, min_size=1, max_size=4),
    layouts=st.lists(st.dictionaries(NAMES, st.integers(0, 3)), min_size=1, max_size=3),
    working_directories=st.lists(st.lists(NAMES, max_size=3).map("/".join), min_size=1, max_size=3),
)
def test_inputs_are_those_of_a_naive_spelling_out(
    folders: list[dict[str, Any]],
    layouts: list[dict[str, int]],
    working_directories: list[str],
) -> None:
    known: dict[Digest, InputDirectory] = {}
    for layout in layouts:
        top = {name: folders[number % len(folders)] for name, number in layout.items()}
        tree = InputTree(made({**folders[0], **top}, known))
        for working_directory in working_directories:
            if tree.files.keys() & {*parents(working_directory)}:
                continue  # nobody can work in a file
            assert listed(tree, working_directory) == spelt_out(tree, working_directory)


def test_a_folder_at_many_places_is_listed_at_each() -> None:
    leaf = {"f": FileEntry(SHA256.digest(b"f")), "l": "f"}
    tree = InputTree(made({f"d{number}": {"e": leaf} for number in range(30)}, {}))
    for _ in range(2):
        assert listed(tree, "d3") == spelt_out(tree, "d3")
        assert len(listed(tree, "")) == 60
    held = tree.root.directories["d1"].directories["e"].derived
    assert all(len(kept) < 10 for kept in held.values() if isinstance(kept, dict))


async def test_a_request_names_all_inputs_with_their_digests() -> None:
    # PWK-07
    symlinks = {"link": "src/a", "dir": "src", "off": "/src/a", "src/off": "/a"}
    tree = a_tree("flags", "src/a", tools=["bin/tool"], symlinks=symlinks)
    request = await request_for(tree, {"flags": b"-o\nx\n"}, an_action())
    assert list(request.arguments) == ["-o", "x"]
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


def folder_of(number: int, files: int) -> dict[str, Any]:
    return {f"{number}-{i}": FileEntry(SHA256.digest(b"f")) for i in range(files)}


async def test_a_large_tree_does_not_hold_others_up() -> None:
    """Others have their turns while it is spelt out for the first time."""
    flags = FileEntry(SHA256.empty)
    folders = {f"d{number}": folder_of(number, 1000) for number in range(10)}
    tree = InputTree(made({"flags": flags, "tool": flags, **folders}, {}))
    action = an_action(["tool", "@flags"])
    plan, turns, counted = planned(action, tree), 0, list[int]()

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        for _ in range(2):
            before = turns
            request = (await build_request(plan, action, tree, MemoryBlobStore())).whole()
            counted.append(turns - before)
            assert len(request.inputs) == 10_002
        nursery.cancel_scope.cancel()
    assert counted[0] >= counted[1] + 3


@pytest.mark.parametrize("marked", [True, False])
async def test_the_deepest_tree_there_may_be(marked: bool) -> None:
    file = FileEntry(SHA256.empty, is_tool=marked)
    folder: dict[str, Any] = {"file": file, "link": "../" * 256 + "file"}
    for _ in range(256):
        folder = {"d": folder, "file": file}
    tree = InputTree(made(folder, {}))
    settings = WorkerSettings(rules=(WorkerRule(tools=("*/file", "*/link")),))
    action = an_action(["d", "--all=d", "@file"], working_directory="d")
    plan = planned(action, tree, settings)
    request = (await build_request(plan, action, tree, MemoryBlobStore())).whole()
    assert len(request.inputs) == 258
    assert len(plan.tools) == 256
    assert len(plan.tool_tree.symlinks) == 1


# --- the rest of it


async def test_who_sends_a_request_gives_it_number_and_folder() -> None:
    request = await request_for(TREE, {"flags": b""}, an_action())
    assert (request.request_id, request.sandbox_dir, request.cancel) == (0, "", False)
    assert request.verbosity == 0


async def test_the_verbosity_is_the_rules() -> None:
    blobs = MemoryBlobStore()
    await blobs.write_many({SHA256.digest(b"flags"): b"flags"})
    settings = WorkerSettings(rules=(WorkerRule(verbosity=10),))
    action = an_action()
    plan = planned(action, settings=settings)
    request = (await build_request(plan, action, TREE, blobs, 7)).whole()
    assert (request.verbosity, request.request_id) == (10, 7)
    request = (await build_request(replace(plan, verbosity=0), action, TREE, blobs)).whole()
    assert (request.verbosity, list(request.arguments)) == (0, ["flags"])


async def test_an_empty_flag_file_needs_no_store() -> None:
    tree = a_tree("flags", tools=["bin/tool"])
    empty = tree.files["flags"]._replace(digest=SHA256.empty)
    tree = tree_of({**tree.files, "flags": empty}, tree.symlinks)
    action = an_action()
    request = (await build_request(planned(action, tree), action, tree, MemoryBlobStore())).whole()
    assert list(request.arguments) == []


async def test_a_flag_file_that_left_the_store_is_missing() -> None:
    action = an_action()
    with pytest.raises(InputsMissing):
        await build_request(planned(action), action, TREE, MemoryBlobStore())


@pytest.mark.parametrize("path", ["none", "../flags", "/etc/passwd", "loop", "bin", "out"])
async def test_a_nested_flag_file_must_be_an_input(path: str) -> None:
    symlinks = {"loop": "loop", "out": "../../etc/passwd"}
    tree = a_tree("flags", tools=["bin/tool"], symlinks=symlinks)
    with pytest.raises(InvalidRequest, match="not among the inputs"):
        await request_for(tree, {"flags": f"@{path}".encode()}, an_action())
