"""A server of stoker's rpc room alone: one method that gives back what it gets.

It prints its address once it serves.
"""

from __future__ import annotations

import trio

from stoker.rpc import Server, ServerCall, Service, unary_unary
from stoker.rpc.protos import health_pb2

Request = health_pb2.HealthCheckRequest


async def _echo(request: Request, _call: ServerCall) -> Request:
    return request


async def main() -> None:
    server = Server([Service("bench.Unary", {"Echo": unary_unary(_echo, Request, Request)})])
    port = server.add_listener("127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        print(f"127.0.0.1:{port}", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
