"""What a server serves: services, and the four sorts of methods that they have."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from stoker.rpc.method import Method
from stoker.rpc.server_call import ServerCall

RequestT = TypeVar("RequestT", bound=Message | bytes)
ResponseT = TypeVar("ResponseT", bound=Message | bytes)


@dataclass(frozen=True, slots=True)
class Service:
    """A service by its full name, `package.Name`, and its methods by their short names."""

    name: str
    methods: Mapping[str, Method]


def _method(
    handler: Callable[..., Awaitable[Any]],
    streams: tuple[bool, bool],
    request_type: type[Any],
    response_type: type[Any],
) -> Method:
    decode = request_type.FromString if issubclass(request_type, Message) else None
    return Method(handler, *streams, request_type, response_type, decode)


def unary_unary(
    handler: Callable[[RequestT, ServerCall], Awaitable[ResponseT]],
    request_type: type[RequestT],
    response_type: type[ResponseT],
) -> Method:
    """A method with one request and one response, which the handler returns."""
    return _method(handler, (False, False), request_type, response_type)


def unary_stream(
    handler: Callable[[RequestT, ServerCall], Awaitable[ResponseT | None]],
    request_type: type[RequestT],
    response_type: type[ResponseT],
) -> Method:
    """A method with one request, whose handler sends responses with `call.send`.

    It may return the last response instead: that goes out together with the status.
    """
    return _method(handler, (False, True), request_type, response_type)


def stream_unary(
    handler: Callable[[ServerCall], Awaitable[ResponseT]],
    request_type: type[RequestT],
    response_type: type[ResponseT],
) -> Method:
    """A method whose handler takes requests with `call.receive` and returns the response.

    It may return before the requests have ended: the client gets response and status, and what
    it still sends is dropped.
    """
    return _method(handler, (True, False), request_type, response_type)


def stream_stream(
    handler: Callable[[ServerCall], Awaitable[None]],
    request_type: type[RequestT],
    response_type: type[ResponseT],
) -> Method:
    """A method whose handler uses `call.receive` and `call.send` as it likes, both at once too."""
    return _method(handler, (True, True), request_type, response_type)
