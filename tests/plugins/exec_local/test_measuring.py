"""Where memory is read: from control groups of both versions, or of each process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stoker.testing.execution_strategy_laws import Workplace
from stoker_exec_local.launcher import messages
from stoker_exec_local.measuring import memory_in_use

from .conftest import OpenStrategy


@pytest.mark.parametrize(
    ("version", "usage_file", "prefix"),
    [(2, "memory.current", ""), (1, "memory.usage_in_bytes", "total_")],
)
def test_the_page_cache_does_not_count(
    tmp_path: Path, version: int, usage_file: str, prefix: str
) -> None:
    (tmp_path / usage_file).write_text("1000\n")
    stat = f"{prefix}anon 5\n{prefix}inactive_file 200\n{prefix}active_file 100\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert memory_in_use((messages.GROUP_MEMORY, version, str(tmp_path))) == 700
    assert memory_in_use((messages.GROUP_MEMORY, version, str(tmp_path / "gone"))) is None


def test_without_a_memory_controller_its_processes_are_asked(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n{2**22 + 1}\n")
    own_bytes = memory_in_use((messages.GROUP_MEMBERS, str(tmp_path)))
    assert own_bytes is not None
    assert 5_000_000 < own_bytes < 2_000_000_000
    assert memory_in_use((messages.GROUP_MEMBERS, str(tmp_path / "gone"))) is None


@pytest.mark.parametrize("cgroups", ["auto", "never"])
async def test_a_process_of_this_machine_is_measured(
    tmp_path: Path, open_local_strategy: OpenStrategy, cgroups: str
) -> None:
    (tmp_path / "place").mkdir()
    place = Workplace(tmp_path / "place")
    async with (
        open_local_strategy(cgroups=cgroups) as strategy,
        strategy.start(place.script("read _", pipes=True)) as process,
    ):
        used_bytes = await process.measure_memory()
    assert used_bytes is not None
    assert 0 < used_bytes < 20_000_000
