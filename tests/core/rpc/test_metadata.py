"""Metadata: headers to the server, headers and trailers to the client."""

from typing import Any

import pytest

from stoker.rpc import (
    Metadata,
    RpcError,
    ServerCall,
    StatusCode,
    open_channel,
    stream_stream,
    unary_unary,
)

PAIRS: list[tuple[str, str | bytes]] = [
    ("word", "one"),
    ("word", "two"),
    ("blob-bin", b"\x00\xff\x80"),
]


async def test_to_the_server(serve: Any) -> None:
    seen = []

    async def look(request: bytes, call: ServerCall) -> bytes:
        seen.append(call.metadata)
        return b""

    running = await serve({"Look": unary_unary(look, bytes, bytes)})
    async with open_channel(running.target) as channel:
        await channel.unary_unary("/test.Service/Look", b"", bytes, metadata=PAIRS)
    (metadata,) = seen
    assert metadata.get("word") == "one"
    assert metadata.get_all("word") == ["one", "two"]
    assert metadata.get("blob-bin") == b"\x00\xff\x80"
    assert metadata.get("absent") is None
    assert metadata.get("absent", "else") == "else"
    assert "word" in metadata
    assert "absent" not in metadata


async def test_to_the_client_of_a_stream(serve: Any) -> None:
    async def answer(call: ServerCall) -> None:
        call.set_initial_metadata([("head", "first")])
        call.set_trailing_metadata(PAIRS)
        await call.send(b"x")
        with pytest.raises(RuntimeError):
            call.set_initial_metadata([("head", "late")])

    running = await serve({"Answer": stream_stream(answer, bytes, bytes)})
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Answer", bytes) as stream,
    ):
        assert await stream.receive() == b"x"
        assert await stream.receive() is None
        assert stream.initial_metadata is not None
        assert stream.initial_metadata.get("head") == "first"
        assert stream.trailing_metadata is not None
        assert list(stream.trailing_metadata) == PAIRS


async def test_to_the_official_client(serve: Any, with_grpcio: Any) -> None:
    async def answer(request: bytes, call: ServerCall) -> bytes:
        call.set_initial_metadata([("head-bin", b"\x01")])
        call.set_trailing_metadata(PAIRS)
        value = call.metadata.get("from-client-bin")
        assert isinstance(value, bytes)
        return value

    running = await serve({"Answer": unary_unary(answer, bytes, bytes)})

    def use(channel: Any) -> Any:
        response, call = channel.unary_unary("/test.Service/Answer").with_call(
            b"", metadata=[("from-client-bin", b"\x07\x00")]
        )
        return response, list(call.initial_metadata()), list(call.trailing_metadata())

    response, headers, trailers = await with_grpcio(running.target, use)
    assert response == b"\x07\x00"
    assert ("head-bin", b"\x01") in headers
    assert [tuple(pair) for pair in trailers] == PAIRS


async def test_trailers_go_with_errors_too(serve: Any) -> None:
    async def fail(call: ServerCall) -> None:
        call.set_trailing_metadata(PAIRS)
        raise RpcError(StatusCode.ABORTED, "")

    running = await serve({"Fail": stream_stream(fail, bytes, bytes)})
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Fail", bytes) as stream,
    ):
        with pytest.raises(RpcError):
            await stream.receive()
        assert stream.trailing_metadata is not None
        assert list(stream.trailing_metadata) == PAIRS


@pytest.mark.parametrize(
    ("pair", "error"),
    [
        (("Upper", "x"), ValueError),
        (("", "x"), ValueError),
        (("grpc-status", "0"), ValueError),
        (("text", "two\nlines"), ValueError),
        (("text", "ü"), ValueError),
        (("text", b"bytes"), TypeError),
        (("blob-bin", "text"), TypeError),
    ],
)
async def test_what_may_not_be_sent_is_refused_by_name(serve: Any, pair: Any, error: Any) -> None:
    raised = []

    async def answer(request: bytes, call: ServerCall) -> bytes:
        with pytest.raises(error) as caught:
            call.set_trailing_metadata([pair])
        raised.append(str(caught.value))
        return b"fine"

    running = await serve({"Answer": unary_unary(answer, bytes, bytes)})
    async with open_channel(running.target) as channel:
        assert await channel.unary_unary("/test.Service/Answer", b"", bytes) == b"fine"
        with pytest.raises(error):
            await channel.unary_unary("/test.Service/Answer", b"", bytes, metadata=[pair])
    assert repr(pair[0]) in raised[0]


def test_a_representation_shows_no_values() -> None:
    assert "hunter2" not in repr(Metadata([("authorization", "hunter2")]))


async def test_method_and_peer(serve: Any) -> None:
    seen = []

    async def look(request: bytes, call: ServerCall) -> bytes:
        seen.append((call.method, call.peer))
        return b""

    running = await serve({"Look": unary_unary(look, bytes, bytes)})
    async with open_channel(running.target) as channel:
        await channel.unary_unary("/test.Service/Look", b"", bytes)
    ((method, peer),) = seen
    assert method == "/test.Service/Look"
    assert peer.startswith("ipv4:127.0.0.1:")
