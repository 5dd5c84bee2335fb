"""The four kinds of methods, with raw bytes and with messages, called by both clients."""

from typing import Any

import pytest
import trio
import trio.testing

from stoker.rpc import (
    ServerCall,
    open_channel,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)
from stoker.rpc.protos import health_pb2

Request = health_pb2.HealthCheckRequest
Response = health_pb2.HealthCheckResponse
STATUSES = [Response.UNKNOWN, Response.SERVING, Response.NOT_SERVING]


async def upper(request: bytes, call: ServerCall) -> bytes:
    return request.upper()


async def count_to(request: bytes, call: ServerCall) -> None:
    for number in range(int(request)):
        await call.send(b"%d" % number)


async def total(call: ServerCall) -> bytes:
    size = messages = 0
    while (message := await call.receive()) is not None:
        size += len(message)
        messages += 1
    return b"%d in %d" % (size, messages)


async def double(call: ServerCall) -> None:
    while (message := await call.receive()) is not None:
        await call.send(message * 2)


METHODS = {
    "Upper": unary_unary(upper, bytes, bytes),
    "CountTo": unary_stream(count_to, bytes, bytes),
    "Total": stream_unary(total, bytes, bytes),
    "Double": stream_stream(double, bytes, bytes),
}


async def test_unary_unary(serve: Any) -> None:
    running = await serve(METHODS)
    async with open_channel(running.target) as channel:
        assert await channel.unary_unary("/test.Service/Upper", b"abc", bytes) == b"ABC"
        assert await channel.unary_unary("/test.Service/Upper", b"", bytes) == b""


@pytest.mark.parametrize("count", [0, 1, 7, 100])
async def test_unary_stream(serve: Any, count: Any) -> None:
    running = await serve(METHODS)
    received = []
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/CountTo", bytes) as stream,
    ):
        await stream.send(b"%d" % count)
        await stream.send_eof()
        while (message := await stream.receive()) is not None:
            received.append(int(message))
    assert received == list(range(count))


async def test_unary_stream_with_its_request_at_the_beginning(serve: Any) -> None:
    running = await serve(METHODS)
    received = []
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/CountTo", bytes, only_request=b"3") as stream,
    ):
        with pytest.raises(trio.ClosedResourceError):
            await stream.send(b"4")
        while (message := await stream.receive()) is not None:
            received.append(int(message))
    assert received == [0, 1, 2]


async def test_stream_unary(serve: Any) -> None:
    running = await serve(METHODS)
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Total", bytes) as stream,
    ):
        for _ in range(100):
            await stream.send(b"abc")
        await stream.send_eof()
        assert await stream.receive() == b"300 in 100"
        assert await stream.receive() is None


async def test_stream_stream_both_ways_at_once(serve: Any) -> None:
    running = await serve(METHODS)
    received = []
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Double", bytes) as stream,
    ):

        async def send() -> None:
            for number in range(500):
                await stream.send(b"%d." % number)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while (message := await stream.receive()) is not None:
                received.append(message)
    assert received == [b"%d.%d." % (number, number) for number in range(500)]


async def test_stream_stream_in_turns(serve: Any) -> None:
    running = await serve(METHODS)
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Double", bytes) as stream,
    ):
        for number in range(50):
            await stream.send(b"%d" % number)
            assert await stream.receive() == b"%d%d" % (number, number)


async def test_server_stream_with_separate_reader_and_writer(serve: Any) -> None:
    """A handler may receive in one task while it sends in another."""

    async def relay(call: ServerCall) -> None:
        sender, receiver = trio.open_memory_channel[bytes](0)

        async def read() -> None:
            async with sender:
                while (message := await call.receive()) is not None:
                    await sender.send(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            async for message in receiver:
                await call.send(message)

    running = await serve({"Relay": stream_stream(relay, bytes, bytes)})
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Relay", bytes) as stream,
    ):
        for number in range(100):
            await stream.send(b"%d" % number)
        await stream.send_eof()
        assert [await stream.receive() for _ in range(101)] == [
            *(b"%d" % number for number in range(100)),
            None,
        ]


async def test_messages_are_parsed_and_serialised(serve: Any) -> None:
    async def check(request: Request, call: ServerCall) -> Response:
        assert isinstance(request, Request)
        return Response(status=STATUSES[len(request.service)])

    running = await serve({"Check": unary_unary(check, Request, Response)})
    async with open_channel(running.target) as channel:
        request = Request(service="ab")
        response = await channel.unary_unary("/test.Service/Check", request, Response)
    assert response == Response(status=STATUSES[2])


async def test_unknown_fields_are_accepted(serve: Any) -> None:
    # GEN-01
    async def check(request: Request, call: ServerCall) -> Response:
        return Response(status=STATUSES[len(request.service)])

    running = await serve({"Check": unary_unary(check, Request, Response)})
    unknown_field_15 = b"\x7a\x03abc"
    async with open_channel(running.target) as channel:
        request = Request(service="a").SerializeToString() + unknown_field_15
        assert await channel.unary_unary("/test.Service/Check", request, Response) == Response(
            status=STATUSES[1]
        )


async def test_ten_thousand_messages_of_one_byte(serve: Any) -> None:
    async def one_byte_each(request: bytes, call: ServerCall) -> None:
        for _ in range(10_000):
            await call.send(b"x")

    running = await serve({**METHODS, "Bytes": unary_stream(one_byte_each, bytes, bytes)})
    async with open_channel(running.target) as channel:
        async with channel.open_stream("/test.Service/Total", bytes) as stream:
            for _ in range(10_000):
                await stream.send(b"x")
            await stream.send_eof()
            assert await stream.receive() == b"10000 in 10000"
        async with channel.open_stream("/test.Service/Bytes", bytes) as stream:
            await stream.send(b"")
            received = 0
            while await stream.receive() is not None:
                received += 1
            assert received == 10_000


async def test_messages_of_four_mebibytes(serve: Any) -> None:
    running = await serve(METHODS)
    message = bytes(range(256)) * (4 * 4096)
    async with open_channel(running.target) as channel:
        response = await channel.unary_unary("/test.Service/Upper", message, bytes)
        assert response == message.upper()
        async with channel.open_stream("/test.Service/Double", bytes) as stream:
            await stream.send(message)
            assert await stream.receive() == message * 2


async def test_the_official_client(serve: Any, with_grpcio: Any) -> None:
    running = await serve(METHODS)

    def use(channel: Any) -> Any:
        upper = channel.unary_unary("/test.Service/Upper")(b"abc")
        counted = list(channel.unary_stream("/test.Service/CountTo")(b"1000"))
        total = channel.stream_unary("/test.Service/Total")(iter([b"ab"] * 1000))
        doubled = list(channel.stream_stream("/test.Service/Double")(iter([b"x"] * 1000)))
        return upper, len(counted), total, doubled

    assert await with_grpcio(running.target, use) == (
        b"ABC",
        1000,
        b"2000 in 1000",
        [b"xx"] * 1000,
    )


async def test_a_second_task_in_one_direction_is_refused(serve: Any) -> None:
    async def never_answer(call: ServerCall) -> None:
        await trio.sleep_forever()

    running = await serve({"Never": stream_stream(never_answer, bytes, bytes)})
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Never", bytes) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(stream.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.receive()
        nursery.cancel_scope.cancel()


async def test_using_a_direction_that_a_method_has_not(serve: Any) -> None:
    errors = []

    async def misuse(request: bytes, call: ServerCall) -> bytes:
        for use in (call.receive(), call.send(b"")):
            try:
                await use
            except TypeError as error:
                errors.append(str(error))
        return b""

    running = await serve({"Misuse": unary_unary(misuse, bytes, bytes)})
    async with open_channel(running.target) as channel:
        await channel.unary_unary("/test.Service/Misuse", b"", bytes)
    assert [error.startswith("/test.Service/Misuse has one") for error in errors] == [True, True]
