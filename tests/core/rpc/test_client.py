"""The client against the official server."""

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
import trio

from stoker.rpc import RpcError, StatusCode, open_channel


def upper(request: bytes, context: Any) -> bytes:
    context.set_trailing_metadata([("seen", "yes")])
    return request.upper()


def count_to(request: bytes, context: Any) -> Iterator[bytes]:
    for number in range(int(request)):
        yield b"%d" % number


def total(requests: Iterator[bytes], context: Any) -> bytes:
    return b"%d" % sum(len(request) for request in requests)


def double(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    for request in requests:
        yield request * 2


def garbled(request: bytes, context: Any) -> bytes:
    context.set_trailing_metadata([("grpc-status-details-bin", b"\xff\xff")])
    context.abort(grpc.StatusCode.ABORTED, "no details to speak of")
    raise AssertionError


def first_only(requests: Iterator[bytes], context: Any) -> bytes:
    return next(requests)


HANDLERS = {
    "Upper": grpc.unary_unary_rpc_method_handler(upper),
    "CountTo": grpc.unary_stream_rpc_method_handler(count_to),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "Double": grpc.stream_stream_rpc_method_handler(double),
    "Garbled": grpc.unary_unary_rpc_method_handler(garbled),
    "FirstOnly": grpc.stream_unary_rpc_method_handler(first_only),
}


@pytest.fixture
def target() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("official.Service", HANDLERS)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


async def test_all_kinds(target: str) -> None:
    async with open_channel(target) as channel:
        assert await channel.unary_unary("/official.Service/Upper", b"abc", bytes) == b"ABC"
        async with channel.open_stream("/official.Service/CountTo", bytes) as stream:
            await stream.send(b"300")
            await stream.send_eof()
            numbers = [await stream.receive() for _ in range(301)]
            assert numbers == [*(b"%d" % number for number in range(300)), None]
        async with channel.open_stream("/official.Service/Total", bytes) as stream:
            for _ in range(300):
                await stream.send(b"ab")
            await stream.send_eof()
            assert await stream.receive() == b"600"
            assert await stream.receive() is None
        async with channel.open_stream("/official.Service/Double", bytes) as stream:
            for _ in range(20):
                await stream.send(b"a")
                assert await stream.receive() == b"aa"


async def test_an_early_answer(target: str) -> None:
    async with (
        open_channel(target) as channel,
        channel.open_stream("/official.Service/FirstOnly", bytes) as stream,
    ):
        with pytest.raises(trio.BrokenResourceError):
            await send_for_ever(stream)
        assert await stream.receive() == bytes(64 * 1024)
        assert await stream.receive() is None


async def send_for_ever(stream: Any) -> None:
    while True:
        await stream.send(bytes(64 * 1024))


async def test_details_that_are_garbage_do_not_hide_the_status(target: str) -> None:
    async with open_channel(target) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary_unary("/official.Service/Garbled", b"", bytes)
    error = caught.value
    assert (error.code, error.message) == (StatusCode.ABORTED, "no details to speak of")
    assert error.details == ()


async def test_an_unknown_method(target: str) -> None:
    async with open_channel(target) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary_unary("/official.Service/Nope", b"", bytes)
    assert caught.value.code is StatusCode.UNIMPLEMENTED


async def test_nobody_listens() -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with open_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(RpcError) as caught:
                await channel.unary_unary("/official.Service/Upper", b"", bytes)
            assert caught.value.code is StatusCode.UNAVAILABLE
            async with channel.open_stream("/official.Service/Double", bytes) as stream:
                with pytest.raises(RpcError) as caught:
                    await send_for_ever(stream)
                assert caught.value.code is StatusCode.UNAVAILABLE


async def test_many_calls_at_once(target: str) -> None:
    responses = []

    async def call(channel: Any, number: int) -> None:
        request = b"a%d" % number
        responses.append(await channel.unary_unary("/official.Service/Upper", request, bytes))

    async with open_channel(target) as channel, trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(call, channel, number)
    assert sorted(responses) == sorted(b"A%d" % number for number in range(500))
