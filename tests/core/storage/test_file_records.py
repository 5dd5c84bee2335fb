"""Directories that differ little from those read before are read as all others are."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest

from stoker.digest import BLAKE3, SHA256, Digest, DigestFunction
from stoker.errors import InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.storage.file_records import FileRecords, NamedEntry, split_records
from stoker.storage.input_tree import FileEntry, InputTree
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.tree_cache import InputTrees, read_input_tree


def node(
    name: str, function: DigestFunction = SHA256, *, is_executable: bool = False
) -> reapi.FileNode:
    digest = function.digest(b"content")
    return reapi.FileNode(name=name, digest=digest.to_proto(), is_executable=is_executable)


def varied(random_: random.Random, function: DigestFunction) -> bytes:
    """A Directory of few possible entries: in any order, some long, its parts in any order."""
    names = random_.sample(["a", "b", "name" * 30, "name" * 60, "ü", "z"], k=4)
    records = [
        reapi.Directory(files=[node(name, function, is_executable=random_.random() < 0.3)])
        for name in names
    ]
    records[0].files[0].node_properties.properties.add(name="bazel_tool_input")
    records.append(reapi.Directory(symlinks=[reapi.SymlinkNode(name="link", target="a")]))
    if random_.random() < 0.5:
        random_.shuffle(records)
    return b"".join(record.SerializeToString() for record in records)


async def read(trees: InputTrees, data: bytes, function: DigestFunction = SHA256) -> InputTree:
    return await trees.read(function.digest(data))


@pytest.mark.parametrize("function", [SHA256, BLAKE3])
async def test_what_is_known_in_part_is_read_as_what_is_new(function: DigestFunction) -> None:
    store = MemoryBlobStore()
    # One instance for both functions: what they name is not the same, though it may look so.
    trees, random_ = InputTrees(store), random.Random(5)
    for each in (SHA256, BLAKE3):
        await store.write_many({each.digest(b"content"): b"content"})
    for _ in range(100):
        for each in (function, SHA256):
            data = varied(random_, each)
            await store.write_many({each.digest(data): data})
            known = (await read(trees, data, each)).root
            new = (await read_input_tree(store, each.digest(data))).root
            assert [*known.files.items()] == [*new.files.items()]
            assert known.symlinks == new.symlinks
            assert {file.digest.function for file in known.files.values()} == {each}


@pytest.mark.parametrize(
    "names", [("a", "b", "a"), ("b", "new/", "a"), ("a", ".."), ("new", "new")], ids=str
)
async def test_names_are_looked_at_whatever_is_known(names: tuple[str, ...]) -> None:
    # EXE-26
    store = MemoryBlobStore()
    sound = reapi.Directory(files=[node("a"), node("b")]).SerializeToString()
    unsound = b"".join(reapi.Directory(files=[node(name)]).SerializeToString() for name in names)
    content = {SHA256.digest(b"content"): b"content"}
    await store.write_many({SHA256.digest(data): data for data in (sound, unsound)} | content)
    trees = InputTrees(store)
    await read(trees, sound)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"'(a|new/|\.\.|new)'"):
            await read(trees, unsound)


@pytest.mark.parametrize("cut", [1, 2, 3, 40, 77, 78, 79, 160])
async def test_half_a_message_is_refused(cut: int) -> None:
    store = MemoryBlobStore()
    data = reapi.Directory(files=[node("a"), node("n" * 100)]).SerializeToString()
    half = data[:-cut]
    content = {SHA256.digest(b"content"): b"content"}
    await store.write_many({SHA256.digest(each): each for each in (data, half)} | content)
    trees = InputTrees(store)
    await read(trees, data)
    with pytest.raises(InvalidRequest, match="not a Directory"):
        await read(trees, half)


def test_records_end_where_something_else_begins() -> None:
    files = reapi.Directory(files=[node("a"), node("n" * 100)]).SerializeToString()
    other = reapi.Directory(symlinks=[reapi.SymlinkNode(name="l", target="a")])
    records, end = split_records(files + other.SerializeToString() + files)
    assert len(records) == 2
    assert b"".join(records) == files
    assert end == len(files)


def test_files_are_forgotten_in_the_end_and_read_again() -> None:
    records = FileRecords(most_known=3)
    parsed: list[str] = []

    def parse(digest: Digest, nodes: Iterable[reapi.FileNode]) -> Iterator[NamedEntry]:
        for each in nodes:
            parsed.append(each.name)
            yield each.name, FileEntry(digest)

    def look(*names: str) -> list[str]:
        parsed.clear()
        data = reapi.Directory(files=[node(name) for name in names]).SerializeToString()
        listing = records.read(SHA256.digest(data), data, parse)
        assert [name for name, _ in listing.files] == [*names]
        return [*parsed]

    assert look("a", "b", "c", "d") == ["a", "b", "c", "d"]
    assert look("e", "d", "a") == ["e"]
    assert look("f", "g", "a") == ["f", "g"]
    # By now more have come than are kept since these were asked for.
    assert look("h", "b", "a") == ["h", "b"]


def test_the_same_bytes_of_another_digest_function_are_another_file() -> None:
    # GEN-10
    records = FileRecords()
    data = reapi.Directory(files=[node("a")]).SerializeToString()

    def parse(digest: Digest, nodes: Iterable[reapi.FileNode]) -> Iterator[NamedEntry]:
        for each in nodes:
            yield each.name, FileEntry(digest.function.parse(each.digest))

    for function in (SHA256, BLAKE3, SHA256):
        [(_, entry)] = records.read(function.digest(data), data, parse).files
        assert entry.digest.function is function
