"""The health service."""

from typing import Any

import pytest

from stoker.rpc import Health, RpcError, StatusCode, open_channel
from stoker.rpc.protos import health_pb2

Request = health_pb2.HealthCheckRequest
Response = health_pb2.HealthCheckResponse
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"


async def test_check(serve: Any) -> None:
    # GEN-24
    health = Health(["", "a.B"])
    running = await serve({}, health.service)
    async with open_channel(running.target) as channel:

        async def status(name: str) -> int:
            return (await channel.unary_unary(CHECK, Request(service=name), Response)).status

        assert await status("") == Response.NOT_SERVING
        assert await status("a.B") == Response.NOT_SERVING
        health.set_serving("a.B", True)
        assert await status("") == Response.NOT_SERVING
        assert await status("a.B") == Response.SERVING
        health.set_serving("a.B", False)
        assert await status("a.B") == Response.NOT_SERVING
        with pytest.raises(RpcError) as caught:
            await status("no.Such")
        assert caught.value.code is StatusCode.NOT_FOUND


async def test_check_on_the_wire(serve: Any) -> None:
    # GEN-24
    health = Health()
    health.set_serving("", True)
    health.set_serving("a.B", False)
    running = await serve({}, health.service)
    async with open_channel(running.target) as channel:
        assert await channel.unary_unary(CHECK, b"", bytes) == b"\x08\x01"
        assert await channel.unary_unary(CHECK, b"\x0a\x03a.B", bytes) == b"\x08\x02"


async def test_watch(serve: Any) -> None:
    # GEN-24
    health = Health([""])
    running = await serve({}, health.service)
    async with (
        open_channel(running.target) as channel,
        channel.open_stream(WATCH, Response) as stream,
    ):
        await stream.send(Request())
        assert await stream.receive() == Response(status=Response.NOT_SERVING)
        health.set_serving("other", True)
        health.set_serving("", True)
        assert await stream.receive() == Response(status=Response.SERVING)
        health.set_serving("", True)
        health.set_serving("", False)
        assert await stream.receive() == Response(status=Response.NOT_SERVING)


async def test_watching_a_service_that_comes_later(serve: Any) -> None:
    # GEN-24
    health = Health()
    running = await serve({}, health.service)
    async with (
        open_channel(running.target) as channel,
        channel.open_stream(WATCH, Response) as stream,
    ):
        await stream.send(Request(service="later.Service"))
        assert await stream.receive() == Response(status=Response.SERVICE_UNKNOWN)
        health.set_serving("later.Service", True)
        assert await stream.receive() == Response(status=Response.SERVING)


async def test_list(serve: Any) -> None:
    health = Health(["", "a.B"])
    health.set_serving("a.B", True)
    running = await serve({}, health.service)
    async with open_channel(running.target) as channel:
        response = await channel.unary_unary(
            "/grpc.health.v1.Health/List",
            health_pb2.HealthListRequest(),
            health_pb2.HealthListResponse,
        )
    assert {name: status.status for name, status in response.statuses.items()} == {
        "": Response.NOT_SERVING,
        "a.B": Response.SERVING,
    }
