"""Where control groups are, as far as files like those of the kernel tell it."""

from __future__ import annotations

from pathlib import Path

from stoker_exec_local.estate import establish, prepare
from stoker_exec_local.hierarchies import Place, find_places

MOUNTS_2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_version_2_is_found_with_its_controllers(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/cgroup/user.slice/app"
    folder.mkdir(parents=True)
    (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    places = find_places("0::/user.slice/app\n", MOUNTS_2, below=tmp_path)
    assert places == [Place(2, folder, frozenset({"cpu", "memory", "pids"}))]


def test_a_container_sees_its_group_at_the_mount_point(tmp_path: Path) -> None:
    mounts = "40 30 0:31 /docker/1f /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    places = find_places("4:memory:/docker/1f\n3:cpuset:/\n", mounts, below=tmp_path)
    assert places == [Place(1, tmp_path / "sys/fs/cgroup/memory", frozenset({"memory"}))]


def test_a_group_beyond_the_mount_is_left_out(tmp_path: Path) -> None:
    mounts = "40 30 0:31 /docker/1f /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
    assert find_places("4:pids:/elsewhere\n", mounts, below=tmp_path) == []


def test_controllers_that_version_2_passes_on_are_used_and_passed_on_again(tmp_path: Path) -> None:
    for name in ("cgroup.controllers", "cgroup.subtree_control", "cgroup.procs"):
        (tmp_path / name).write_text("")
    place = Place(2, tmp_path, frozenset({"memory"}))
    land, problems = prepare([place])
    assert problems == []
    # A file of the disk keeps "+memory" as it was written, so that nothing seems passed on.
    assert land.places == (Place(2, tmp_path, frozenset()),)
    estate = establish(land, 10**9)
    assert estate.max_memory_bytes is None
    assert [path.name.split("-")[0] for path in tmp_path.glob("stoker-*/")] == ["stoker"]
    assert estate.remove()


def test_what_cannot_be_written_is_told_with_its_reason(tmp_path: Path) -> None:
    land, problems = prepare([Place(1, tmp_path / "absent", frozenset({"pids"}))])
    assert land.places == ()
    assert problems == [f"{tmp_path / 'absent'}: No such file or directory"]
