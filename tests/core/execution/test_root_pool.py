"""Which kept root an action gets, through the executor that keeps them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import trio

from stoker.digest import SHA256
from stoker.execution.root_pool import RootPool
from stoker.execution.settings import ExecutionSettings
from stoker.storage.input_tree import FileEntry, InputDirectory, InputTree

Cas = Any
Rig = Any
OpenRig = Callable[..., AbstractAsyncContextManager[Any]]


def tree(*names: str) -> InputTree:
    files = {name: FileEntry(SHA256.digest(name.encode())) for name in names}
    return InputTree(InputDirectory(SHA256.digest(repr(names).encode()), files, {}, {}))


class Root:
    def __init__(self, *names: str) -> None:
        self.directory: InputDirectory | None = tree(*names).root

    def cost(self, wanted: InputTree) -> int:
        assert self.directory is not None
        return len(self.directory.files.keys() ^ wanted.root.files.keys())


def pool(max_roots: int = 3, max_entries: int = 100, max_bytes: int = 10**6) -> RootPool[Root]:
    return RootPool(max_roots=max_roots, max_entries=max_entries, max_bytes=max_bytes)


def test_the_nearest_is_taken() -> None:
    roots = pool()
    near, far, same = Root("a", "b"), Root("x", "y"), Root("a", "b", "c")
    for root in (near, far, same):
        assert roots.give_back(root) == []
    assert roots.take(tree("a", "b", "c")) is same
    assert roots.take(tree("a", "b", "c")) is near


def test_one_that_costs_more_than_a_new_one_is_left() -> None:
    roots = pool()
    roots.give_back(Root(*map(str, range(60))))
    assert roots.take(tree("a")) is None


def test_the_least_recently_used_gives_way() -> None:
    roots = pool(max_roots=2)
    first, second, third = Root("1"), Root("2"), Root("3")
    assert roots.give_back(first) == []
    assert roots.give_back(second) == []
    assert roots.give_back(third) == [first]
    assert pool(max_entries=1).give_back(Root("a", "b")) != []
    assert pool(max_bytes=1).give_back(Root("a", "b")) != []


async def test_actions_follow_each_other_in_one_folder(rig: Rig) -> None:
    # RUN-26, RUN-25
    script = "pwd; ls -A; ls -A $TMPDIR; touch left $TMPDIR/left; rm -f in; mkdir -p d; chmod 0 d"
    first = await rig.stdout(script, inputs={"in": b"1", "same": {"a": b"2"}})
    second = await rig.stdout(script, inputs={"in": b"1", "same": {"a": b"2"}})
    third = await rig.stdout("pwd; cat in", inputs={"in": b"3", "same": {"a": b"2"}})
    assert first == second
    assert first.splitlines()[1:] == ["in", "same"]
    assert third.splitlines() == [first.splitlines()[0], "3"]
    assert rig.leftovers() == []


async def test_a_stream_serves_again_only_where_nobody_has_it(rig: Rig, tmp_path: Path) -> None:
    # RUN-25
    async def streams() -> dict[str, int]:
        assert await rig.shell("true")
        (top,) = rig.executor.workplace.kept_folders
        return {name: (top / name).stat().st_ino for name in ("stdout", "stderr")}

    first = await streams()
    assert await streams() == first
    # Somebody else, an action with a descriptor that was passed to it say, could write to one,
    # and read the other.
    (top,) = rig.executor.workplace.kept_folders
    with (top / "stdout").open("ab") as written, (top / "stderr").open("rb"):
        second = await streams()
        assert not second.items() & first.items()
        written.write(b"of another action")
    (top / "stdout").chmod(0o644)
    (tmp_path / "name").hardlink_to(top / "stderr")
    assert (await streams())["stderr"] != second["stderr"]
    assert (top / "stdout").stat().st_mode & 0o777 == 0o600
    await rig.run(await rig.cas.shell("rm $TMPDIR/../stderr; rm -r $TMPDIR; exec true"))
    await rig.shell('test -z "$(ls -A $TMPDIR)" && echo said && echo more >&2')
    assert rig.leftovers() == []
    assert (await streams()).keys() == first.keys()


async def test_actions_at_once_have_folders_of_their_own(rig: Rig, tmp_path: Path) -> None:
    folders = []
    begun = tmp_path / "begun"
    begun.mkdir()
    # None ends before all have begun: one that comes later may well have the folder of an earlier.
    wait = f"mkdir {begun}/$$; while [ $(ls {begun} | wc -l) -lt 3 ]; do sleep 0.01; done"

    async def run() -> None:
        folders.append(await rig.stdout(f"pwd; {wait}"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(run)
    assert len(set(folders)) == 3


async def test_none_is_kept_where_none_may_be(
    cas: Cas, strategy: Any, tmp_path: Path, open_rig: OpenRig
) -> None:
    settings = ExecutionSettings(kept_roots=0)
    async with open_rig(cas, strategy, tmp_path / "e", settings) as rig:
        assert await rig.stdout("pwd") != await rig.stdout("pwd ")
        assert list((tmp_path / "e").glob("life-*/actions/*")) == []


async def test_nothing_is_left_when_the_executor_has_ended(
    cas: Cas, strategy: Any, tmp_path: Path, open_rig: OpenRig
) -> None:
    async with open_rig(cas, strategy, tmp_path / "e") as rig:
        await rig.stdout("pwd", inputs={"a": b"x"})
        assert len(rig.executor.workplace.kept_folders) == 1
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["lock"]


async def test_a_root_that_was_moved_away_is_not_kept(rig: Rig) -> None:
    await rig.run(await rig.cas.shell("mv ../root ../other; mkdir ../root"))
    assert rig.executor.workplace.kept_folders == []
    assert rig.leftovers() == []
