"""What two actions differ in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import trio

from stoker.digest import SHA256, Digest
from stoker.history import tree_difference
from stoker.history.difference import (
    Difference,
    action_differences,
    command_differences,
    platform_differences,
)
from stoker.history.tree_difference import TreeDifferences, tree_differences
from stoker.protos import remote_execution_pb2 as reapi
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.verifying import VerifyingBlobStore


def command(*arguments: str, **fields: object) -> reapi.Command:
    return reapi.Command(arguments=arguments, **fields)  # type: ignore[arg-type] # fields by name


def arguments(before: str, after: str) -> list[tuple[str, str, str, str]]:
    found = [*command_differences(command(*before.split()), command(*after.split()))]
    assert {difference.part for difference in found} == {"argument"}
    return [(d.change, d.name, d.before, d.after) for d in found]


def test_arguments_by_position() -> None:
    assert arguments("a b c", "a x c") == [("changed", "1", "b", "x")]
    assert arguments("a b c", "a c") == [("removed", "1", "b", "")]
    assert arguments("a c", "a b c d") == [("added", "1", "", "b"), ("added", "3", "", "d")]
    assert arguments("a b c d e", "a B c d d2 e") == [
        ("changed", "1", "b", "B"),
        ("added", "4", "", "d2"),
    ]
    assert arguments("a a", "a a a") == [("added", "2", "", "a")]


def test_long_stretches_of_arguments_are_told_as_one() -> None:
    many = " ".join(f"x{n}" for n in range(500))
    assert arguments(f"a {many} z", "a b z") == [("changed", "1…1", "500 arguments", "1 arguments")]


def test_environment_platform_and_the_rest() -> None:
    def variables(**values: str) -> list[reapi.Command.EnvironmentVariable]:
        return [reapi.Command.EnvironmentVariable(name=n, value=v) for n, v in values.items()]

    before = command(
        "a",
        environment_variables=variables(A="1", B="1"),
        output_files=["o"],
        working_directory="w",
    )
    after = command(
        "a",
        environment_variables=variables(B="2", C="1"),
        output_paths=["o", "p"],
        output_directory_format=reapi.Command.DIRECTORY_ONLY,
    )
    assert [*command_differences(before, after)] == [
        Difference("environment", "removed", "A", "1", ""),
        Difference("environment", "changed", "B", "1", "2"),
        Difference("environment", "added", "C", "", "1"),
        Difference("working directory", "removed", "", "w", ""),
        Difference("output", "added", "p"),
        Difference("output format", "changed", "", "TREE_ONLY", "DIRECTORY_ONLY"),
    ]


def platform(**values: str) -> reapi.Platform:
    entries = [reapi.Platform.Property(name=n, value=v) for n, v in values.items()]
    return reapi.Platform(properties=entries)


def test_a_platform_is_the_same_wherever_it_is_written() -> None:  # EXE-12
    of_command = (reapi.Action(), command("a", platform=platform(os="l", isa="x")))
    of_action = (reapi.Action(platform=platform(isa="x", os="l")), command("a"))
    other = (reapi.Action(platform=platform(os="l", isa="y", gpus="1")), command("a"))
    assert [*platform_differences(of_command, of_action)] == []
    assert [*platform_differences(of_command, other)] == [
        Difference("platform", "added", "gpus", "", "1"),
        Difference("platform", "changed", "isa", "x", "y"),
    ]


def test_what_the_action_itself_says() -> None:
    before, after = reapi.Action(salt=b"\1"), reapi.Action(do_not_cache=True)
    before.timeout.seconds = 60
    assert [*action_differences(before, after)] == [
        Difference("timeout", "removed", "", "60 s", ""),
        Difference("salt", "removed", "", "01", ""),
        Difference("do_not_cache", "changed", "", "False", "True"),
    ]


# --- trees

Entries = Mapping[str, "Entries | reapi.FileNode | str | bytes"]


@dataclass
class Trees:
    """A store with directories in it."""

    blobs: VerifyingBlobStore = field(default_factory=lambda: VerifyingBlobStore(MemoryBlobStore()))

    async def add(self, entries: Entries) -> Digest:
        directory = reapi.Directory()
        for name, entry in sorted(entries.items()):
            if isinstance(entry, Mapping):
                digest = (await self.add(entry)).to_proto()
                directory.directories.add(name=name, digest=digest)
            elif isinstance(entry, str):
                directory.symlinks.add(name=name, target=entry)
            elif isinstance(entry, bytes):
                directory.files.add(name=name, digest=SHA256.digest(entry).to_proto())
            else:
                directory.files.add(name=name).MergeFrom(entry)
        return await self.put(directory)

    async def put(self, directory: reapi.Directory) -> Digest:
        data = directory.SerializeToString()
        await self.blobs.write_many({SHA256.digest(data): data})
        return SHA256.digest(data)

    async def compare(self, before: Entries, after: Entries, limit: int = 100) -> TreeDifferences:
        old, new = await self.add(before), await self.add(after)
        return await tree_differences(self.blobs, old, new, max_differences=limit)


def told(found: TreeDifferences) -> list[tuple[str, str]]:
    assert not found.gone
    return [(difference.change, difference.name) for difference in found.differences]


async def test_every_way_in_which_inputs_differ() -> None:
    program = reapi.FileNode(digest=SHA256.digest(b"p").to_proto(), is_executable=True)
    tool = reapi.FileNode(digest=SHA256.digest(b"p").to_proto())
    tool.node_properties.properties.add(name="bazel_tool_input")
    moded = reapi.FileNode(digest=SHA256.digest(b"p").to_proto())
    moded.node_properties.unix_mode.value = 0o600
    before: Entries = {
        "same": {"deep": {"x": b"1"}},
        "a": {"gone": b"1", "changed": b"1", "link": "x", "mode": b"p", "deep": {"x": b"1"}},
        "kind": b"1",
        "old": {"x": b"1"},
        "tool": b"p",
        "unix": b"p",
    }
    after: Entries = {
        "same": {"deep": {"x": b"1"}},
        "a": {"new": b"1", "changed": b"2", "link": "y", "mode": program, "deep": {"x": b"2"}},
        "kind": "1",
        "tool": tool,
        "unix": moded,
    }
    found = await Trees().compare(before, after)
    assert told(found) == [
        ("changed", "kind"),
        ("removed", "old"),
        ("properties changed", "tool"),
        ("mode changed", "unix"),
        ("changed", "a/changed"),
        ("removed", "a/gone"),
        ("changed", "a/link"),
        ("mode changed", "a/mode"),
        ("added", "a/new"),
        ("changed", "a/deep/x"),
    ]
    assert not found.cut_off
    assert found.differences[0].after == "link to 1"


async def test_directories_that_are_the_same_are_not_read() -> None:
    trees = Trees()
    absent = SHA256.digest(b"never there").to_proto()
    roots = []
    for content in (b"1", b"2"):
        root = reapi.Directory()
        root.directories.add(name="absent", digest=absent)
        root.files.add(name="x", digest=SHA256.digest(content).to_proto())
        roots.append(await trees.put(root))
    found = await tree_differences(trees.blobs, *roots, max_differences=10)
    assert told(found) == [("changed", "x")]


async def test_directories_that_are_gone_are_named() -> None:
    trees = Trees()
    roots = []
    for content in (b"1", b"2"):
        root = reapi.Directory()
        root.directories.add(name="absent", digest=SHA256.digest(content).to_proto())
        roots.append(await trees.put(root))
    found = await tree_differences(trees.blobs, *roots, max_differences=10)
    assert (found.gone, found.differences) == (["absent"], [])


async def test_others_have_their_turn_while_many_directories_are_compared() -> None:
    trees, turns = Trees(), 0
    one: Entries = {f"{n:03}": {"x": b"1"} for n in range(100)}
    other: Entries = {f"{n:03}": {"x": b"2"} for n in range(100)}
    roots = await trees.add(one), await trees.add(other)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await tree_differences(trees.blobs, *roots, max_differences=200)
        nursery.cancel_scope.cancel()
    assert turns > 50


async def test_what_is_cut_off_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {f"{n:03}": b"1" for n in range(50)}
    found = await Trees().compare({}, wide, limit=7)
    assert (len(found.differences), found.cut_off) == (7, True)
    assert not (await Trees().compare({}, wide, limit=50)).cut_off
    monkeypatch.setattr(tree_difference, "MAX_DIRECTORIES", 4)
    one: Entries = {"d": {"d": {"d": {"x": b"1"}}}}
    other: Entries = {"d": {"d": {"d": {"x": b"2"}}}}
    found = await Trees().compare(one, other)
    assert (found.differences, found.cut_off) == ([], True)


async def test_other_bytes_that_mean_the_same_are_told() -> None:
    trees = Trees()
    one = reapi.Directory()
    for name in ("a", "b"):
        one.files.add(name=name, digest=SHA256.digest(b"x").to_proto())
    other = reapi.Directory(files=reversed(one.files))
    found = await tree_differences(
        trees.blobs, await trees.put(one), await trees.put(other), max_differences=10
    )
    assert [(d.part, d.name) for d in found.differences] == [("encoding", "directory .")]
