"""Roots of links and of copies: what an action does to one, and what is there afterwards."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stoker.digest import SHA256, Digest
from stoker.errors import InputsMissing
from stoker.execution.input_root import InputRoot
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import Context, ProcessUser
from stoker.storage.verifying import VerifyingBlobStore
from stoker_storage_disk import DiskSettings, open_disk_blob_store

Cas = Any
NOBODY = ProcessUser(65534, 65534)
CONTENTS = [b"", b"one", b"two", b"#!/bin/sh\necho", b"large" * 1000]


@pytest.fixture
async def disk_cas(cas: Cas, tmp_path: Path) -> AsyncIterator[Cas]:
    settings = DiskSettings(path="cas", fsync=False)
    async with open_disk_blob_store(settings, Context("test", tmp_path, {})) as store:
        cas.blobs = VerifyingBlobStore(store)
        yield cas


def seen(folder: Path) -> dict[str, object]:
    """All that a process could see below `folder`."""
    found: dict[str, object] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            status = path.lstat()
            shape: object = stat.S_IMODE(status.st_mode)
            if path.is_symlink():
                shape = str(path.readlink())
            elif path.is_file():
                shape = (shape, status.st_mtime_ns, path.read_bytes())
            found[str(path.relative_to(folder))] = shape
    return found


def random_entries(source: random.Random, depth: int = 3) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name in source.sample("abcdefg", source.randint(0, 5)):
        kind = source.random()
        if kind < 0.5 or not depth:
            entries[name] = source.choice(CONTENTS)
        elif kind < 0.6:
            entries[name] = source.choice(["a", "../b", "/etc", "nowhere"])
        else:
            entries[name] = random_entries(source, depth - 1)
    return entries


def vandalise(folder: Path, source: random.Random, *, in_place: bool) -> None:
    """Do some harm, as an action might; writing into inputs only where they are copies."""
    paths = [Path(parent, n) for parent, f, s in os.walk(folder) for n in (*f, *s)] or [folder]
    for path in source.sample(paths, min(len(paths), 3)):
        if not os.path.lexists(path):
            continue
        harm = source.randrange(7)
        is_file = path.is_file() and not path.is_symlink()
        if harm == 0 and is_file:
            path.unlink()
        elif harm == 1 and is_file:
            path.unlink()
            path.write_bytes(source.choice(CONTENTS))
        elif harm == 2 and path.is_dir() and not path.is_symlink():
            (path / f"output{source.random()}").write_bytes(b"made")
        elif harm == 3 and path != folder:
            path.rename(path.with_name(f"moved{source.random()}"))
        elif harm == 4 and path != folder:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            path.symlink_to("/etc")
        elif harm == 5 and is_file:
            os.link(path, path.with_name(f"again{source.random()}"))
        elif in_place and is_file:
            path.chmod(0o600)
            path.write_bytes(b"!!!"[: path.stat().st_size])
            os.utime(path, ns=(0, 946_684_800 * 10**9))
        elif path.is_dir() and not path.is_symlink():
            path.chmod(0o500)


@pytest.mark.parametrize("link", [True, False])
@pytest.mark.parametrize("seed", range(12))
async def test_whatever_was_there_the_folder_is_the_tree(
    disk_cas: Cas, tmp_path: Path, link: bool, seed: int
) -> None:
    # RUN-01, RUN-25
    source = random.Random(seed)
    root = InputRoot(tmp_path / "root", disk_cas.blobs, link=link)
    entries = random_entries(source)
    for step in range(10):
        if source.random() < 0.5:
            # Most often only some of it changes.
            entries = {**entries, **random_entries(source, 1)}
        tree = await disk_cas.tree(entries)
        parents = ["out/deep"] if "out" not in entries and source.random() < 0.3 else []
        await root.lay_out(tree, parents)
        fresh = InputRoot(tmp_path / f"fresh{step}", disk_cas.blobs, link=link)
        await fresh.lay_out(tree, parents)
        assert seen(root.folder) == seen(fresh.folder)
        vandalise(root.folder, source, in_place=not link)
        if source.random() < 0.5:
            await root.clean()


async def test_inputs_are_links_that_look_as_they_should(disk_cas: Cas, tmp_path: Path) -> None:
    # RUN-03, RUN-04
    timed = reapi.FileNode(digest=(await disk_cas.put(b"timed")).to_proto())
    timed.node_properties.mtime.seconds = 12
    root = InputRoot(tmp_path / "root", disk_cas.blobs, link=True)
    await root.lay_out(await disk_cas.tree({"a": b"one", "p": b"#!/bin/sh", "t": timed}))
    states = {path.name: path.stat() for path in root.folder.iterdir()}
    assert {n: (stat.S_IMODE(s.st_mode), s.st_nlink, s.st_mtime) for n, s in states.items()} == {
        "a": (0o444, 2, 946_684_800),
        "p": (0o555, 2, 946_684_800),
        "t": (0o444, 1, 12),
    }


async def test_a_clean_root_of_the_same_tree_is_not_looked_at(
    disk_cas: Cas, tmp_path: Path
) -> None:
    root = InputRoot(tmp_path / "root", disk_cas.blobs, link=True)
    tree = await disk_cas.tree({"d": {"a": b"one"}})
    await root.lay_out(tree)
    await root.clean()
    disk_cas.blobs = None
    await root.lay_out(tree)


async def test_a_directory_that_is_the_same_is_left_alone(disk_cas: Cas, tmp_path: Path) -> None:
    root = InputRoot(tmp_path / "root", disk_cas.blobs, link=True)
    same = {"a": b"one", "b": {"c": b"two"}}
    await root.lay_out(await disk_cas.tree({"same": same, "other": {"x": b"1"}}))
    before = (root.folder / "same").stat(), (root.folder / "same/b").stat()
    await root.lay_out(await disk_cas.tree({"same": same, "other": {"x": b"2", "y": b"3"}}))
    after = (root.folder / "same").stat(), (root.folder / "same/b").stat()
    assert [s.st_ctime_ns for s in before] == [s.st_ctime_ns for s in after]
    assert (root.folder / "other/x").read_bytes() == b"2"


async def test_what_an_action_removed_comes_back_only_where_it_is_wanted(
    disk_cas: Cas, tmp_path: Path
) -> None:
    root = InputRoot(tmp_path / "root", disk_cas.blobs, link=True)
    await root.lay_out(await disk_cas.tree({"d": {"a": b"one", "b": b"two"}}))
    (root.folder / "d/a").unlink()
    await root.clean()
    await root.lay_out(await disk_cas.tree({"d": {"b": b"two"}}))
    assert [path.name for path in (root.folder / "d").iterdir()] == ["b"]
    await root.lay_out(await disk_cas.tree({"d": {"a": b"one", "b": b"two"}}))
    assert (root.folder / "d/a").read_bytes() == b"one"


HOSTILE = """
chmod 777 "$f"; echo harm >> "$f"; : > "$f"
truncate -s 0 "$f"; truncate -s 9999 "$f"; touch -d @0 "$f"
ln "$f" "$f.link"; chmod 666 "$f.link"; echo harm >> "$f.link"
mv "$f" "$f.moved"; echo harm > "$f"; mv "$f.moved" "$f"; echo harm >> "$f"
dd if=/dev/zero of="$f" conv=notrunc bs=1 count=3
"""
MAPPING = """
import mmap, os, sys
for path in sys.argv[1:]:
    for flags in (os.O_RDWR, os.O_RDONLY):
        try:
            with open(os.open(path, flags), "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0)
                mapped[0:1] = b"!"
        except (OSError, TypeError, ValueError):
            pass
"""


@pytest.mark.parametrize("link", [True, False])
async def test_no_blob_is_harmed(disk_cas: Cas, tmp_path: Path, link: bool) -> None:
    # RUN-02: links for another user's processes, copies for the server's own.
    if link and os.geteuid() != 0:
        pytest.skip("only root can start processes as somebody else")
    user = NOBODY if link else None
    entries = {"a": b"one", "p": b"#!/bin/sh\n", "d": {"b": b"two" * 5000, "e": {"c": b"c"}}}
    tree = await disk_cas.tree(entries)
    for folder in (tmp_path, *tmp_path.parents):
        if link and folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    root = InputRoot(tmp_path / "root", disk_cas.blobs, link=link, user=user)
    await root.lay_out(tree)
    expected = seen(root.folder)
    digests = [file.digest for file in tree.files.values()]
    files = [str(root.folder / path) for path in tree.files]
    run(["/bin/sh", "-c", f'for f in "$@"; do {HOSTILE}\ndone', "sh", *files], user)
    run(["/usr/bin/python3", "-c", MAPPING, *files], user)
    run(["/bin/sh", "-c", "rm -r d; ln -s / d; chmod 0 ."], user, root.folder)
    assert await damaged(disk_cas, digests) == []
    await root.lay_out(tree)
    assert seen(root.folder) == expected
    assert await damaged(disk_cas, digests) == []


def run(arguments: list[str], user: ProcessUser | None, folder: Path = Path("/")) -> None:
    who = {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}
    subprocess.run(arguments, cwd=folder, capture_output=True, check=False, **who)  # type: ignore[call-overload] # keywords by name


async def damaged(cas: Cas, digests: list[Digest]) -> list[Digest]:
    found = []
    for digest in digests:
        async with cas.blobs.open_read(digest) as reader:
            data = b""
            while piece := await reader.read(10**6):
                data += piece
        if SHA256.digest(data) != digest:
            found.append(digest)
    return found


async def test_an_evicted_blob_cannot_be_replaced_unseen(disk_cas: Cas, tmp_path: Path) -> None:
    # The number of the only name's inode is free for the next file, and ext4 takes it.
    root = InputRoot(tmp_path / "root", disk_cas.blobs, link=True)
    tree = await disk_cas.tree({"d": {"a": b"one"}})
    await root.lay_out(tree)
    (stored,) = (tmp_path / "cas").rglob(f"*{SHA256.digest(b'one').hash}*")
    stored.unlink()
    (root.folder / "d/a").unlink()
    (root.folder / "d/a").write_bytes(b"two")
    await root.clean()
    with pytest.raises(InputsMissing):
        await root.lay_out(tree)
    await disk_cas.put(b"one")
    await root.lay_out(tree)
    assert (root.folder / "d/a").read_bytes() == b"one"


async def test_a_file_with_as_many_names_as_there_may_be_is_copied(
    disk_cas: Cas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(os, "link", full)
    root = InputRoot(tmp_path / "root", disk_cas.blobs, link=True)
    await root.lay_out(await disk_cas.tree({"a": b"one", "p": b"#!/bin/sh"}))
    assert (root.folder / "a").read_bytes() == b"one"
    assert stat.S_IMODE((root.folder / "p").stat().st_mode) == 0o555


@pytest.mark.parametrize("is_program", [False, True])
@pytest.mark.parametrize("found", [None, b"", b"#!/bin/sh and more"])
async def test_a_blob_that_is_not_whole_is_missing(
    disk_cas: Cas, tmp_path: Path, found: bytes | None, is_program: bool
) -> None:
    # RUN-05, STO-03: nobody looks at it before it has been linked.
    root = InputRoot(tmp_path / "root", disk_cas.blobs, link=True)
    node = reapi.FileNode(digest=(await disk_cas.put(b"#!/bin/sh")).to_proto())
    node.is_executable = is_program
    tree = await disk_cas.tree({"d": {"a": b"one", "p": node}})
    (stored,) = (tmp_path / "cas").rglob(f"*{SHA256.digest(b'#!/bin/sh').hash}*")
    stored.unlink()
    if found is not None:
        stored.write_bytes(found)
    with pytest.raises(InputsMissing) as raised:
        await root.lay_out(tree)
    assert [*raised.value.digests] == [SHA256.digest(b"#!/bin/sh")]
    assert not stored.exists()
    await disk_cas.put(b"#!/bin/sh")
    await root.lay_out(tree)
    assert (root.folder / "d/p").read_bytes() == b"#!/bin/sh"


async def test_a_file_with_another_time_is_mended_and_linked(disk_cas: Cas, tmp_path: Path) -> None:
    # RUN-04: as an earlier release has left it.
    root = InputRoot(tmp_path / "root", disk_cas.blobs, link=True)
    tree = await disk_cas.tree({"d": {"a": b"one"}})
    (stored,) = (tmp_path / "cas").rglob(f"*{SHA256.digest(b'one').hash}*")
    os.utime(stored, (1, 1))
    await root.lay_out(tree)
    status = (root.folder / "d/a").stat()
    assert (status.st_mtime, status.st_ino) == (946_684_800, stored.stat().st_ino)
    before = (root.folder / "d").stat().st_ctime_ns
    await root.lay_out(tree)
    assert (root.folder / "d").stat().st_ctime_ns == before
