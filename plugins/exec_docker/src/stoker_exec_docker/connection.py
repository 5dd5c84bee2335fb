"""A connection to the streams of a command: HTTP up to the upgrade, raw bytes from there on.

Made by hand, as the docker library needs a thread for each such connection, and keeps bytes in a
buffer that nobody else can read.
"""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import quote

import trio

from stoker import spi
from stoker_exec_docker.engine import Engine, NotAnswering

_LONGEST_HEAD_BYTES: Final = 64 * 1024
_MOST_BYTES_AT_ONCE: Final = 256 * 1024


class Connection:
    """The raw stream. One task receives, another sends."""

    def __init__(self, stream: trio.SocketStream, rest: bytes) -> None:
        self._stream = stream
        self._rest = rest

    async def receive(self) -> bytes:
        """The next bytes, none at the end. Raises BrokenResourceError or ClosedResourceError."""
        if self._rest:
            rest, self._rest = self._rest, b""
            return rest
        return bytes(await self._stream.receive_some(_MOST_BYTES_AT_ONCE))

    async def send(self, data: bytes) -> None:
        """Raises BrokenResourceError when nobody reads any more."""
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        """End the command's stdin; what it writes still comes."""
        await self._stream.send_eof()

    def close(self) -> None:
        """Close it at once."""
        self._stream.socket.close()


async def start_command(engine: Engine, command: str) -> Connection:
    """Start a prepared command, with its streams on the connection that is returned.

    From the call on it may be running. Raises NotAnswering, or Unavailable with what the
    engine says.
    """
    body = json.dumps({"Detach": False, "Tty": False}).encode()
    head = (
        f"POST {engine.api_path}/exec/{command}/start HTTP/1.1\r\n"
        "Host: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    )
    return await _asked(engine, head.encode() + body, "does not start a command")


async def open_image_events(engine: Engine) -> Connection:
    """A connection on which something comes whenever an image has come, gone or changed its name.

    What it is has to be asked for. Raises NotAnswering, or Unavailable with what the engine says.
    """
    filters = quote(json.dumps({"type": ["image"]}))
    head = f"GET {engine.api_path}/events?filters={filters} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return await _asked(engine, head.encode(), "tells nothing of its images")


async def _asked(engine: Engine, request: bytes, failure: str) -> Connection:
    try:
        stream = await trio.open_unix_socket(engine.socket_path)
    except OSError as error:
        raise NotAnswering(f"the container engine went away: {error.strerror}") from error
    try:
        await stream.send_all(request)
        return await _answered(stream, failure)
    except (trio.BrokenResourceError, OSError) as error:
        stream.socket.close()
        raise NotAnswering(f"the container engine went away: {error}") from error
    except BaseException:
        stream.socket.close()
        raise


async def _answered(stream: trio.SocketStream, failure: str) -> Connection:
    received = b""
    while b"\r\n\r\n" not in received:
        piece = await stream.receive_some(_MOST_BYTES_AT_ONCE)
        received += piece
        if not piece or len(received) > _LONGEST_HEAD_BYTES:
            raise NotAnswering("the container engine broke off an answer")
    head, _, rest = received.partition(b"\r\n\r\n")
    status = head.split(b"\r\n")[0].split(b" ", 2)
    # Podman says 200 where it has upgraded all the same.
    if status[1:2] not in ([b"101"], [b"200"]):
        said = (rest or head)[:500].decode(errors="replace").strip()
        raise spi.Unavailable(f"the container engine {failure}: {said}")
    return Connection(stream, rest)
