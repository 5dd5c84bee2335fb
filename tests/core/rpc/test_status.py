"""How calls end: statuses, their details, and what becomes of exceptions."""

import logging
from typing import Any

import grpc
import pytest
import trio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from stoker.rpc import (
    RpcError,
    Server,
    ServerCall,
    Service,
    StatusCode,
    open_channel,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)
from stoker.rpc.protos import health_pb2

Request = health_pb2.HealthCheckRequest

RETRY = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=7))
DEBUG = error_details_pb2.DebugInfo(detail="shelf 3")


async def refuse(request: bytes, call: ServerCall) -> bytes:
    raise RpcError(StatusCode.RESOURCE_EXHAUSTED, "no room, désolé", [RETRY, DEBUG])


async def call_it(target: str, name: str, request: bytes = b"") -> RpcError:
    async with open_channel(target) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary_unary(f"/test.Service/{name}", request, bytes)
    return caught.value


async def test_code_message_and_details_arrive(serve: Any) -> None:
    # GEN-13
    running = await serve({"Refuse": unary_unary(refuse, bytes, bytes)})
    error = await call_it(running.target, "Refuse")
    assert error.code is StatusCode.RESOURCE_EXHAUSTED
    assert error.message == "no room, désolé"
    assert error.details == (RETRY, DEBUG)
    assert str(error) == "RESOURCE_EXHAUSTED: no room, désolé"


async def test_the_details_are_a_status_equal_to_the_call_s(serve: Any, with_grpcio: Any) -> None:
    # GEN-13
    running = await serve({"Refuse": unary_unary(refuse, bytes, bytes)})

    def use(channel: Any) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Service/Refuse")(b"")
        trailers = dict(caught.value.trailing_metadata())
        return caught.value.code(), caught.value.details(), trailers["grpc-status-details-bin"]

    code, message, encoded = await with_grpcio(running.target, use)
    status = status_pb2.Status.FromString(encoded)
    assert (code.value[0], message) == (status.code, status.message)
    assert status.code == StatusCode.RESOURCE_EXHAUSTED
    assert status.details[0].type_url == "type.googleapis.com/google.rpc.RetryInfo"


@pytest.mark.parametrize(
    "wrapped",
    [
        any_pb2.Any(type_url="type.googleapis.com/no.Such", value=b"\x08\x01"),
        any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff"),
    ],
    ids=["unknown type", "garbage"],
)
async def test_details_that_cannot_be_unpacked_stay_wrapped(
    serve: Any, wrapped: any_pb2.Any
) -> None:
    async def odd(request: bytes, call: ServerCall) -> bytes:
        raise RpcError(StatusCode.FAILED_PRECONDITION, "odd", [wrapped, RETRY])

    running = await serve({"Odd": unary_unary(odd, bytes, bytes)})
    error = await call_it(running.target, "Odd")
    assert error.details == (wrapped, RETRY)


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
async def test_every_code_arrives(serve: Any, code: Any) -> None:
    async def end(request: bytes, call: ServerCall) -> bytes:
        raise RpcError(code, code.name)

    running = await serve({"End": unary_unary(end, bytes, bytes)})
    error = await call_it(running.target, "End")
    assert (error.code, error.message) == (code, code.name)


def test_ok_is_no_error() -> None:
    with pytest.raises(ValueError, match="OK"):
        RpcError(StatusCode.OK, "")


async def test_a_message_too_long_for_metadata_is_cut(serve: Any) -> None:
    async def end(request: bytes, call: ServerCall) -> bytes:
        raise RpcError(StatusCode.NOT_FOUND, "ü" * 100_000)

    running = await serve({"End": unary_unary(end, bytes, bytes)})
    error = await call_it(running.target, "End")
    assert error.code is StatusCode.NOT_FOUND
    assert error.message == "ü" * 1024 + " [cut]"


@pytest.mark.parametrize("sends", [0, 1, 5, 100])
async def test_an_error_after_some_responses(serve: Any, sends: Any) -> None:
    async def fail_late(request: bytes, call: ServerCall) -> None:
        for _ in range(sends):
            await call.send(b"x")
        raise RpcError(StatusCode.DATA_LOSS, "rotten", [DEBUG])

    running = await serve({"Late": unary_stream(fail_late, bytes, bytes)})
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Late", bytes) as stream,
    ):
        await stream.send(b"")
        await stream.send_eof()
        for _ in range(sends):
            assert await stream.receive() == b"x"
        with pytest.raises(RpcError) as caught:
            await stream.receive()
    assert (caught.value.code, caught.value.details) == (StatusCode.DATA_LOSS, (DEBUG,))


async def test_an_error_while_the_client_sends(serve: Any) -> None:
    async def fail_at_third(call: ServerCall) -> bytes:
        for _ in range(3):
            await call.receive()
        raise RpcError(StatusCode.OUT_OF_RANGE, "three is enough")

    running = await serve({"Third": stream_unary(fail_at_third, bytes, bytes)})
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Third", bytes) as stream,
    ):
        with pytest.raises(RpcError) as caught:
            await send_for_ever(stream)
        assert caught.value.code is StatusCode.OUT_OF_RANGE
        with pytest.raises(RpcError, match="three is enough"):
            await stream.receive()


async def send_for_ever(stream: Any) -> None:
    while True:
        await stream.send(bytes(64 * 1024))


async def test_an_unknown_exception_is_internal_without_its_text(serve: Any, caplog: Any) -> None:
    # GEN-27
    async def fail(request: bytes, call: ServerCall) -> bytes:
        raise LookupError("the secret")

    running = await serve({"Fail": unary_unary(fail, bytes, bytes)})
    with caplog.at_level(logging.ERROR):
        error = await call_it(running.target, "Fail")
    assert error.code is StatusCode.INTERNAL
    assert "secret" not in error.message
    assert "LookupError" not in error.message
    assert "the secret" in caplog.text
    assert "/test.Service/Fail" in caplog.text


def translate(error: Exception) -> RpcError | None:
    if isinstance(error, FileNotFoundError):
        return RpcError(StatusCode.NOT_FOUND, f"{error.filename} is missing")
    return None


async def test_exceptions_are_translated(serve: Any) -> None:
    async def fail(request: bytes, call: ServerCall) -> bytes:
        raise FileNotFoundError(2, "", "blob")

    running = await serve({"Fail": unary_unary(fail, bytes, bytes)}, translate_error=translate)
    error = await call_it(running.target, "Fail")
    assert (error.code, error.message) == (StatusCode.NOT_FOUND, "blob is missing")


async def test_a_group_of_one_counts_as_its_exception(serve: Any) -> None:
    async def fail_in_nursery(request: bytes, call: ServerCall) -> bytes:
        async def fail() -> None:
            async with trio.open_nursery() as inner:
                inner.start_soon(trio.sleep_forever)
                raise FileNotFoundError(2, "", "blob")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
        return b""

    running = await serve(
        {"Fail": unary_unary(fail_in_nursery, bytes, bytes)}, translate_error=translate
    )
    assert (await call_it(running.target, "Fail")).code is StatusCode.NOT_FOUND


async def test_a_group_of_several_is_internal(serve: Any, caplog: Any) -> None:
    async def fail(request: bytes, call: ServerCall) -> bytes:
        raise ExceptionGroup("both", [FileNotFoundError(2, "", "a"), FileNotFoundError(2, "", "b")])

    running = await serve({"Fail": unary_unary(fail, bytes, bytes)}, translate_error=translate)
    assert (await call_it(running.target, "Fail")).code is StatusCode.INTERNAL


async def test_a_translation_that_fails_is_internal(serve: Any, caplog: Any) -> None:
    def broken(error: Exception) -> RpcError | None:
        raise ZeroDivisionError

    running = await serve(
        {"Refuse": unary_unary(fail_plainly, bytes, bytes)}, translate_error=broken
    )
    assert (await call_it(running.target, "Refuse")).code is StatusCode.INTERNAL
    assert (await call_it(running.target, "Refuse")).code is StatusCode.INTERNAL


async def fail_plainly(request: bytes, call: ServerCall) -> bytes:
    raise LookupError


async def test_an_unknown_method_or_service_is_unimplemented(serve: Any) -> None:
    # GEN-25
    running = await serve({})
    error = await call_it(running.target, "Nope")
    assert error.code is StatusCode.UNIMPLEMENTED
    assert "/test.Service/Nope" in error.message
    async with open_channel(running.target) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary_unary("/no.Such/Thing", b"", bytes)
        assert caught.value.code is StatusCode.UNIMPLEMENTED
        async with channel.open_stream("/no.Such/Stream", bytes) as stream:
            with pytest.raises(RpcError) as caught:
                await stream.receive()
        assert caught.value.code is StatusCode.UNIMPLEMENTED


async def never_reached(request: Request, call: ServerCall) -> Request:
    raise AssertionError


async def first_request(call: ServerCall) -> Request:
    request: Request = await call.receive()
    return request


@pytest.mark.parametrize("name", ["Unary", "Stream"])
async def test_a_request_that_does_not_parse_is_internal(serve: Any, name: Any) -> None:
    running = await serve(
        {
            "Unary": unary_unary(never_reached, Request, Request),
            "Stream": stream_unary(first_request, Request, Request),
        }
    )
    error = await call_it(running.target, name, b"\xff\xff")
    assert error.code is StatusCode.INVALID_ARGUMENT
    assert error.message == "the request is not a valid HealthCheckRequest"


@pytest.mark.parametrize("answer", [None, "text", health_pb2.HealthListRequest()])
async def test_a_response_of_a_wrong_type_is_internal(serve: Any, answer: Any, caplog: Any) -> None:
    async def wrong(request: Request, call: ServerCall) -> Any:
        return answer

    running = await serve(
        {
            "Message": unary_unary(wrong, Request, Request),
            "Bytes": unary_unary(wrong, Request, bytes),
        }
    )
    assert (await call_it(running.target, "Message")).code is StatusCode.INTERNAL
    assert (await call_it(running.target, "Bytes")).code is StatusCode.INTERNAL


async def test_a_response_that_does_not_parse_is_internal(serve: Any) -> None:
    async def garbage(request: bytes, call: ServerCall) -> bytes:
        return b"\xff\xff"

    running = await serve({"Garbage": unary_unary(garbage, bytes, bytes)})
    async with open_channel(running.target) as channel:
        with pytest.raises(RpcError, match="response is not a valid") as caught:
            await channel.unary_unary("/test.Service/Garbage", b"", Request)
    assert caught.value.code is StatusCode.INTERNAL


async def test_a_call_without_its_request(serve: Any) -> None:
    async def unused(request: bytes, call: ServerCall) -> bytes:
        raise AssertionError

    running = await serve({"Unary": unary_unary(unused, bytes, bytes)})
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Unary", bytes) as stream,
    ):
        await stream.send_eof()
        with pytest.raises(RpcError) as caught:
            await stream.receive()
    assert caught.value.code is StatusCode.INTERNAL


async def test_a_handler_may_go_on_after_a_cancelled_receive(serve: Any) -> None:
    """A receive that was cancelled has lost no message."""

    async def impatient(call: ServerCall) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await call.receive()
        await call.send(b"ready")
        await call.send(await call.receive())

    running = await serve({"Impatient": stream_stream(impatient, bytes, bytes)})
    async with (
        open_channel(running.target) as channel,
        channel.open_stream("/test.Service/Impatient", bytes) as stream,
    ):
        assert await stream.receive() == b"ready"
        await stream.send(b"late")
        assert await stream.receive() == b"late"


async def test_a_path_is_served_once() -> None:
    method = unary_unary(refuse, bytes, bytes)
    with pytest.raises(ValueError, match=r"/a\.B/C is served twice"):
        Server([Service("a.B", {"C": method}), Service("a.B", {"C": method})])
