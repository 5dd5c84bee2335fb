"""Flow control: whoever is slow stops the other side, in bounded memory."""

from typing import Any

import pytest
import trio

from stoker.rpc import ServerCall, open_channel, stream_stream, stream_unary, unary_stream

CHUNK = bytes(64 * 1024)
CHUNKS = 8192  # 512 MiB in all
AT_MOST = CHUNKS // 8  # 64 MiB: our queues, gRPC's windows and the kernel's buffers

STALLED_AFTER_SECONDS = 0.5


class Producer:
    """Sends many chunks, and notices when it is made to wait."""

    def __init__(self) -> None:
        self.sent = 0
        self.stalled = trio.Event()

    async def send_all(self, sender: Any) -> None:
        while self.sent < CHUNKS:
            with trio.move_on_after(STALLED_AFTER_SECONDS) as scope:
                await sender.send(CHUNK)
                self.sent += 1
            if scope.cancelled_caught:
                self.stalled.set()

    async def handle(self, request: bytes, call: ServerCall) -> None:
        await self.send_all(call)


@pytest.mark.parametrize("sent", [0, 1, 20])
async def test_a_handler_may_return_the_last_message(serve: Any, sent: int) -> None:
    async def count(_: bytes, call: ServerCall) -> bytes:
        for number in range(sent):
            await call.send(b"%d" % number)
        call.set_trailing_metadata([("at", "the end")])
        return b"last"

    running = await serve({"Count": unary_stream(count, bytes, bytes)})
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Count", bytes) as stream,
    ):
        await stream.send(b"")
        received = []
        while (message := await stream.receive()) is not None:
            received.append(message)
        assert received == [*(b"%d" % number for number in range(sent)), b"last"]
        assert stream.trailing_metadata is not None
        assert stream.trailing_metadata.get("at") == "the end"


async def test_a_slow_client_stops_the_handler(serve: Any) -> None:
    producer = Producer()
    running = await serve({"Produce": unary_stream(producer.handle, bytes, bytes)})
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Produce", bytes) as stream,
    ):
        await stream.send(b"")
        assert await stream.receive() == CHUNK
        await producer.stalled.wait()
        assert producer.sent <= AT_MOST
        received = 1
        while await stream.receive() is not None:
            received += 1
    assert received == producer.sent == CHUNKS


async def test_a_slow_handler_stops_the_client(serve: Any) -> None:
    go_on = trio.Event()

    async def consume(call: ServerCall) -> bytes:
        await call.receive()
        await go_on.wait()
        received = 1
        while await call.receive() is not None:
            received += 1
        return b"%d" % received

    running = await serve({"Consume": stream_unary(consume, bytes, bytes)})
    producer = Producer()
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Consume", bytes) as stream,
        trio.open_nursery() as nursery,
    ):

        async def produce() -> None:
            await producer.send_all(stream)
            await stream.send_eof()

        nursery.start_soon(produce)
        await producer.stalled.wait()
        assert producer.sent <= AT_MOST
        go_on.set()
        assert await stream.receive() == b"%d" % CHUNKS


async def take_one(call: ServerCall) -> bytes:
    await call.receive()
    return b"enough"


async def test_an_early_return_is_ok_for_a_client_that_is_still_sending(serve: Any) -> None:
    # BSW-13
    running = await serve({"TakeOne": stream_unary(take_one, bytes, bytes)})
    async with open_channel(running.target) as channel:
        for _ in range(20):
            async with channel.open_stream("/test.Service/TakeOne", bytes) as stream:
                with pytest.raises(trio.BrokenResourceError):
                    await send_for_ever(stream)
                assert await stream.receive() == b"enough"
                assert await stream.receive() is None


async def send_for_ever(stream: Any) -> None:
    while True:
        await stream.send(CHUNK)


async def test_an_early_return_to_the_official_client(serve: Any, with_grpcio: Any) -> None:
    # BSW-13
    running = await serve({"TakeOne": stream_unary(take_one, bytes, bytes)})

    def use(channel: Any) -> list[bytes]:
        take_one = channel.stream_unary("/test.Service/TakeOne")
        return [take_one(iter([CHUNK] * 200)) for _ in range(20)]

    assert await with_grpcio(running.target, use) == [b"enough"] * 20


async def test_what_was_sent_before_the_end_all_arrives(serve: Any) -> None:
    """The handler may end with messages still queued: the status comes after them."""

    async def burst(call: ServerCall) -> None:
        for _ in range(6):
            await call.send(CHUNK)

    running = await serve({"Burst": stream_stream(burst, bytes, bytes)})
    async with open_channel(running.target) as channel:
        for _ in range(50):
            async with channel.open_stream("/test.Service/Burst", bytes) as stream:
                assert [await stream.receive() for _ in range(7)] == [CHUNK] * 6 + [None]


async def test_sending_after_the_half_close_is_an_error(serve: Any) -> None:
    running = await serve({"TakeOne": stream_unary(take_one, bytes, bytes)})
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/TakeOne", bytes) as stream,
    ):
        await stream.send_eof()
        await stream.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send(b"")
