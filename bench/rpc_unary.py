"""Unary calls: the server's CPU time a call, stoker's against a bare grpc.aio server.

Both servers run in processes of their own and answer the same load from the same generator, in
turns, so that what else the machine does falls on both. Only the CPU time of the server counts,
so the generator's own cost does not matter.

Run it by `python bench/rpc_unary.py`.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import trio

from stoker.rpc import Channel, Server, ServerCall, Service, open_channel, unary_unary
from stoker.rpc.protos import health_pb2

SERVICE = "bench.Unary"
METHOD = f"/{SERVICE}/Echo"
IN_FLIGHT = (1, 16, 128)
CALLS = {1: 2_000, 16: 6_000, 128: 12_000}
ROUNDS = 3

Request = health_pb2.HealthCheckRequest


async def _echo(request: Request, _call: ServerCall) -> Request:
    return request


async def _serve_stoker() -> None:
    server = Server([Service(SERVICE, {"Echo": unary_unary(_echo, Request, Request)})])
    port = server.add_listener("127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        print(port, flush=True)
        await trio.sleep_forever()


async def _serve_grpc_aio() -> None:
    import grpc  # type: ignore[import-untyped]  # noqa: PLC0415  # the other process has no use for it

    async def echo(request: Request, _context: Any) -> Request:
        return request

    handler = grpc.unary_unary_rpc_method_handler(
        echo,
        request_deserializer=Request.FromString,
        response_serializer=Request.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE, {"Echo": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


class ServerProcess:
    """A server in a process of its own."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, name], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.target = f"127.0.0.1:{int(self._process.stdout.readline())}"

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def _server(name: str) -> Iterator[ServerProcess]:
    process = ServerProcess(name)
    try:
        yield process
    finally:
        process.stop()


async def _load(channel: Channel, in_flight: int, calls: int) -> None:
    remaining = calls

    async def call_in_turn() -> None:
        nonlocal remaining
        request = Request(service="0123456789abcdef" * 6)
        while remaining > 0:
            remaining -= 1
            await channel.unary_unary(METHOD, request, Request)

    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(call_in_turn)


async def _microseconds_a_call(server: ServerProcess, channel: Channel, in_flight: int) -> float:
    before = server.cpu_seconds()
    await _load(channel, in_flight, CALLS[in_flight])
    return (server.cpu_seconds() - before) * 1e6 / CALLS[in_flight]


@contextlib.asynccontextmanager
async def _warm_channel(server: ServerProcess) -> AsyncIterator[Channel]:
    async with open_channel(server.target) as channel:
        await _load(channel, 16, 500)
        yield channel


async def _measure() -> dict[str, Any]:
    rows = []
    with _server("stoker") as ours, _server("grpc.aio") as theirs:
        async with _warm_channel(ours) as to_ours, _warm_channel(theirs) as to_theirs:
            for in_flight in IN_FLIGHT:
                spent = {"stoker": 0.0, "grpc.aio": 0.0}
                for _ in range(ROUNDS):
                    spent["stoker"] += await _microseconds_a_call(ours, to_ours, in_flight)
                    spent["grpc.aio"] += await _microseconds_a_call(theirs, to_theirs, in_flight)
                rows.append(_row(in_flight, spent["stoker"] / ROUNDS, spent["grpc.aio"] / ROUNDS))
    return {"name": "rpc_unary", "rows": rows, "ratio": rows[-1]["ratio"], "target": 0.7}


def _row(in_flight: int, ours: float, theirs: float) -> dict[str, float]:
    return {
        "in_flight": in_flight,
        "stoker_calls_per_cpu_second": round(1e6 / ours),
        "grpc_aio_calls_per_cpu_second": round(1e6 / theirs),
        "ratio": round(ours / theirs, 3),
    }


def measure() -> dict[str, Any]:
    """Return the calls per second of server CPU time at each number of calls in flight.

    `ratio` is stoker's CPU time a call by that of grpc.aio; the one outside the rows is that of
    the last. At most `target` is good.
    """
    return trio.run(_measure)


def print_rows(result: dict[str, Any]) -> None:
    print("in flight   stoker calls/CPU s   grpc.aio calls/CPU s   CPU a call, ratio")
    for row in result["rows"]:
        print(
            f"{row['in_flight']:>9}   {row['stoker_calls_per_cpu_second']:>18,}"
            f"   {row['grpc_aio_calls_per_cpu_second']:>20,}   {row['ratio']:>17}"
        )


def main() -> None:
    if sys.argv[1:] == ["stoker"]:
        trio.run(_serve_stoker)
    elif sys.argv[1:] == ["grpc.aio"]:
        asyncio.run(_serve_grpc_aio())
    else:
        print_rows(measure())


if __name__ == "__main__":
    main()
