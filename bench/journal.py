"""What it costs that operations outlive the server: the same load with the journal and without.

Two servers that differ in that setting alone, disk stores both. Each action is another one, asked
for by Execute, run, and filed. Those on a warm worker are the shortest that there are, so the
journal's part of them is the largest; `true` is a process of its own each time.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import trio

from bench.actions import Actions
from bench.load import at_a_time
from bench.measurement import Cost, Pair, Row, cost_at, in_turns
from bench.servers import ServerProcess, open_stoker
from stoker.client import RemoteInstance, open_remote
from stoker.digest import Digest

AT_MOST = 1 / 0.85
"""The journal may take 15 % of the throughput."""

_TOOL = Path(__file__).with_name("worker_tool.py").read_bytes()


class _Load(NamedTuple):
    what: str
    arguments: Sequence[str]
    platform: Mapping[str, str]
    in_flight: int


def _loads() -> list[_Load]:
    true = shutil.which("true")
    assert true is not None
    tool = [sys.executable, "-IS", "tool.py", "@flags"]
    return [
        _Load("action on a warm worker", tool, {"persistentWorkerKey": "bench"}, 8),
        _Load("action of a process", [true], {}, 8),
        _Load("action of a process", [true], {}, 1),
    ]


def measure(*, quick: bool) -> list[Row]:
    """Two rows for each load: wall time, which is throughput, and the server's processor time."""
    return [row for load in _loads() for row in trio.run(_measure, load, quick)]


async def _measure(load: _Load, quick: bool) -> list[Row]:
    count, rounds = (8, 2) if quick else (200, 9)
    actions = Actions()
    batches = [[_add(actions, load, f"{b} {n}") for n in range(count)] for b in range(rounds + 1)]
    with (
        open_stoker("disk", load.in_flight) as keeping,
        open_stoker("disk", load.in_flight, scheduler="journal = false") as forgetting,
    ):
        async with open_remote(keeping.address) as kept, open_remote(forgetting.address) as lost:
            await actions.upload(kept)
            await actions.upload(lost)
            turns = [
                _executing(keeping, kept, load, batches),
                _executing(forgetting, lost, load, batches),
            ]
            for turn in turns:
                await turn()
            pair = Pair(*await in_turns(rounds, *turns))
    what = f"journal, {load.what}, {load.in_flight} at a time"
    per_second = 1e3 / count
    return [
        pair.wall_row(what, "no journal", unit="ms", per_second=per_second, at_most=AT_MOST),
        pair.cpu_row(what, "no journal", unit="ms CPU", per_second=per_second),
    ]


def _add(actions: Actions, load: _Load, salt: str) -> Digest:
    files = {"tool.py": _TOOL, "flags": b"--do\n", "new": salt.encode()}
    return actions.add(load.arguments, files, platform=load.platform)


def _executing(
    server: ServerProcess, remote: RemoteInstance, load: _Load, batches: Sequence[Sequence[Digest]]
) -> Callable[[], Awaitable[Cost]]:
    remaining = iter(batches)

    async def run(action: Digest) -> None:
        response = await remote.run(action)
        assert not response.status.code, response.status.message
        assert not response.cached_result
        assert not response.message, response.message

    async def execute() -> Cost:
        batch = next(remaining)
        return await cost_at(server, lambda: at_a_time(load.in_flight, batch, run))

    return execute
