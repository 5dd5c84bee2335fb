"""A socket before the engine's own, on which what it answers can be cut off anywhere."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

_PIECE_BYTES = 64 * 1024


class CuttingProxy:
    """Passes all on, until it is told to cut."""

    def __init__(self, path: Path, behind: str) -> None:
        self.endpoint = f"unix://{path}"
        self._path = path
        self._behind = behind
        self._words = b""
        self._bytes = 0
        self.cuts = 0

    def cut(self, words: str, after_bytes: int) -> None:
        """Break off the next answer to a request that has `words` in it, after so many bytes."""
        self._words, self._bytes = words.encode(), after_bytes

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """For ever."""
        listener = trio.socket.socket(socket.AF_UNIX)
        await listener.bind(str(self._path))
        listener.listen(100)
        task_status.started()
        with listener:
            async with trio.open_nursery() as nursery:
                while True:
                    client, _ = await listener.accept()
                    nursery.start_soon(self._pass_on, trio.SocketStream(client))

    async def _pass_on(self, client: trio.SocketStream) -> None:
        async with client, await trio.open_unix_socket(self._behind) as engine:
            one = _Passing(self, client, engine)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.requests)
                await one.answers()
                nursery.cancel_scope.cancel()

    def is_asked_to_cut(self, request: bytes) -> int | None:
        """After how many bytes, if this is the request that was meant."""
        if self._words and self._words in request:
            self._words = b""
            return self._bytes
        return None


class _Passing:
    def __init__(
        self, proxy: CuttingProxy, client: trio.SocketStream, engine: trio.SocketStream
    ) -> None:
        self._proxy, self._client, self._engine = proxy, client, engine
        self._left: int | None = None

    async def requests(self) -> None:
        try:
            while data := await self._client.receive_some(_PIECE_BYTES):
                left = self._proxy.is_asked_to_cut(data)
                self._left = left if left is not None else self._left
                await self._engine.send_all(data)
            await self._engine.send_eof()
        except trio.BrokenResourceError:
            return

    async def answers(self) -> None:
        try:
            while data := await self._engine.receive_some(_PIECE_BYTES):
                if self._left is None:
                    await self._client.send_all(data)
                    continue
                await self._client.send_all(data[: self._left])
                self._left -= len(data[: self._left])
                if self._left <= 0:
                    self._proxy.cuts += 1
                    return
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def open_proxy(path: Path, endpoint: str) -> AsyncIterator[CuttingProxy]:
    """A proxy at `path`, which is short."""
    proxy = CuttingProxy(path, endpoint.removeprefix("unix://"))
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.serve)
        yield proxy
        nursery.cancel_scope.cancel()
