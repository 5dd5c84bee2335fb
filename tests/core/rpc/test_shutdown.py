"""Ends of servers: in-flight calls end well or with UNAVAILABLE, and nothing hangs."""

from typing import Any

import pytest
import trio

from stoker.rpc import (
    RpcError,
    Server,
    ServerCall,
    Service,
    StatusCode,
    open_channel,
    stream_stream,
    unary_unary,
)


class Gate:
    """A unary method and a stream that wait until they are let go."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.open = trio.Event()
        self.left = trio.Event()
        self.methods = {
            "Unary": unary_unary(self.unary, bytes, bytes),
            "Stream": stream_stream(self.stream, bytes, bytes),
        }

    async def unary(self, request: bytes, call: ServerCall) -> bytes:
        self.entered.set()
        try:
            await self.open.wait()
        finally:
            self.left.set()
        return b"done"

    async def stream(self, call: ServerCall) -> None:
        await call.send(await self.unary(b"", call))


class Caller:
    """Makes one call and keeps how it ended."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.outcome: object = None

    async def unary(self) -> None:
        try:
            self.outcome = await self._channel.unary_unary("/test.Service/Unary", b"", bytes)
        except RpcError as error:
            self.outcome = error.code

    async def stream(self) -> None:
        try:
            async with self._channel.open_stream("/test.Service/Stream", bytes) as stream:
                self.outcome = await stream.receive()
        except RpcError as error:
            self.outcome = error.code


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_call_in_flight_ends_well_within_the_grace(serve: Any, kind: str) -> None:
    # GEN-17
    gate = Gate()
    running = await serve(gate.methods)
    with trio.fail_after(20):
        async with open_channel(running.target) as channel, trio.open_nursery() as nursery:
            caller = Caller(channel)
            nursery.start_soon(getattr(caller, kind))
            await gate.entered.wait()
            nursery.start_soon(running.server.stop, 60)
            await refused(running.target)
            gate.open.set()
    assert caller.outcome == b"done"


async def refused(target: str) -> None:
    """Return once nobody listens any more."""
    host, _, port = target.partition(":")
    while True:
        try:
            async with await trio.open_tcp_stream(host, int(port)):
                await trio.lowlevel.checkpoint()
        except OSError:
            return


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_call_beyond_the_grace_is_unavailable(serve: Any, kind: str) -> None:
    # GEN-17
    gate = Gate()
    running = await serve(gate.methods)
    with trio.fail_after(20):
        async with open_channel(running.target) as channel, trio.open_nursery() as nursery:
            caller = Caller(channel)
            nursery.start_soon(getattr(caller, kind))
            await gate.entered.wait()
            await running.server.stop(0.1)
            assert gate.left.is_set()
    assert caller.outcome is StatusCode.UNAVAILABLE


async def test_cancelling_serve_is_a_stop_without_grace() -> None:
    gate = Gate()
    server = Server([Service("test.Service", gate.methods)])
    port = server.add_listener("127.0.0.1:0")
    with trio.fail_after(20):
        async with open_channel(f"127.0.0.1:{port}") as channel, trio.open_nursery() as callers:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve)
                caller = Caller(channel)
                callers.start_soon(caller.unary)
                await gate.entered.wait()
                nursery.cancel_scope.cancel()
            assert gate.left.is_set()
    assert caller.outcome is StatusCode.UNAVAILABLE


async def test_an_error_while_being_cancelled_is_logged_only(serve: Any, caplog: Any) -> None:
    entered = trio.Event()

    async def fail_in_cleanup(request: bytes, call: ServerCall) -> bytes:
        async def fail_when_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise LookupError("in the cleanup")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)
            nursery.start_soon(trio.sleep_forever)
            entered.set()
        return b""

    running = await serve({"Unary": unary_unary(fail_in_cleanup, bytes, bytes)})
    with trio.fail_after(20):
        async with open_channel(running.target) as channel, trio.open_nursery() as nursery:
            nursery.start_soon(Caller(channel).unary)
            await entered.wait()
            await running.server.stop(0)
    assert "in the cleanup" in caplog.text


async def test_a_slow_reader_does_not_hold_the_server_up(serve: Any) -> None:
    blocked = trio.Event()

    async def produce(call: ServerCall) -> None:
        while True:
            with trio.move_on_after(0.3) as scope:
                await call.send(bytes(64 * 1024))
            if scope.cancelled_caught:
                blocked.set()

    running = await serve({"Stream": stream_stream(produce, bytes, bytes)})
    with trio.fail_after(20):
        async with (
            open_channel(running.target) as channel,
            channel.open_stream("/test.Service/Stream", bytes) as stream,
        ):
            await stream.receive()
            await blocked.wait()
            await running.server.stop(0)


async def test_a_queue_that_nobody_reads_does_not_hold_the_server_up(serve: Any) -> None:
    """The handler has returned; its last messages and the status wait for the client."""
    returned = trio.Event()

    async def produce(call: ServerCall) -> None:
        try:
            with trio.move_on_after(0.5):
                while True:
                    await call.send(bytes(1024 * 1024))
        finally:
            returned.set()

    running = await serve({"Stream": stream_stream(produce, bytes, bytes)})
    with trio.fail_after(20):
        async with (
            open_channel(running.target) as channel,
            channel.open_stream("/test.Service/Stream", bytes) as stream,
        ):
            await stream.receive()
            await returned.wait()
            await running.server.stop(0)


async def test_a_call_that_a_handler_has_kept_does_not_hold_the_server_up(serve: Any) -> None:
    kept = []

    async def keep(request: bytes, call: ServerCall) -> bytes:
        kept.append(call)
        return b""

    async def keep_stream(call: ServerCall) -> None:
        kept.append(call)

    running = await serve(
        {
            "Unary": unary_unary(keep, bytes, bytes),
            "Stream": stream_stream(keep_stream, bytes, bytes),
        }
    )
    with trio.fail_after(20):
        async with open_channel(running.target) as channel:
            await Caller(channel).unary()
            await Caller(channel).stream()
        await running.server.stop(60)
    assert len(kept) == 2
    for call in kept:
        with pytest.raises(trio.ClosedResourceError):
            _ = call.peer


async def test_thirty_lives(nursery: trio.Nursery) -> None:
    async def echo(request: bytes, call: ServerCall) -> bytes:
        return request

    service = Service("test.Service", {"Unary": unary_unary(echo, bytes, bytes)})
    for life in range(30):
        server = Server([service])
        port = server.add_listener("127.0.0.1:0")
        await nursery.start(server.serve)
        async with open_channel(f"127.0.0.1:{port}") as channel:
            request = b"%d" % life
            assert await channel.unary_unary("/test.Service/Unary", request, bytes) == request
        await server.stop(1)


async def test_stopping_twice_or_before_serving_does_nothing(nursery: trio.Nursery) -> None:
    server = Server([])
    await server.stop(1)
    server.add_listener("127.0.0.1:0")
    await nursery.start(server.serve)
    await server.stop(1)
    await server.stop(1)


async def test_a_server_serves_once(nursery: trio.Nursery) -> None:
    server = Server([])
    await nursery.start(server.serve)
    with pytest.raises(RuntimeError):
        await server.serve()


async def test_a_server_that_never_served_is_simply_dropped() -> None:
    server = Server([])
    server.add_listener("127.0.0.1:0")
    del server


async def test_a_client_of_a_stopped_server_is_told_unavailable(serve: Any) -> None:
    gate = Gate()
    running = await serve(gate.methods)
    await running.server.stop(1)
    async with open_channel(running.target) as channel:
        caller = Caller(channel)
        await caller.unary()
        assert caller.outcome is StatusCode.UNAVAILABLE
        await caller.stream()
        assert caller.outcome is StatusCode.UNAVAILABLE


async def test_an_unused_channel_closes() -> None:
    async with open_channel("127.0.0.1:1"):
        pass
