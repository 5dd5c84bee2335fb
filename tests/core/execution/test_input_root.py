"""Laying out input roots: what comes to lie in the folder, and what is left alone."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from stoker.digest import SHA256, Digest
from stoker.errors import DataLoss, InputsMissing, InvalidRequest
from stoker.execution.input_root import InputRoot, RootReplaced
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobReader
from stoker.storage.input_tree import InputTree
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.verifying import VerifyingBlobStore

Cas = Any

LARGE = b"large" * 2**20


class FolderStore(MemoryBlobStore):
    """A store whose blobs are files, to be copied rather than read."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.read: list[Digest] = []

    @asynccontextmanager
    async def open_paths(self, digests: Collection[Digest]) -> AsyncIterator[Mapping[Digest, Path]]:
        present = set(digests) - await self.find_missing(digests)
        blobs = await super().read_many(present)
        for digest, data in blobs.items():
            (self._folder / digest.hash).write_bytes(data)
        yield {digest: self._folder / digest.hash for digest in present}

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        self.read += digests
        return await super().read_many(digests)


@pytest.fixture(params=["streamed", "copied"])
def any_cas(request: pytest.FixtureRequest, cas: Cas, tmp_path: Path) -> Cas:
    if request.param == "copied":
        folder = tmp_path / "blobs"
        folder.mkdir()
        cas.blobs = VerifyingBlobStore(FolderStore(folder))
    return cas


@pytest.fixture
def root(any_cas: Cas, tmp_path: Path) -> InputRoot:
    return InputRoot(tmp_path / "root", any_cas.blobs)


def entries(folder: Path) -> dict[str, object]:
    """Everything below `folder`: a file's bytes, a link's target, None for a directory."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def inodes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_ino for path in folder.rglob("*")}


async def test_an_empty_folder_becomes_the_tree(any_cas: Cas, root: InputRoot) -> None:
    # RUN-01: files, empty directories and files, links relative, upward and dangling.
    tree = await any_cas.tree(
        {
            "a": b"one",
            "empty": b"",
            "large": LARGE,
            "d": {"e": {"twin": b"one", "up": "../../a"}, "none": {}},
            "dangling": "nowhere",
            "outside": "/etc/hostname",
        }
    )
    await root.lay_out(tree)
    assert entries(root.folder) == {
        "a": b"one",
        "empty": b"",
        "large": LARGE,
        "d": None,
        "d/e": None,
        "d/e/twin": b"one",
        "d/e/up": "../../a",
        "d/none": None,
        "dangling": "nowhere",
        "outside": "/etc/hostname",
    }


async def test_modes_and_times(any_cas: Cas, root: InputRoot) -> None:
    # RUN-03, RUN-04
    timed = reapi.FileNode(digest=(await any_cas.put(b"x")).to_proto())
    timed.node_properties.mtime.FromNanoseconds(1_234_567_890_123_456_789)
    timed.node_properties.unix_mode.value = 0o4750
    await root.lay_out(await any_cas.tree({"plain": b"x", "program": b"#!/bin/sh", "timed": timed}))
    states = {path.name: path.stat() for path in root.folder.iterdir()}
    assert {name: oct(stat.S_IMODE(state.st_mode)) for name, state in states.items()} == {
        "plain": "0o644",
        "program": "0o755",
        "timed": "0o750",
    }
    assert states["plain"].st_mtime_ns == states["program"].st_mtime_ns == 946684800 * 10**9
    assert states["timed"].st_mtime_ns == 1_234_567_890_123_456_789


async def test_parents_are_made_and_nothing_else(any_cas: Cas, root: InputRoot) -> None:
    # RUN-06
    await root.lay_out(await any_cas.tree({"in": b""}), ["out/deep", "out/other"])
    assert entries(root.folder) == {
        "in": b"",
        "out": None,
        "out/deep": None,
        "out/other": None,
    }


async def test_a_file_where_a_parent_must_be(any_cas: Cas, root: InputRoot) -> None:
    with pytest.raises(InvalidRequest, match="'a' is a file"):
        await root.lay_out(await any_cas.tree({"a": b""}), ["a/b"])


async def test_no_parent_is_made_through_a_link(
    any_cas: Cas, root: InputRoot, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    await root.lay_out(await any_cas.tree({"link": str(outside)}), ["link/made"])
    assert list(outside.iterdir()) == []


FIRST = {"same": b"same", "changed": b"old", "gone": b"", "d": {"same": b"2", "gone": {"x": b"3"}}}
SECOND = {"same": b"same", "changed": b"new", "d": {"same": b"2", "new": {"y": b"4"}}, "link": "d"}


async def test_only_differences_are_written(any_cas: Cas, root: InputRoot) -> None:
    await root.lay_out(await any_cas.tree(FIRST))
    before, own = inodes(root.folder), root.folder.stat().st_ino
    await root.lay_out(await any_cas.tree(SECOND))
    after = inodes(root.folder)
    assert {name for name in before if before[name] == after.get(name)} == {"same", "d", "d/same"}
    assert root.folder.stat().st_ino == own
    assert entries(root.folder) == {
        "same": b"same",
        "changed": b"new",
        "d": None,
        "d/same": b"2",
        "d/new": None,
        "d/new/y": b"4",
        "link": "d",
    }


async def test_the_same_tree_again_touches_nothing(any_cas: Cas, root: InputRoot) -> None:
    tree = await any_cas.tree(SECOND)
    await root.lay_out(tree)
    before = {name: os.lstat(root.folder / name) for name in inodes(root.folder)}
    await root.lay_out(tree)
    assert {name: os.lstat(root.folder / name).st_ctime_ns for name in before} == {
        name: state.st_ctime_ns for name, state in before.items()
    }


async def test_any_kind_may_become_any_other(any_cas: Cas, root: InputRoot) -> None:
    kinds: list[Any] = [b"file", {"in": b"directory"}, "link", {}, b"", "other-link"]
    for kind in kinds:
        for following in kinds:
            for now in (kind, following):
                tree = await any_cas.tree({"x": now})
                await root.lay_out(tree)
                fresh = InputRoot(root.folder.with_name("fresh"), any_cas.blobs)
                await fresh.lay_out(tree)
                assert entries(root.folder) == entries(fresh.folder)
                await fresh.remove()


MEDDLING = [
    "echo more >> a",
    "printf two > a",  # as long as before
    "printf two > a; touch -d @946684800 a",  # and as old
    "chmod 600 a",
    "chmod 700 a",
    "rm a",
    "rm a; printf one > a; touch -d @946684800 a",
    "mv a b; cp -p b a",
    "ln a b",
    "rm a; ln -s ../elsewhere a",
    "rm a; mkdir a; echo x > a/y",
    "rm a; mkfifo a",
    "rm -r d; ln -s .. d",
    "rm -r d; echo > d",
    "chmod 0 d; chmod 0 .",
    "chmod 555 d/e",
    "mkdir -p s/t/r/a/y; echo x > s/t/r/a/y/z; chmod 0 s/t s",
    "mkdir -p d/x; echo x > d/x/y; chmod 500 d/x; chmod 555 d",
    "rm link; ln -s /etc link",
    "rm link; mkdir link; echo x > link/y",
    "mkfifo pipe; ln -s pipe l1; ln -s / l2; ln -s l3 l3",
    r"touch \"$(printf 'not\377utf8')\"",
]


@pytest.mark.parametrize("script", MEDDLING)
async def test_what_an_action_did_is_undone(any_cas: Cas, root: InputRoot, script: str) -> None:
    # PWK-13, RUN-25
    tree = await any_cas.tree({"a": b"one", "d": {"e": {"f": b"f"}}, "link": "a"})
    await root.lay_out(tree)
    expected, own = entries(root.folder), root.folder.stat().st_ino
    subprocess.run(["/bin/sh", "-c", script], cwd=root.folder, check=True)
    await root.lay_out(tree)
    assert entries(root.folder) == expected
    assert root.folder.stat().st_ino == own
    modes = {stat.S_IMODE(os.lstat(root.folder / name).st_mode) for name in ("", "d", "d/e")}
    assert modes == {0o755}
    assert stat.S_IMODE((root.folder / "a").stat().st_mode) == 0o644
    assert (root.folder / "a").stat().st_nlink == 1


async def test_a_store_is_never_written_through_an_input(cas: Cas, tmp_path: Path) -> None:
    # RUN-02
    (tmp_path / "blobs").mkdir()
    store = FolderStore(tmp_path / "blobs")
    cas.blobs = VerifyingBlobStore(store)
    # One that holds nothing of it in memory, which would be written as it is.
    root = InputRoot(tmp_path / "root", VerifyingBlobStore(store))
    await root.lay_out(await cas.tree({"a": b"one"}))
    assert SHA256.digest(b"one") not in store.read, "the copy is made from the file"
    subprocess.run(["/bin/sh", "-c", "chmod +w a; echo >> a"], cwd=root.folder, check=True)
    assert (tmp_path / "blobs" / SHA256.digest(b"one").hash).read_bytes() == b"one"


async def test_an_open_file_is_replaced_not_rewritten(any_cas: Cas, root: InputRoot) -> None:
    await root.lay_out(await any_cas.tree({"a": b"old"}))
    with (root.folder / "a").open("rb") as file:
        await root.lay_out(await any_cas.tree({"a": b"new"}))
        assert file.read() == b"old"
    assert entries(root.folder) == {"a": b"new"}


async def test_every_missing_blob_is_named(any_cas: Cas, root: InputRoot) -> None:
    # EXE-04, EXE-06: they went between the check and the fetch.
    tree = await any_cas.tree({"a": b"one", "b": b"two", "c": LARGE, "d": b"four"})
    any_cas.blobs = VerifyingBlobStore(MemoryBlobStore())
    await any_cas.put(b"four")
    root = InputRoot(root.folder, any_cas.blobs)
    with pytest.raises(InputsMissing) as caught:
        await root.lay_out(tree)
    assert set(caught.value.digests) == {SHA256.digest(data) for data in (b"one", b"two", LARGE)}
    for data in (b"one", b"two", LARGE):
        await any_cas.put(data)
    await root.lay_out(tree)
    assert entries(root.folder) == {"a": b"one", "b": b"two", "c": LARGE, "d": b"four"}


class ShortStore(MemoryBlobStore):
    """Has lost the end of everything."""

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        blobs = await super().read_many(digests)
        return {digest: data[:-1] for digest, data in blobs.items()}


async def test_a_blob_cut_short_is_noticed(cas: Cas, tmp_path: Path) -> None:
    tree = await cas.tree({"a": b"one"})
    store = ShortStore()
    await store.write_many({SHA256.digest(b"one"): b"one"})
    with pytest.raises(DataLoss):
        await InputRoot(tmp_path / "root", store).lay_out(tree)


class StalledStore(MemoryBlobStore):
    """Answers the first read of a large blob for ever, until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.stalled = trio.Event()
        self.go_on = trio.Event()

    @asynccontextmanager
    async def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[BlobReader]:
        async with super().open_read(digest, offset, limit) as reader:
            yield StalledReader(reader, self)


class StalledReader(BlobReader):
    def __init__(self, inner: BlobReader, store: StalledStore) -> None:
        self._inner = inner
        self._store = store
        self._begun = False

    async def read(self, max_bytes: int) -> bytes:
        if self._begun:
            self._store.stalled.set()
            await self._store.go_on.wait()
        self._begun = True
        return await self._inner.read(max_bytes)


async def test_a_cancelled_layout_is_mended_by_the_next(cas: Cas, tmp_path: Path) -> None:
    store = StalledStore()
    cas.blobs = VerifyingBlobStore(store)
    tree = await cas.tree({"a": LARGE, "b": b"small"})
    root = InputRoot(tmp_path / "root", cas.blobs)
    await root.lay_out(await cas.tree({"a": b"before", "c": b""}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(root.lay_out, tree)
        await store.stalled.wait()
        nursery.cancel_scope.cancel()
    store.go_on.set()
    await root.lay_out(tree)
    assert entries(root.folder) == {"a": LARGE, "b": b"small"}


@pytest.mark.usefixtures("deep_folders")
async def test_removal_of_a_very_deep_tree(any_cas: Cas, root: InputRoot, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"")
    await root.lay_out(await any_cas.tree({"a": b"one"}))
    # 3,000 levels: far beyond the longest path and the deepest recursion. And links outward.
    script = (
        f"import os; os.symlink({str(outside)!r}, 'l')\n"
        "for i in range(3000): os.mkdir('d'); os.chdir('d')\n"
        f"os.symlink({str(outside)!r}, 'l')\n"
    )
    subprocess.run(["python3", "-c", script], cwd=root.folder, check=True)
    await root.lay_out(await any_cas.tree({"a": b"one"}))
    assert entries(root.folder) == {"a": b"one"}
    await root.remove()
    assert not root.folder.exists()
    assert (outside / "file").exists()


async def test_a_name_that_is_too_long(any_cas: Cas, root: InputRoot) -> None:
    with pytest.raises(InvalidRequest, match="too long"):
        await root.lay_out(await any_cas.tree({"x" * 300: b""}))


async def test_laying_out_many_files_of_every_size(any_cas: Cas, root: InputRoot) -> None:
    files = {f"f{number}": b"%d" % number * (number % 70) for number in range(1200)}
    tree: InputTree = await any_cas.tree({"d": files, "e": {"large": LARGE, "twin": LARGE}})
    await root.lay_out(tree)
    assert {path.name: path.read_bytes() for path in (root.folder / "d").iterdir()} == files
    assert (root.folder / "e" / "twin").read_bytes() == LARGE


async def test_a_folder_that_was_replaced_is_not_laid_out(
    any_cas: Cas, root: InputRoot, tmp_path: Path
) -> None:
    # Whatever is where the link leads would be deleted.
    await root.lay_out(await any_cas.tree({"a": b"one"}))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    root.folder.rename(tmp_path / "old")
    root.folder.symlink_to("precious")
    with pytest.raises(RootReplaced):
        await root.lay_out(await any_cas.tree({"a": b"two"}))
    assert entries(tmp_path / "precious") == {"file": b"mine"}
    await root.remove()
    assert entries(tmp_path / "precious") == {"file": b"mine"}
