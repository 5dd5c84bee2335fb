"""The way to the running server's admin socket, which its configuration tells."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Generic, TypeVar

import click
import trio
from google.protobuf.message import Message

from stoker.cli.documents import load_configuration
from stoker.plugins import load_catalogue
from stoker.rpc import RpcError, StatusCode, open_channel

ResponseT = TypeVar("ResponseT", bound=Message)


def find_socket(config_file: Path | None) -> Path:
    """Where the server of this configuration listens. Raises ConfigurationError."""
    configuration, _ = load_configuration(config_file, load_catalogue())
    return configuration.admin_socket


@asynccontextmanager
async def open_answers(
    socket: Path, method: str, request: Message, response_type: type[ResponseT]
) -> AsyncIterator[AsyncIterator[ResponseT]]:
    """Call a method of the Admin service.

    Raises click.ClickException where no server listens, and RpcError.
    """
    try:
        async with (
            open_channel(f"unix:{socket}") as channel,
            channel.open_stream(f"/stoker.admin.v1.Admin/{method}", response_type) as stream,
        ):
            await stream.send(request)
            await stream.send_eof()
            yield _Answers(stream.receive)
    except RpcError as error:
        # A server that has trouble with its disk says UNAVAILABLE too.
        if error.code is not StatusCode.UNAVAILABLE or await _is_listening(socket):
            raise
        raise click.ClickException(
            f"no server of this configuration is running: nobody listens on {socket}"
        ) from error


async def _is_listening(socket: Path) -> bool:
    try:
        stream = await trio.open_unix_socket(socket)
    except OSError:
        return False
    await stream.aclose()
    return True


class _Answers(AsyncIterator[ResponseT], Generic[ResponseT]):
    def __init__(self, receive: Callable[[], Awaitable[ResponseT | None]]) -> None:
        self._receive = receive

    async def __anext__(self) -> ResponseT:
        if (answer := await self._receive()) is None:
            raise StopAsyncIteration
        return answer
