"""A proxy before an S3 server that counts requests, and lets chosen ones fail or wait."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import trio


@dataclass(frozen=True)
class Answer:
    """Answer in the server's place."""

    status: str
    code: str = ""


@dataclass(frozen=True)
class Drop:
    """Close the connection without an answer."""


@dataclass(frozen=True)
class Hang:
    """Never answer."""


@dataclass(frozen=True)
class Cut:
    """Let the server answer, and close the connection behind so many bytes."""

    after_bytes: int


@dataclass(frozen=True)
class Hold:
    """Forward the request only once the test says so."""

    released: trio.Event


Fault = Answer | Drop | Hang | Cut | Hold


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    size_bytes: int
    is_copy: bool


class Proxy:
    """Listens at `endpoint` and forwards to `upstream_port`, but where `choose` says otherwise."""

    def __init__(self, upstream_port: int, tls: ssl.SSLContext | None = None) -> None:
        self._upstream_port = upstream_port
        self._tls = tls
        self.endpoint = ""
        self.requests: list[Request] = []
        self.choose: Callable[[Request], Fault | None] = lambda request: None
        self.begun = trio.Event()
        """Set with the first request that is chosen."""

    def count(self, method: str) -> int:
        return Counter(request.method for request in self.requests)[method]

    def fail_all(self, fault: Fault, method: str | None = None) -> None:
        self.choose = lambda request: fault if method in (None, request.method) else None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        scheme = "https" if self._tls else "http"
        self.endpoint = f"{scheme}://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._accept, listeners)
            task_status.started()

    async def _accept(self, client: trio.SocketStream) -> None:
        if self._tls is None:
            await self._handle(client)
        else:
            await self._handle(trio.SSLStream(client, self._tls, server_side=True))

    async def _handle(self, client: trio.abc.Stream) -> None:
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self._upstream_port) as server:
                await self._join(_Reader(client), client, server)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            # A client that goes away, or that does not trust the certificate, is its own affair.
            await trio.aclose_forcefully(client)

    async def _join(
        self, reader: _Reader, client: trio.abc.Stream, server: trio.SocketStream
    ) -> None:
        cut = _Cut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_back, server, client, cut, nursery.cancel_scope)
            while head := await reader.head():
                request = _parse(head)
                self.requests.append(request)
                fault = self.choose(request)
                if fault is not None:
                    self.begun.set()
                if isinstance(fault, Drop):
                    break
                if isinstance(fault, Hang):
                    await trio.sleep_forever()
                if isinstance(fault, Hold):
                    await fault.released.wait()
                if isinstance(fault, Answer):
                    await reader.body(request.size_bytes, None)
                    await client.send_all(_response(fault, request))
                    continue
                cut.after_bytes = fault.after_bytes if isinstance(fault, Cut) else None
                await server.send_all(head)
                await reader.body(request.size_bytes, server)
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(client)


class _Cut:
    after_bytes: int | None = None


class _Reader:
    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._data = b""

    async def head(self) -> bytes:
        while (end := self._data.find(b"\r\n\r\n")) < 0:
            more = await self._stream.receive_some()
            if not more:
                return b""
            self._data += bytes(more)
        head, self._data = self._data[: end + 4], self._data[end + 4 :]
        return head

    async def body(self, size_bytes: int, target: trio.SocketStream | None) -> None:
        while size_bytes:
            data = self._data or bytes(await self._stream.receive_some())
            if not data:
                raise trio.BrokenResourceError
            piece, self._data = data[:size_bytes], data[size_bytes:]
            size_bytes -= len(piece)
            if target is not None:
                await target.send_all(piece)


async def _send_back(
    server: trio.SocketStream, client: trio.abc.SendStream, cut: _Cut, scope: trio.CancelScope
) -> None:
    while data := bytes(await server.receive_some()):
        if cut.after_bytes is not None:
            data = data[: cut.after_bytes]
            cut.after_bytes -= len(data)
        await client.send_all(data)
        if cut.after_bytes == 0:
            break
    scope.cancel()


def _parse(head: bytes) -> Request:
    line, *rest = head.decode("latin-1").split("\r\n")
    method, path, _ = line.split(" ")
    headers = dict(item.lower().split(": ", 1) for item in rest if item)
    size_bytes = int(headers.get("content-length", "0"))
    return Request(method, path, size_bytes, "x-amz-copy-source" in headers)


def _response(answer: Answer, request: Request) -> bytes:
    body = f"<Error><Code>{answer.code}</Code></Error>".encode() if answer.code else b""
    head = f"HTTP/1.1 {answer.status}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    return head if request.method == "HEAD" else head + body
