"""One call on the server: what its handler sees, and how it ends."""

import math
import time
from collections.abc import Iterable
from typing import Any

import trio
from google.protobuf.message import DecodeError, Message

from stoker.rpc.completion_queue import (
    Action,
    BatchEvent,
    BatchTag,
    NewCallEvent,
    Operation,
    ServerCore,
    peer_properties,
    receive_close,
    receive_message,
    send_initial_metadata,
    send_message,
    send_status,
    server_batch_starter,
)
from stoker.rpc.flow import Incoming, Outgoing
from stoker.rpc.metadata import Metadata, Pair, checked_pairs
from stoker.rpc.method import Method
from stoker.rpc.principal import principal_of
from stoker.rpc.status import STATUS_DETAILS_KEY, RpcError, StatusCode, encode_details, sent_message

_NEVER = 1e15
"""Seconds since the epoch; gRPC's infinite future lies beyond."""


class ServerCall:
    """A call, as its handler sees it. Valid until the handler has returned.

    When the client cancels, or its deadline expires, or its connection breaks, the handler is
    cancelled.
    """

    __slots__ = (
        "__weakref__",
        "_alive",
        "_core",
        "_details",
        "_finished",
        "_incoming",
        "_initial_metadata",
        "_outgoing",
        "_principal",
        "_scope",
        "_served_by",
        "_start",
        "_trailing_metadata",
        "metadata",
        "method",
    )

    def __init__(self, event: NewCallEvent, method: str, served_by: Method) -> None:
        self._core: ServerCore | None = event.call
        self._start = server_batch_starter(event.call)
        self._details = event.call_details
        self._incoming = Incoming(self._start) if served_by.request_streams else None
        self._outgoing = Outgoing(self._start) if served_by.response_streams else None
        if self._outgoing is not None:
            self._outgoing.precede((send_initial_metadata(()),))
        self._initial_metadata: tuple[Pair, ...] = ()
        self._trailing_metadata: tuple[Pair, ...] = ()
        self._scope: trio.CancelScope | None = None
        self._principal: str | None = None
        self._alive = True
        self._finished = False
        self._served_by = served_by
        self.method = method
        """The full name of the method, `/package.Service/Method`."""
        self.metadata = Metadata(event.invocation_metadata)

    @property
    def peer(self) -> str:
        """The client's address as gRPC writes it, such as `ipv4:127.0.0.1:50514`."""
        if self._core is None:
            raise trio.ClosedResourceError("the call has ended")
        return self._core.peer().decode()

    @property
    def principal(self) -> str:
        """Who the client has proved to be by its certificate; empty where it showed none."""
        if self._principal is None:
            if self._core is None:
                raise trio.ClosedResourceError("the call has ended")
            self._principal = principal_of(peer_properties(self._core))
        return self._principal

    def deadline_seconds_left(self) -> float:
        """Return the seconds until the client's deadline, infinity when it set none."""
        deadline = self._details.deadline
        if deadline is None or deadline > _NEVER:
            return math.inf
        return max(0.0, deadline - time.time())

    def set_initial_metadata(self, pairs: Iterable[Pair]) -> None:
        """Set the headers of the response; RuntimeError once the first one has been sent."""
        self._initial_metadata = checked_pairs(pairs)
        if self._outgoing is not None:
            self._outgoing.precede((send_initial_metadata(self._initial_metadata),))

    def set_trailing_metadata(self, pairs: Iterable[Pair]) -> None:
        """Set the metadata that goes out with the status, whatever that will be."""
        self._trailing_metadata = checked_pairs(pairs)

    async def receive(self) -> Any:
        """Return the next request, None once the client has sent its last.

        Read ahead is bounded: a handler that does not receive stops its client. None may also
        come when the client has cancelled and that has not arrived yet, so whether a stream is
        complete has to be told by its content. For one task at a time. Raises RpcError
        INVALID_ARGUMENT for a message that cannot be parsed.
        """
        if self._incoming is None:
            raise TypeError(f"{self.method} has one request, which its handler was given")
        message = await self._incoming.receive()
        if message is None:
            # A cancellation that came in together with the end is seen first, this way.
            await trio.lowlevel.checkpoint()
            return None
        return self._decode(message)

    async def send(self, message: Message | bytes) -> None:
        """Send a response; wait while too many are on their way to a client that reads slowly.

        For one task at a time. A cancelled call of it has sent nothing.
        """
        if self._outgoing is None:
            raise TypeError(f"{self.method} has one response, which its handler returns")
        if not await self._outgoing.send(self._encode(message)):
            await self._give_up()

    async def _give_up(self) -> None:
        """End a handler whose client is gone, ahead of the event that says so."""
        self._cancel()
        await trio.lowlevel.checkpoint()
        # A handler that shields itself is not cancelled: it learns it so.
        raise trio.BrokenResourceError("the client is gone")

    # What follows is for the server, not for handlers.

    def watch_close(self) -> None:
        """Have the handler cancelled when the client goes away."""
        self._start((receive_close(),), self._on_close)

    def request_message(self, tag: BatchTag) -> None:
        """Have the one request of a method without request stream reported to `tag`."""
        self._start((receive_message(),), tag)

    def _on_close(self, event: BatchEvent) -> Action | None:
        return self._cancel if event.batch_operations[0].cancelled() else None

    def _cancel(self) -> None:
        self._alive = False
        if self._scope is not None:
            self._scope.cancel()

    async def run_handler(self, request: bytes | None) -> None:
        """Run the handler, and finish the call unless it raises or the client has gone."""
        with trio.CancelScope() as self._scope:
            if not self._alive:
                return
            handler = self._served_by.handler
            if request is None:
                result = await handler(self)
            else:
                result = await handler(self._decode(request), self)
            is_absent = result is None and self._served_by.response_streams
            response = None if is_absent else self._encode(result)
            self._finish(StatusCode.OK, "", self._trailing_metadata, response)

    def fail(self, error: RpcError) -> None:
        """Finish the call with the status of `error`, unless it is finished already."""
        trailing = self._trailing_metadata
        if error.details:
            trailing = (*trailing, (STATUS_DETAILS_KEY, encode_details(error)))
        self._finish(error.code, sent_message(error), trailing, None)

    def release(self) -> None:
        """Let go of gRPC's call and of the messages read ahead, whoever still holds this one."""
        if self._incoming is not None:
            self._incoming.stop()
        self._core = self._incoming = self._outgoing = None
        self._start = _start_nothing

    def _finish(
        self, code: StatusCode, message: str, trailing: tuple[Pair, ...], response: bytes | None
    ) -> None:
        if self._finished or not self._alive:
            return
        self._finished = True
        status = send_status(trailing, code, message.encode(errors="replace"))
        last = (status,) if response is None else (send_message(response), status)
        if self._outgoing is not None:
            self._outgoing.end_with(*last)
            return
        self._start((send_initial_metadata(self._initial_metadata), *last), None)

    def _decode(self, message: bytes) -> Any:
        decode = self._served_by.decode
        if decode is None:
            return message
        try:
            return decode(message)
        except DecodeError as error:
            name = self._served_by.request_type.__name__
            raise RpcError(
                StatusCode.INVALID_ARGUMENT, f"the request is not a valid {name}"
            ) from error

    def _encode(self, message: Message | bytes) -> bytes:
        expected = self._served_by.response_type
        if not isinstance(message, expected):
            # protobuf would serialise any message without a word.
            given = type(message).__name__
            raise TypeError(f"{self.method} answers with {expected.__name__}, not {given}")
        return message if isinstance(message, bytes) else message.SerializeToString()


def _start_nothing(_operations: tuple[Operation, ...], _tag: BatchTag | None) -> bool:
    return False


def refuse(core: ServerCore, code: StatusCode, message: str) -> None:
    """End a call that no handler has seen. May be called in the poll thread."""
    status = send_status((), code, message.encode(errors="replace"))
    server_batch_starter(core)((send_initial_metadata(()), status), None)
