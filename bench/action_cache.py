"""Action-cache hits: the server's processor time a hit, against a bare server on grpc.aio.

The result names two output files and a stdout, and is served only while they are there, so each hit
is a look-up, a parse, and a question to the blob store. The bare server answers every call
with as many bytes, which it does not look at.
"""

from __future__ import annotations

from contextlib import ExitStack

import trio

from bench.load import call_again_and_again
from bench.measurement import Cost, Pair, Row, cost_at, in_turns
from bench.servers import ServerProcess, open_program, open_stoker
from stoker.client import open_remote
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Channel, open_channel

_ACTION_CACHE = "/build.bazel.remote.execution.v2.ActionCache"
IN_FLIGHT = 64
BLOBS = {SHA256.digest(data): data for data in (b"an object file", b"its listing", b"a warning")}
ACTION = SHA256.digest(b"an action")


def measure(*, quick: bool) -> list[Row]:
    """A row for each kind of store."""
    return [trio.run(_measure, store, quick) for store in ("memory", "disk")]


async def _measure(store: str, quick: bool) -> Row:
    calls, rounds = (200, 2) if quick else (6_000, 5)
    result = _result(list(BLOBS))
    request = reapi.GetActionResultRequest(action_digest=ACTION.to_proto()).SerializeToString()
    with ExitStack() as servers:
        ours = servers.enter_context(open_stoker(store))
        served = await _fill(ours, result)
        bare = open_program("bare_server.py", str(served.ByteSize()), "0")
        theirs = servers.enter_context(bare)
        async with open_channel(ours.address) as to_ours, open_channel(theirs.address) as to_theirs:

            async def cost(
                server: ServerProcess, channel: Channel, method: str, calls: int = calls
            ) -> Cost:
                async def work() -> None:
                    await call_again_and_again(
                        channel, method, request, calls=calls, in_flight=IN_FLIGHT
                    )

                return await cost_at(server, work)

            hit = ours, to_ours, f"{_ACTION_CACHE}/GetActionResult"
            call = theirs, to_theirs, "/bench.Bare/Answer"
            await cost(*hit, 200)
            await cost(*call, 200)
            pair = Pair(*await in_turns(rounds, lambda: cost(*hit), lambda: cost(*call)))
    return pair.cpu_row(
        f"action-cache hit, {store}",
        "bare grpc.aio",
        unit="µs CPU",
        per_second=1e6 / calls,
    )


def _result(blobs: list[Digest]) -> reapi.ActionResult:
    result = reapi.ActionResult(stdout_digest=blobs[2].to_proto())
    result.output_files.add(path="out/object.o", digest=blobs[0].to_proto())
    result.output_files.add(path="out/object.lst", digest=blobs[1].to_proto())
    result.execution_metadata.worker = "local"
    return result


async def _fill(server: ServerProcess, result: reapi.ActionResult) -> reapi.ActionResult:
    """File `result`; returns it as it is served, with who filed it in it."""
    async with open_remote(server.address) as remote, open_channel(server.address) as channel:
        await remote.upload_blobs(BLOBS)
        update = reapi.UpdateActionResultRequest(
            action_digest=ACTION.to_proto(), action_result=result
        )
        await channel.unary_unary(f"{_ACTION_CACHE}/UpdateActionResult", update, reapi.ActionResult)
        served = await remote.action_result(ACTION)
        assert served is not None
        return served
