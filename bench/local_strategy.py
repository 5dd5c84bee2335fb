"""Bazel with stoker, against Bazel's own persistent workers, on the same workspace.

The workspace is a copy of the example in `examples/bazel`, with more pages; each is compiled twice,
by a worker that speaks protobuf and by one that speaks JSON. Before every build each page is
edited; the build then compiles them all, on workers that are warm. Both sides hold all that Bazel
does besides, and the one through stoker the way of every input and output over loopback. Where
there is no Bazel, the row is left out, and that is said.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import trio

from bench.measurement import Cost, Pair, Row, cost_at, in_turns
from bench.servers import ServerProcess, open_stoker
from tests.end_to_end.bazel import Bazel, open_bazel

_PROTOCOLS = ("proto", "json")


def measure(*, quick: bool) -> list[Row]:
    """One row, if there is a Bazel."""
    program = shutil.which("bazel")
    if program is None:
        print("local_strategy: left out, as there is no `bazel` on the PATH")
        return []
    pages, rounds = (4, 2) if quick else (100, 5)
    with (
        tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder,
        open_bazel(program, Path(folder)) as bazel,
        open_stoker("disk", slots=2) as server,
    ):
        pair = trio.run(_measure, _Builds(bazel, server, pages), rounds)
    return [
        pair.wall_row(
            f"Bazel compiles {2 * pages} pages with stoker",
            "its own workers",
            unit="s",
            per_second=1,
        )
    ]


class _Builds:
    """Builds of the same targets, each after another edit of all their sources."""

    def __init__(self, bazel: Bazel, server: ServerProcess, pages: int) -> None:
        self._bazel = bazel
        self._server = server
        self._pages = [f"bench{number}" for number in range(pages)]
        self._edits = 0

    async def with_stoker(self) -> Cost:
        address = f"--remote_executor=grpc://{self._server.address}"
        return await self._cost("remote", "--config=remote", address, "--noremote_accept_cached")

    async def with_own_workers(self) -> Cost:
        return await self._cost("worker", "--strategy=CompilePage=worker")

    async def _cost(self, runner: str, *options: str) -> Cost:
        self._edit()
        targets = [f"//pages:{page}_{protocol}" for page in self._pages for protocol in _PROTOCOLS]

        async def build() -> None:
            outcome = self._bazel.run("build", *options, *targets)
            assert outcome.exit_code == 0, outcome.console
            compiled = [spawn for spawn in outcome.spawns if spawn.mnemonic == "CompilePage"]
            assert [spawn.runner for spawn in compiled] == [runner] * len(targets)

        return await cost_at(self._server, build)

    def _edit(self) -> None:
        self._edits += 1
        for page in self._pages:
            source = self._bazel.workspace / "pages" / f"{page}.page"
            source.write_text(f"= {page}\n\nAfter {self._edits} edits.\n")


async def _measure(builds: _Builds, rounds: int) -> Pair:
    await builds.with_own_workers()
    await builds.with_stoker()
    return Pair(*await in_turns(rounds, builds.with_stoker, builds.with_own_workers))
