"""Starting ``true`` by a strategy, against trio.run_process: no other part of a server works."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import trio

from bench.load import at_a_time
from bench.measurement import Cost, Pair, Row, cost_here, in_turns
from stoker import spi
from stoker_exec_local import Settings, open_strategy

PROGRAM = "/bin/true"


def measure(*, quick: bool) -> list[Row]:
    """A row for each number of processes at a time."""
    return [trio.run(_measure, slots, quick) for slots in (1, 2, 8)]


async def _measure(slots: int, quick: bool) -> Row:
    count, rounds = (5, 2) if quick else (100, 7)
    with tempfile.TemporaryDirectory() as name:
        spec = _spec(Path(name))
        async with open_strategy(Settings(), spi.Context("here", Path(name), {})) as strategy:

            async def start() -> Cost:
                return await cost_here(
                    lambda: at_a_time(slots, range(count), lambda _: _run(strategy, spec))
                )

            async def start_bare() -> Cost:
                return await cost_here(
                    lambda: at_a_time(slots, range(count), lambda _: _run_bare())
                )

            await start()
            await start_bare()
            pair = Pair(*await in_turns(rounds, start, start_bare))
    return pair.wall_row(
        f"`true` by the local strategy, {slots} at a time",
        "trio.run_process",
        unit="ms",
        per_second=1e3 / count,
    )


def _spec(folder: Path) -> spi.ProcessSpec:
    for name in ("root", "temporary"):
        (folder / name).mkdir()
    return spi.ProcessSpec(
        argv=(PROGRAM,),
        environment={},
        root=folder / "root",
        temporary_directory=folder / "temporary",
        stdout=folder / "stdout",
        stderr=folder / "stderr",
    )


async def _run(strategy: spi.ExecutionStrategy, spec: spi.ProcessSpec) -> None:
    async with strategy.start(spec) as process:
        assert (await process.wait()).code == 0


async def _run_bare() -> None:
    nowhere = subprocess.DEVNULL
    await trio.run_process([PROGRAM], stdin=nowhere, stdout=nowhere, stderr=nowhere)
