"""One method of a service: its handler, and how its messages are coded."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its handler, which sides stream, and the coding of its messages.

    `decode` is None where requests are raw bytes. Made by `unary_unary`,
    `unary_stream`, `stream_unary` and `stream_stream`.
    """

    handler: Callable[..., Awaitable[Any]]
    request_streams: bool
    response_streams: bool
    request_type: type[Any]
    response_type: type[Any]
    decode: Callable[[bytes], Any] | None
