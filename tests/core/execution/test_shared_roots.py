"""Input roots that several requests use at once, and that live with a process."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import InputsMissing
from stoker.execution.folder_watch import FolderWatch, open_folder_watch
from stoker.execution.input_root import InputRoot, RootReplaced

Cas = Any


@pytest.fixture
def watch() -> Iterator[FolderWatch]:
    with open_folder_watch() as opened:
        yield opened


def listed(root: InputRoot) -> dict[str, str]:
    return {
        str(path.relative_to(root.folder)): path.read_text()
        for path in sorted(root.folder.rglob("*"))
        if path.is_file()
    }


def facts(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_ctime_ns


async def test_a_tree_is_added_beside_what_others_use(cas: Cas, tmp_path: Path) -> None:
    # PWK-13
    root = InputRoot(tmp_path / "root", cas.blobs)
    await root.lay_out(await cas.tree({"a": b"1", "d": {"x": b"1"}, "old": b""}), {"out"})
    inode = (root.folder / "d/x").stat().st_ino
    (root.folder / "out/theirs").write_text("written")
    (root.folder / "b").write_text("in the way")
    (root.folder / "mine").mkdir()
    (root.folder / "mine/left").touch()
    tree = await cas.tree({"a": b"1", "b": b"2", "d": {"y": b"2"}, "e": {"z": b""}})
    await root.add(tree, {"out/deep"}, ["mine", "old", "d/none"])
    assert listed(root) == {
        "a": "1",
        "b": "2",
        "d/x": "1",
        "d/y": "2",
        "e/z": "",
        "out/theirs": "written",
    }
    assert (root.folder / "out/deep").is_dir()
    assert (root.folder / "d/x").stat().st_ino == inode, "it stays the very file"
    await root.add(await cas.tree({"a": b"new"}))
    assert listed(root)["a"] == "new"
    await root.lay_out(tree)
    assert listed(root) == {"a": "1", "b": "2", "d/y": "2", "e/z": ""}


async def test_outputs_are_dropped_and_inputs_among_them_made_again(
    cas: Cas, tmp_path: Path
) -> None:
    root = InputRoot(tmp_path / "root", cas.blobs)
    tree = await cas.tree({"a": b"1", "d": {"x": b"1", "y": b"2"}, "l": "/"})
    await root.lay_out(tree, {"out"})
    for name in ("out/o", "d/x", "stray"):
        (root.folder / name).write_text("written")
    await root.drop(["out/o", "d/x", "out/none", "a/none", "l/none"])
    assert listed(root) == {"a": "1", "d/y": "2", "stray": "written"}
    await root.add(tree)
    assert listed(root)["d/x"] == "1"


async def test_a_root_in_doubt_takes_nothing_more(cas: Cas, tmp_path: Path) -> None:
    root = InputRoot(tmp_path / "root", cas.blobs)
    await root.lay_out(await cas.tree({"a": b"1"}))
    tree = await cas.tree({"b": b"gone"})
    empty = InputRoot(root.folder, type(cas)().blobs)
    with pytest.raises(InputsMissing):
        await empty.lay_out(tree)
    with pytest.raises(RootReplaced):
        await empty.add(tree)
    await root.lay_out(tree)
    assert listed(root) == {"b": "gone"}


@pytest.mark.parametrize("watched", [True, False])
async def test_whatever_was_done_to_an_input_is_undone(
    cas: Cas, tmp_path: Path, watch: FolderWatch, watched: bool
) -> None:
    # WORKERS 8.14: the folder's inode stays.
    root = InputRoot(tmp_path / "root", cas.blobs, watch=watch if watched else None)
    names = ("write", "replace", "remove", "mode", "mapped", "untouched")
    tree = await cas.tree({"d": dict.fromkeys(names, b"text")})
    await root.lay_out(tree)
    inode = root.folder.stat().st_ino
    untouched = facts(root.folder / "d/untouched")
    for _ in range(3):
        await root.clean()
        await root.lay_out(tree)
        folder = root.folder / "d"
        (folder / "replace").unlink()
        (folder / "replace").write_text("TEXT")
        with (folder / "write").open("r+") as text:
            text.write("TEXT")
        with (folder / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[:] = b"TEXT"
        (folder / "mode").chmod(0o600)
        (folder / "remove").unlink()
        await root.clean()
        await root.lay_out(tree)
        assert listed(root) == {f"d/{name}": "text" for name in names}
        assert (folder / "mode").stat().st_mode & 0o777 == 0o644
    # Alone, with nothing in its folder to tell of it.
    for _ in range(2):
        await root.clean()
        await root.lay_out(tree)
        descriptor = os.open(root.folder / "d/write", os.O_WRONLY)
        os.pwrite(descriptor, b"T", 0)
        os.close(descriptor)
        await root.clean()
        await root.lay_out(tree)
        assert listed(root)["d/write"] == "text"
    # By another name of the same file, elsewhere, of which its own folder is told nothing.
    for beside in ("beside", "e/beside"):
        await root.lay_out(tree, ["e"])
        (root.folder / beside).hardlink_to(root.folder / "d/write")
        (root.folder / beside).write_text("TEXT")
        await root.clean()
        await root.lay_out(tree)
        assert listed(root) == {f"d/{name}": "text" for name in names}
    assert root.folder.stat().st_ino == inode
    assert facts(root.folder / "d/untouched") == untouched


async def test_a_few_looks_tell_whether_a_watched_folder_was_touched(
    cas: Cas, tmp_path: Path, watch: FolderWatch
) -> None:
    root = InputRoot(tmp_path / "root", cas.blobs, watch=watch)
    files = {f"f{number}": b"text" for number in range(30)}
    await root.lay_out(await cas.tree({"d": files}))
    await root.clean()
    tree = await cas.tree({"d": {**files, "f1": b"new"}})
    await root.lay_out(tree)
    assert root.skip_cleaning(), "nobody but the layout has changed anything"
    deeds: list[Callable[[Path], object]] = [
        lambda top: (top / "d/f1").write_text("NEW"),
        lambda top: (top / "d/f2").write_text("TEXT"),
        lambda top: (top / "d/f3").chmod(0o600),
        lambda top: (top / "d/f4").unlink(),
        lambda top: (top / "d/f5").replace(top / "d/f6"),
        lambda top: (top / "d/more").touch(),
        lambda top: (top / "more").mkdir(),
        lambda top: (top / "d").chmod(0o700),
        lambda top: (top / "d").rename(top / "e").rename(top / "d"),
    ]
    for deed in deeds:
        await root.lay_out(tree)
        deed(root.folder)
        assert not root.skip_cleaning()
        await root.clean()
        await root.lay_out(tree)
        assert listed(root) == {f"d/{name}": "text" for name in files} | {"d/f1": "new"}
        assert (root.folder / "d").stat().st_mode & 0o777 == 0o755


def test_a_watch_tells_which_names_were_touched_since_they_were_looked_at(
    tmp_path: Path, watch: FolderWatch
) -> None:
    folders = [tmp_path / name for name in "abc"]
    numbers = []
    for folder in folders:
        folder.mkdir()
        (folder / "file").touch()
        descriptor = os.open(folder, os.O_RDONLY)
        numbers.append(watch.add(descriptor))
        os.close(descriptor)
    assert list(map(watch.take_touched, numbers)) == [set(), set(), set()]
    (folders[0] / "file").write_text("x")
    (folders[1] / "file").unlink()
    (folders[1] / "new").symlink_to("file")
    watch.refresh()
    assert list(map(watch.take_touched, numbers)) == [{"file"}, {"file", "new"}, set()]
    assert list(map(watch.take_touched, numbers)) == [set(), set(), set()]
    # What happens to the folder itself, or to too much in it, no names can tell.
    folders[0].chmod(0o700)
    for number in range(2_000):
        (folders[1] / f"{number}").touch()
    watch.refresh()
    assert list(map(watch.take_touched, numbers)) == [None, None, set()]
    assert watch.take_touched(0) is None
    watch.close()
    assert list(map(watch.take_touched, numbers)) == [None, None, None]


def test_a_folder_that_has_gone_unheard_makes_room_for_another(
    tmp_path: Path, watch: FolderWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.execution.folder_watch.MAX_WATCHES", 1)
    heard = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    gone, other = tmp_path / "gone", tmp_path / "other"
    gone.mkdir()
    other.mkdir()
    first = add(watch, gone)
    assert watch.touched(first) == set()
    assert not add(watch, other)
    for number in range(heard // 2 + 1):  # two that are equal and follow each other count as one
        (gone / f"{number}").touch()
        (gone / f"{number}").unlink()
    gone.rmdir()
    second = add(watch, other)
    assert watch.touched(second) == set()
    assert watch.touched(first) is None
    (other / "file").touch()
    watch.refresh()
    assert watch.touched(second) == {"file"}


def add(watch: FolderWatch, folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return watch.add(descriptor)
    finally:
        os.close(descriptor)
