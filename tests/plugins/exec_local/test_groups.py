"""Control groups of a process: kept from one to the next, and what is written to version 2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import Workplace, run
from stoker_exec_local import open_local
from stoker_exec_local.estate import Land
from stoker_exec_local.hierarchies import Place
from stoker_exec_local.launcher import cgroups
from stoker_exec_local.launcher.group import Estate, Group, Hierarchy
from stoker_exec_local.launcher.messages import Start

from .conftest import OpenStrategy

MIB = 1024 * 1024


async def test_what_a_process_used_is_not_told_of_the_next(  # RUN-29
    open_local_strategy: OpenStrategy, place: Workplace
) -> None:
    text = "head -c 100000000 /dev/zero | tail -n 1 > /dev/null"
    async with open_local_strategy() as strategy:
        if any("degraded: memory" in text for text in strategy.enforcement()):
            pytest.skip("there is no memory control group")
        first = (await run(strategy, place.script(text))).usage
        usages = [(await run(strategy, place.spec("true"))).usage for _ in range(3)]
        again = (await run(strategy, place.script(text))).usage
    assert first is not None
    assert again is not None
    assert min(first.peak_memory_bytes, again.peak_memory_bytes) > 90 * MIB
    for usage in usages:
        assert usage is not None
        assert 0 < usage.peak_memory_bytes < 20 * MIB
        assert usage.user_seconds + usage.system_seconds < 0.5 * sum(first[:2])


async def test_a_limit_does_not_bind_the_next_process(  # ISO-06
    open_local_strategy: OpenStrategy, place: Workplace
) -> None:
    text = "for n in 1 2 3 4 5 6 7 8; do sleep 0 & done; wait"
    async with open_local_strategy() as strategy:
        await run(strategy, place.spec("true"))
        bound = await run(strategy, place.spec("true", limits=spi.Limits(processes=1)))
        free = await run(strategy, place.script(text))
    assert (bound.code, free.code) == (0, 0)


async def test_no_launcher_is_told_as_it_is(tmp_path: Path) -> None:
    land = Land((Place(1, tmp_path / "absent", frozenset({"pids"})),))
    with pytest.raises(spi.Unavailable, match="no control groups can be made"):
        async with open_local(land=land):
            pass


FILES = (
    "cgroup.procs", "cgroup.kill", "memory.max", "memory.swap.max", "memory.peak",
    "memory.events", "pids.max", "pids.events", "cpu.max",
)  # fmt: skip


@pytest.fixture
def estate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Estate:
    """A folder in which new folders have files, as the kernel gives them to its groups."""
    make_folder = os.mkdir

    def make_group(path: str, *arguments: Any) -> None:
        make_folder(path, *arguments)
        for name in FILES:
            (Path(path) / name).write_text("")

    monkeypatch.setattr(os, "mkdir", make_group)
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "estate").mkdir()
    controllers = ("cpu", "memory", "pids")
    estate = Estate([Hierarchy(2, str(tmp_path / "estate"), controllers, True, str(home))], None)
    estate.try_homes()
    assert estate.can_be_visited
    return estate


def limited_start() -> Start:
    return Start([b"true"], {}, b"/", b"", None, b"/dev/null", 1.5, 64 * MIB, 20)


def test_version_2_is_told_of_limits(estate: Estate, tmp_path: Path) -> None:
    group = Group(estate, 7, limited_start())
    folder = tmp_path / "estate" / "7"
    group.create(visited=True)
    # The launcher has a place beside the process, and time that is not counted.
    assert (folder / "pids.max").read_text() == "21"
    assert (folder / "cpu.max").read_text() == ""
    group.join()
    assert (folder / "cgroup.procs").read_text() == "0"
    group.leave()
    # A file of the disk keeps what was written when it was tried.
    assert (tmp_path / "home" / "cgroup.procs").read_text() == "00"
    group.settle()
    assert (folder / "memory.max").read_text() == str(64 * MIB)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "pids.max").read_text() == "20"
    assert (folder / "cpu.max").read_text() == "150000 100000"


def test_version_2_tells_of_breaches_and_kills_at_once(estate: Estate, tmp_path: Path) -> None:
    group = Group(estate, 7, limited_start())
    folder = tmp_path / "estate" / "7"
    group.create(visited=False)
    (folder / "memory.peak").write_text(f"{64 * MIB}\n")
    assert group.peak_memory_bytes() == 64 * MIB
    (folder / "pids.events").write_text("max 3\n")
    assert "out of processes: the limit is 20" in group.breach(64 * MIB)
    (folder / "memory.events").write_text("low 0\nmax 9\noom 1\noom_kill 1\n")
    assert f"out of memory: the limit is {64 * MIB} bytes" in group.breach(64 * MIB)
    group.kill()
    assert (folder / "cgroup.kill").read_text() == "1"
    assert cgroups.read(str(folder), "pids.max") == "20"
