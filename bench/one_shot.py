"""One-shot actions that do nothing, against starting the same program without a server.

An action is asked for by Execute, runs ``true`` in folders of its own, and is filed in the action
cache; each is another one. Its blobs are uploaded before. The same program starts ``true`` by
trio.run_process, as many at a time. What differs is all that a server is there for, and, in the
rows of a sandbox, the sandbox.

How much of that is stoker's own, rows of a server tell that has stoker's gRPC and starts ``true``
for each call, and nothing else (`bench/start_server.py`): no change of the rooms between the two
makes an action cheaper than that.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import trio
from google.longrunning import operations_pb2

from bench.actions import Actions
from bench.load import at_a_time
from bench.measurement import Cost, Pair, Row, cost_at, cost_here, in_turns
from bench.servers import ServerProcess, open_program, open_stoker
from stoker.client import RemoteInstance, open_remote
from stoker.digest import Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Channel, open_channel

AT_MOST = 1 / 0.6
"""At least 0.6 of the rate of bare starts."""

_SLOTS = (1, 2, 8)


class _Target(NamedTuple):
    """Actions without a sandbox are what the bound is for: bare starts have none either."""

    slots: int
    sandbox: str

    @property
    def what(self) -> str:
        within = "" if self.sandbox == "none" else f" in {self.sandbox}"
        return f"action of `true`{within}, {self.slots} at a time"


def measure(*, quick: bool) -> list[Row]:
    """A row for each number of actions at a time, without a sandbox, and with one if there is."""
    sandboxes = ["none", *(["bubblewrap"] if shutil.which("bwrap") else [])]
    return [
        *(trio.run(_measure_least, slots, quick) for slots in _SLOTS),
        *(
            row
            for sandbox in sandboxes
            for slots in _SLOTS
            for row in trio.run(_measure, _Target(slots, sandbox), quick)
        ),
    ]


async def _measure_least(slots: int, quick: bool) -> Row:
    count, rounds = _amount(quick)
    program = _program()
    with open_program("start_server.py") as server:
        async with open_channel(server.address) as channel:

            async def call() -> Cost:
                return await cost_at(
                    server, lambda: at_a_time(slots, range(count), lambda _: _call(channel))
                )

            start = _starting(program, slots, count)
            await call()
            await start()
            pair = Pair(*await in_turns(rounds, call, start))
    return pair.wall_row(
        f"bare call that starts `true`, {slots} at a time",
        "starting `true`",
        unit="ms",
        per_second=1e3 / count,
    )


async def _call(channel: Channel) -> None:
    method = "/build.bazel.remote.execution.v2.Execution/Execute"
    request = reapi.ExecuteRequest()
    async with channel.open_stream(method, operations_pb2.Operation, only_request=request) as calls:
        while (operation := await calls.receive()) is not None:
            assert operation.done


def _amount(quick: bool) -> tuple[int, int]:
    """How many to a round, and how many rounds."""
    return (5, 2) if quick else (100, 7)


def _program() -> str:
    program = shutil.which("true")
    assert program is not None
    return program


async def _measure(target: _Target, quick: bool) -> list[Row]:
    count, rounds = _amount(quick)
    program = _program()
    actions = Actions()

    def add(salt: str) -> Digest:
        return actions.add([program], {}, environment={"SALT": salt})

    batches = iter([[add(f"{n} {batch}") for n in range(count)] for batch in range(rounds + 1)])
    with open_stoker("memory", target.slots, target.sandbox) as server:
        async with open_remote(server.address) as remote:
            await actions.upload(remote)
            execute = _executing(server, remote, target.slots, batches)
            start = _starting(program, target.slots, count)
            await execute()
            await start()
            pair = Pair(*await in_turns(rounds, execute, start))
    return _rows(target, pair, 1e3 / count)


def _rows(target: _Target, pair: Pair, per_second: float) -> list[Row]:
    bound = AT_MOST if target.sandbox == "none" else None
    wall = pair.wall_row(
        target.what, "starting `true`", unit="ms", per_second=per_second, at_most=bound
    )
    cpu = pair.cpu_row(
        target.what,
        "starting `true`",
        unit="ms CPU",
        per_second=per_second,
    )
    return [wall, cpu]


def _executing(
    server: ServerProcess, remote: RemoteInstance, slots: int, batches: Iterable[list[Digest]]
) -> Callable[[], Awaitable[Cost]]:
    remaining = iter(batches)

    async def execute() -> Cost:
        batch = next(remaining)
        return await cost_at(
            server, lambda: at_a_time(slots, batch, lambda action: _run(remote, action))
        )

    return execute


def _starting(program: str, slots: int, count: int) -> Callable[[], Awaitable[Cost]]:
    async def start() -> Cost:
        return await cost_here(lambda: at_a_time(slots, range(count), lambda _: _start(program)))

    return start


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
