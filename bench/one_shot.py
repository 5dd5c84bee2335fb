"""One-shot actions that do nothing, against starting the same program without a server.

An action is asked for by Execute, runs ``true`` in folders of its own, and is filed in the action
cache; each is another one. Its blobs are uploaded before. The same program starts ``true`` by
trio.run_process, as many at a time. What differs is all that a server is there for.
"""

from __future__ import annotations

import shutil
import subprocess

import trio

from bench.actions import Actions
from bench.load import at_a_time
from bench.measurement import Cost, Pair, Row, cost_at, cost_here, in_turns
from bench.servers import open_stoker
from stoker.client import RemoteInstance, open_remote
from stoker.digest import Digest


def measure(*, quick: bool) -> list[Row]:
    """A row for each number of actions at a time."""
    return [trio.run(_measure, slots, quick) for slots in (1, 2)]


async def _measure(slots: int, quick: bool) -> Row:
    count, rounds = (5, 2) if quick else (100, 7)
    program = shutil.which("true")
    assert program is not None
    actions = Actions()

    def add(salt: str) -> Digest:
        return actions.add([program], {}, environment={"SALT": salt})

    batches = iter([[add(f"{n} {batch}") for n in range(count)] for batch in range(rounds + 1)])
    with open_stoker("memory", slots) as server:
        async with open_remote(server.address) as remote:
            await actions.upload(remote)

            async def execute() -> Cost:
                batch = next(batches)
                return await cost_at(
                    server, lambda: at_a_time(slots, batch, lambda action: _run(remote, action))
                )

            async def start() -> Cost:
                return await cost_here(
                    lambda: at_a_time(slots, range(count), lambda _: _start(program))
                )

            await execute()
            await start()
            pair = Pair(*await in_turns(rounds, execute, start))
    return pair.wall_row(
        f"action of `true`, {slots} at a time", "starting `true`", unit="ms", per_second=1e3 / count
    )


async def _run(remote: RemoteInstance, action: Digest) -> None:
    response = await remote.run(action)
    assert not response.status.code, response.status.message
    assert response.result.exit_code == 0
    assert not response.cached_result


async def _start(program: str) -> None:
    await trio.run_process(
        [program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
