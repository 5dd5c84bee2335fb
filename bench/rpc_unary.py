"""Unary calls: the server's processor time a call, against a bare server on grpc.aio.

Only the rpc room is measured. Both servers decode and encode one small protobuf message and answer
the same load of the same program. Only the servers' processor time counts, so what the load itself
costs, and how much else the machine does, matters little.
"""

from __future__ import annotations

import trio

from bench.load import call_again_and_again
from bench.measurement import Cost, Pair, Row, cost_at, in_turns
from bench.servers import ServerProcess, open_program
from stoker.rpc import open_channel
from stoker.rpc.protos import health_pb2

METHOD = "/bench.Unary/Echo"
REQUEST = health_pb2.HealthCheckRequest(service="0123456789abcdef" * 6).SerializeToString()
CALLS = {1: 2_000, 16: 6_000, 128: 12_000}
AT_MOST = {128: 0.7}


def measure(*, quick: bool) -> list[Row]:
    """A row for each number of calls in flight."""
    return trio.run(_measure, quick)


async def _measure(quick: bool) -> list[Row]:
    rows = []
    with open_program("echo_server.py") as ours, open_program("bare_server.py", "0", "0") as theirs:
        for in_flight, calls in CALLS.items():
            rows.append(await _row(ours, theirs, in_flight, calls // 20 if quick else calls, quick))
    return rows


async def _row(
    ours: ServerProcess, theirs: ServerProcess, in_flight: int, calls: int, quick: bool
) -> Row:
    async with open_channel(ours.address) as to_ours, open_channel(theirs.address) as to_theirs:
        channels = {ours: to_ours, theirs: to_theirs}

        async def cost(server: ServerProcess, calls: int = calls) -> Cost:
            async def work() -> None:
                await call_again_and_again(
                    channels[server], METHOD, REQUEST, calls=calls, in_flight=in_flight
                )

            return await cost_at(server, work)

        await cost(ours, 500)
        await cost(theirs, 500)
        costs = await in_turns(2 if quick else 5, lambda: cost(ours), lambda: cost(theirs))
    return Pair(*costs).cpu_row(
        f"unary call, {in_flight} in flight",
        "bare grpc.aio",
        unit="µs CPU",
        per_second=1e6 / calls,
        at_most=AT_MOST.get(in_flight),
    )
