"""Compilers that stay warm, against the same actions in processes of their own.

They are javac, in Bazel's VanillaJavaBuilder, and TypeScript, in tsc_wrapped of @bazel/concatjs,
which `tests/real_workers/install` fetches; where one is absent, its row is left out, and that is
said. Both sides are actions of one server, each with another edit of one file, uploaded before: a
worker that has served a few requests is given them, or a process is started for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from bench.load import at_a_time
from bench.measurement import Cost, Pair, Row, cost_at, in_turns
from bench.servers import open_stoker
from stoker.client import open_remote
from stoker.digest import Digest
from tests.end_to_end.actions import Tree
from tests.real_workers import programs
from tests.real_workers.packages import tool_tree
from tests.real_workers.projects import (
    DOOR,
    GREETER,
    LIBRARY_OUTPUTS,
    MAIN,
    SHAPES,
    TSC_WRAPPED,
    TSC_WRAPPED_PACKAGES,
    library,
    project,
)
from tests.real_workers.workbench import Workbench

AT_MOST = 1 / 5
"""An action is to be at least 5 times as fast on a warm worker."""

_WORKER = {"persistentWorkerKey": "bench"}


@dataclass(frozen=True, slots=True)
class _Compiler:
    name: str
    command: list[str]
    edit: Callable[[int], Tree]
    """The sources, with an edit that bears this number."""
    outputs: list[str]


def measure(*, quick: bool) -> list[Row]:
    """A row for each compiler that is there."""
    rows = []
    for open_compiler in (_open_javac, _open_tsc_wrapped):
        try:
            with open_compiler() as compiler:
                rows.append(trio.run(_measure, compiler, quick))
        except programs.ProgramAbsent as absent:
            print(f"real_workers: left out, as {absent}")
    return rows


async def _measure(compiler: _Compiler, quick: bool) -> Row:
    count, rounds, warm_up = (1, 2, 2) if quick else (2, 5, 8)
    edits = iter(range(10_000))
    with open_stoker("disk") as server:
        async with open_remote(server.address) as remote:
            bench = Workbench(remote)

            async def upload(platform: dict[str, str], number: int) -> list[Digest]:
                return [
                    await bench.upload(
                        compiler.command, compiler.edit(next(edits)), compiler.outputs, platform
                    )
                    for _ in range(number)
                ]

            async def execute(action: Digest) -> None:
                response = await remote.run(action)
                assert not response.status.code, response.status.message
                assert (response.result.exit_code, response.message) == (0, "")

            async def cost(platform: dict[str, str]) -> Cost:
                actions = await upload(platform, count)
                return await cost_at(server, lambda: at_a_time(1, actions, execute))

            await at_a_time(1, await upload(_WORKER, warm_up), execute)
            pair = Pair(*await in_turns(rounds, lambda: cost(_WORKER), lambda: cost({})))
    return pair.wall_row(
        f"{compiler.name}, warm, one edit",
        "a process of its own",
        unit="ms",
        per_second=1e3 / count,
        at_most=AT_MOST,
    )


@contextmanager
def _open_javac() -> Iterator[_Compiler]:
    def edit(number: int) -> Tree:
        return library(Greeter=GREETER.replace(b"Hello", b"Hello %d" % number), Door=DOOR)

    with TemporaryDirectory(prefix="stoker-bench-") as folder:
        command = [*programs.java_builder(Path(folder)), "@flags"]
        yield _Compiler("javac", command, edit, LIBRARY_OUTPUTS)


@contextmanager
def _open_tsc_wrapped() -> Iterator[_Compiler]:
    tool = tool_tree(programs.node_modules(), TSC_WRAPPED_PACKAGES)

    def edit(number: int) -> Tree:
        return project(tool, shapes=SHAPES + b"export const edit = %d;\n" % number, main=MAIN)

    command = [programs.node(), TSC_WRAPPED, "@@tsconfig.json"]
    yield _Compiler("tsc_wrapped", command, edit, ["out"])
