"""The gRPC client on trio."""

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from math import inf

import trio
from google.protobuf.message import Message

from stoker.rpc.client_stream import ClientStream
from stoker.rpc.completion_queue import (
    CHANNEL_CLOSED,
    Action,
    BatchEvent,
    BatchTag,
    ChannelQueue,
    ClientCore,
    Operation,
    Options,
    receive_initial_metadata,
    receive_message,
    receive_status,
    send_close,
    send_initial_metadata,
    send_message,
)
from stoker.rpc.credentials import ClientTlsCredentials
from stoker.rpc.metadata import Pair, checked_pairs
from stoker.rpc.poll_thread import PollThread
from stoker.rpc.server import MAX_RECEIVE_MESSAGE_BYTES
from stoker.rpc.service import ResponseT
from stoker.rpc.status import RpcError, StatusCode, error_from_status
from stoker.rpc.wire import decode_response, encode_request

_DEADLINE_SLACK_SECONDS = 0.25
"""How much later than trio's deadline gRPC's is: so that the scope ends the call, not an error."""


@asynccontextmanager
async def open_channel(
    target: str,
    *,
    credentials: ClientTlsCredentials | None = None,
    max_receive_message_bytes: int = MAX_RECEIVE_MESSAGE_BYTES,
    send_deadlines: bool = True,
) -> AsyncIterator["Channel"]:
    """Open a channel to "host:port" or "unix:/path".

    It connects with the first call, and again when a connection breaks. It has one thread of
    its own, however many calls there are. With `send_deadlines` the server learns of the
    deadline of trio's innermost cancel scopes. On leaving, calls still open are cancelled.
    """
    options: Options = (
        ("grpc.max_receive_message_length", max_receive_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Details of errors travel in trailers and may be long.
        ("grpc.max_metadata_size", 1024 * 1024),
        ("grpc.absolute_max_metadata_size", 1024 * 1024),
        # A connection of its own, rather than one shared with all channels to the same target.
        ("grpc.use_local_subchannel_pool", 1),
    )
    tls = None if credentials is None else credentials.for_grpc()
    channel = Channel(ChannelQueue(target, options, tls), send_deadlines=send_deadlines)
    try:
        yield channel
    finally:
        with trio.CancelScope(shield=True):
            await channel._close()


class Channel:
    """Calls to one server. Any number of tasks may call at once. Made by `open_channel`."""

    def __init__(self, queue: ChannelQueue, *, send_deadlines: bool) -> None:
        self._queue = queue
        self._send_deadlines = send_deadlines
        self._poll_thread: PollThread | None = None
        self._calls: set[ClientCore] = set()
        self._closed = False

    async def unary_unary(
        self,
        method: str,
        request: Message | bytes,
        response_type: type[ResponseT],
        *,
        metadata: Iterable[Pair] = (),
    ) -> ResponseT:
        """Call `method`, "/package.Service/Method", and return its response.

        Raises RpcError when the call does not end with OK. Cancelling it cancels the call on
        the server.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        call = _UnaryCall()
        core = self._start(
            method, [(call.operations(encode_request(request), metadata), call.on_done)]
        )
        try:
            return decode_response(await call.wait(core), response_type)
        finally:
            self._calls.discard(core)

    @asynccontextmanager
    async def open_stream(
        self,
        method: str,
        response_type: type[ResponseT],
        *,
        metadata: Iterable[Pair] = (),
        only_request: Message | bytes | None = None,
    ) -> AsyncIterator[ClientStream[ResponseT]]:
        """Call `method`, "/package.Service/Method", message by message.

        Serves every kind of method with a stream in it. An `only_request` goes out with the
        beginning of the call, which costs less than to send it, and none can follow. On leaving,
        a call that is not over is cancelled.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        stream = ClientStream(response_type, only_request)
        core = self._start(method, stream.first_batches(checked_pairs(metadata)))
        stream.begin(self._queue.batch_starter(core))
        try:
            yield stream
        finally:
            if not stream.over:
                _cancel(core, "the client has left the call")
            self._calls.discard(core)

    def _start(
        self, method: str, batches: list[tuple[tuple[Operation, ...], BatchTag]]
    ) -> ClientCore:
        if self._closed:
            raise trio.ClosedResourceError(CHANNEL_CLOSED)
        if self._poll_thread is None:
            self._poll_thread = PollThread("grpc-client", self._queue.events)
            self._poll_thread.start()
        core = self._queue.start_call(method, self._deadline(), batches)
        self._calls.add(core)
        return core

    def _deadline(self) -> float | None:
        deadline = trio.current_effective_deadline()
        if deadline == inf or not self._send_deadlines:
            return None
        return time.time() + deadline - trio.current_time() + _DEADLINE_SLACK_SECONDS

    async def _close(self) -> None:
        self._closed = True
        for core in self._calls:
            _cancel(core, CHANNEL_CLOSED)
        if self._poll_thread is not None:
            self._queue.shut_down()
            await self._poll_thread.wait_ended()
        self._queue.destroy()


class _UnaryCall:
    """A call with one request and one response, done in a single batch."""

    __slots__ = ("_event", "_task")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._event: BatchEvent | None = None

    def operations(self, request: bytes, metadata: Iterable[Pair]) -> tuple[Operation, ...]:
        return (
            receive_status(),
            receive_message(),
            receive_initial_metadata(),
            send_initial_metadata(checked_pairs(metadata)),
            send_message(request),
            send_close(),
        )

    def on_done(self, event: BatchEvent) -> Action:
        self._event = event
        return self._wake

    def _wake(self) -> None:
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)

    async def wait(self, core: ClientCore) -> bytes:
        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            _cancel(core, "the client has cancelled the call")
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
        assert self._event is not None
        status, received = self._event.batch_operations[:2]
        if status.code() != StatusCode.OK:
            raise error_from_status(status.code(), status.details(), status.trailing_metadata())
        message = received.message()
        if message is None:
            raise RpcError(StatusCode.INTERNAL, "the server has answered OK without a response")
        return message


def _cancel(core: ClientCore, reason: str) -> None:
    core.cancel(StatusCode.CANCELLED, reason)
