"""Cancellation and deadlines: what stops where, and that nothing stays behind."""

import gc
import math
import random
import struct
import weakref
from typing import Any

import grpc
import pytest
import trio

from stoker.rpc import (
    RpcError,
    ServerCall,
    StatusCode,
    open_channel,
    stream_stream,
    unary_stream,
    unary_unary,
)


class Watched:
    """Methods that wait for ever, and events that tell what became of them."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.ended = trio.Event()
        self.how = ""
        self.seconds_left = math.nan
        self.methods = {
            "Unary": unary_unary(self.unary, bytes, bytes),
            "Stream": stream_stream(self.stream, bytes, bytes),
        }

    async def unary(self, request: bytes, call: ServerCall) -> bytes:
        self.seconds_left = call.deadline_seconds_left()
        await self._wait_for_ever()
        return b""

    async def stream(self, call: ServerCall) -> None:
        await call.send(b"begun")
        await self._wait_for_ever()

    async def _wait_for_ever(self) -> None:
        self.started.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.how = "cancelled"
            raise
        finally:
            self.ended.set()


async def test_cancelling_a_unary_call_cancels_its_handler(serve: Any) -> None:
    watched = Watched()
    running = await serve(watched.methods)
    async with open_channel(running.target) as channel:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.unary_unary, "/test.Service/Unary", b"", bytes)
            await watched.started.wait()
            nursery.cancel_scope.cancel()
        await watched.ended.wait()
    assert watched.how == "cancelled"


async def test_leaving_a_stream_cancels_its_handler(serve: Any) -> None:
    watched = Watched()
    running = await serve(watched.methods)
    async with open_channel(running.target) as channel:
        async with channel.open_stream("/test.Service/Stream", bytes) as stream:
            assert await stream.receive() == b"begun"
        await watched.ended.wait()
    assert watched.how == "cancelled"


async def test_closing_a_channel_cancels_its_calls(serve: Any) -> None:
    watched = Watched()
    running = await serve(watched.methods)
    errors = []

    async def call(channel: Any) -> None:
        with pytest.raises(RpcError) as caught:
            await channel.unary_unary("/test.Service/Unary", b"", bytes)
        errors.append(caught.value.code)

    async with trio.open_nursery() as nursery:
        async with open_channel(running.target) as channel:
            nursery.start_soon(call, channel)
            await watched.started.wait()
        await watched.ended.wait()
    assert errors == [StatusCode.CANCELLED]
    with pytest.raises(trio.ClosedResourceError):
        await channel.unary_unary("/test.Service/Unary", b"", bytes)


@pytest.mark.parametrize("name", ["Unary", "Stream"])
async def test_the_official_client_cancels(serve: Any, with_grpcio: Any, name: str) -> None:
    watched = Watched()
    running = await serve(watched.methods)

    def use(channel: Any) -> Any:
        if name == "Unary":
            call = channel.unary_unary("/test.Service/Unary").future(b"")
        else:
            call = channel.stream_stream("/test.Service/Stream")(iter([b"x"]))
        trio.from_thread.run(watched.started.wait)
        call.cancel()
        return call.code()

    assert await with_grpcio(running.target, use) is grpc.StatusCode.CANCELLED
    await watched.ended.wait()
    assert watched.how == "cancelled"


async def test_a_deadline_of_the_official_client(serve: Any, with_grpcio: Any) -> None:
    # GEN-26
    watched = Watched()
    running = await serve(watched.methods)

    def use(channel: Any) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Service/Unary")(b"", timeout=0.2)
        return caught.value.code()

    assert await with_grpcio(running.target, use) is grpc.StatusCode.DEADLINE_EXCEEDED
    await watched.ended.wait()
    assert watched.how == "cancelled"
    assert 0 <= watched.seconds_left < 1


async def test_a_deadline_of_trio_ends_the_scope_and_reaches_the_server(serve: Any) -> None:
    watched = Watched()
    running = await serve(watched.methods)
    async with open_channel(running.target) as channel:
        with trio.move_on_after(0.3) as scope:
            await channel.unary_unary("/test.Service/Unary", b"", bytes)
        assert scope.cancelled_caught
        await watched.ended.wait()
    assert 0 <= watched.seconds_left < 1


async def test_deadlines_need_not_be_sent(serve: Any) -> None:
    watched = Watched()
    running = await serve(watched.methods)
    async with open_channel(running.target, send_deadlines=False) as channel:
        with trio.move_on_after(0.2):
            await channel.unary_unary("/test.Service/Unary", b"", bytes)
        await watched.ended.wait()
    assert watched.seconds_left == math.inf


def header(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + stream.to_bytes(4) + payload


def begin_unary_call(path: bytes, timeout: bytes) -> bytes:
    """The bytes of an HTTP/2 client that makes one call and then does nothing at all."""
    headers = b"".join(
        header(name, value)
        for name, value in [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"test"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"grpc-timeout", timeout),
        ]
    )
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0, b"")
        + frame(1, 4, 1, headers)
        + frame(0, 1, 1, b"\x00\x00\x00\x00\x01x")
    )


async def test_a_deadline_that_the_client_does_not_enforce(serve: Any) -> None:
    # GEN-26
    watched = Watched()
    running = await serve(watched.methods)
    async with await trio.open_tcp_stream("127.0.0.1", running.port) as client:
        await client.send_all(begin_unary_call(b"/test.Service/Unary", b"200m"))
        await watched.ended.wait()
    assert watched.how == "cancelled"


async def test_a_broken_connection_cancels_its_calls(serve: Any) -> None:
    watched = Watched()
    running = await serve(watched.methods)
    async with await trio.open_tcp_stream("127.0.0.1", running.port) as client:
        await client.send_all(begin_unary_call(b"/test.Service/Unary", b"1H"))
        await watched.started.wait()
    await watched.ended.wait()
    assert watched.how == "cancelled"


async def test_sending_to_a_client_that_is_gone_ends_the_handler(serve: Any) -> None:
    ended = trio.Event()
    raised = []

    async def send_on(request: bytes, call: ServerCall) -> None:
        with trio.CancelScope(shield=True):
            try:
                while True:
                    await call.send(bytes(1024))
            except trio.BrokenResourceError as error:
                raised.append(error)
        ended.set()

    running = await serve({"SendOn": unary_stream(send_on, bytes, bytes)})
    async with open_channel(running.target) as channel:
        async with channel.open_stream("/test.Service/SendOn", bytes) as stream:
            await stream.send(b"")
            await stream.receive()
        await ended.wait()
    assert len(raised) == 1


class Census:
    """Knows every call that has begun, and how many handlers are running."""

    def __init__(self) -> None:
        self.calls: list[weakref.ref[ServerCall]] = []
        self.running = 0

    async def unary(self, request: bytes, call: ServerCall) -> bytes:
        with self.counted(call):
            await trio.sleep(int(request) / 1000)
            return b"x"

    async def stream(self, call: ServerCall) -> None:
        with self.counted(call):
            while (message := await call.receive()) is not None:
                await call.send(message)

    def counted(self, call: ServerCall) -> Any:
        self.calls.append(weakref.ref(call))
        return self

    def __enter__(self) -> None:
        self.running += 1

    def __exit__(self, *_: object) -> None:
        self.running -= 1


async def test_two_thousand_random_cancellations_leave_nothing(serve: Any) -> None:
    census = Census()
    running = await serve(
        {
            "Unary": unary_unary(census.unary, bytes, bytes),
            "Stream": stream_stream(census.stream, bytes, bytes),
        }
    )
    rng = random.Random(7)

    async def call_for_a_while(channel: Any) -> None:
        for _ in range(50):
            with trio.move_on_after(rng.random() * 0.02):
                if rng.random() < 0.5:
                    await channel.unary_unary(
                        "/test.Service/Unary", b"%d" % rng.randrange(20), bytes
                    )
                else:
                    async with channel.open_stream("/test.Service/Stream", bytes) as stream:
                        while True:
                            await stream.send(bytes(rng.randrange(100_000)))
                            await stream.receive()

    gc.collect()
    gc.disable()
    try:
        async with open_channel(running.target) as channel, trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(call_for_a_while, channel)
        with trio.fail_after(30):
            await running.server.stop(grace_seconds=60)
        # By reference counts alone: a call that waits for the collector holds its connection.
        alive = sum(reference() is not None for reference in census.calls)
    finally:
        gc.enable()
    assert census.running == 0
    assert len(census.calls) > 100
    assert alive == 0
