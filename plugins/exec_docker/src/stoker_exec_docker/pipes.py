"""Stdin and stdout of a command, as ends of pipes."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

import trio

from stoker_exec_docker.connection import Connection

_MOST_UNREAD_BYTES = 256 * 1024


class Stdin(trio.abc.SendStream):
    """What a command reads. Closing it is the end of its input; its output goes on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See :class:`trio.abc.SendStream`."""
        if self._closed:
            raise trio.ClosedResourceError
        await self._connection.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """See :class:`trio.abc.SendStream`."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """See :class:`trio.abc.AsyncResource`."""
        if not self._closed:
            self._closed = True
            try:
                await self._connection.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await trio.lowlevel.checkpoint()


class Stdout(trio.abc.ReceiveStream):
    """What a command writes, as far as it was not yet read: a bounded amount."""

    def __init__(self) -> None:
        self._unread = bytearray()
        self._ended = False
        self._closed = False
        self._changed = trio.lowlevel.ParkingLot()

    async def feed(self, data: bytes) -> None:
        """Add what has come, once there is room."""
        while len(self._unread) >= _MOST_UNREAD_BYTES and not self._closed:
            await self._changed.park()
        self._unread += data
        self._changed.unpark_all()

    def end(self) -> None:
        """Nothing comes any more."""
        self._ended = True
        self._changed.unpark_all()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See :class:`trio.abc.ReceiveStream`."""
        await trio.lowlevel.checkpoint()
        while not self._unread and not self._ended and not self._closed:
            await self._changed.park()
        if self._closed:
            raise trio.ClosedResourceError
        size = len(self._unread) if max_bytes is None else max_bytes
        data = bytes(self._unread[:size])
        del self._unread[:size]
        self._changed.unpark_all()
        return data

    async def aclose(self) -> None:
        """See :class:`trio.abc.AsyncResource`."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """As `aclose`, at once."""
        self._closed = True
        self._unread.clear()
        self._changed.unpark_all()


def output_pipes(pid: int) -> frozenset[int]:
    """The numbers of the pipes that a process writes to; none once it has ended."""
    pipes = set()
    for output in (1, 2):
        with suppress(OSError):
            status = Path(f"/proc/{pid}/fd/{output}").stat()
            if stat.S_ISFIFO(status.st_mode):
                pipes.add(status.st_ino)
    return frozenset(pipes)
