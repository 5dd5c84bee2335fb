"""One streaming call on the client."""

from typing import Generic, NoReturn

import trio
from google.protobuf.message import Message

from stoker.rpc.completion_queue import (
    Action,
    BatchEvent,
    BatchTag,
    Operation,
    StartBatch,
    receive_initial_metadata,
    receive_status,
    send_close,
    send_initial_metadata,
    send_message,
)
from stoker.rpc.flow import Incoming, Outgoing
from stoker.rpc.metadata import Metadata, Pair
from stoker.rpc.service import ResponseT
from stoker.rpc.status import RpcError, StatusCode, error_from_status
from stoker.rpc.wire import decode_response, encode_request


class ClientStream(Generic[ResponseT]):
    """A call whose requests are sent, and whose responses are received, one by one.

    One task may send while another receives. Made by `Channel.open_stream`.
    """

    def __init__(
        self, response_type: type[ResponseT], only_request: Message | bytes | None = None
    ) -> None:
        self._response_type = response_type
        self._only_request = only_request
        self._ended = trio.Event()
        self._error: RpcError | None = None
        self._half_closed = only_request is not None
        self._incoming: Incoming
        self._outgoing: Outgoing
        self.initial_metadata: Metadata | None = None
        """The headers of the response; there from the first response on."""
        self.trailing_metadata: Metadata | None = None
        """The metadata that came with the status; there once the call is over."""

    async def send(self, message: Message | bytes) -> None:
        """Send a request; wait while too many are on their way to a server that reads slowly.

        When the call is over before that, raises its RpcError, or trio.BrokenResourceError if
        the server has answered OK without waiting for the rest. A cancelled call of it has sent
        nothing.
        """
        if self._half_closed:
            raise trio.ClosedResourceError("the last request has been sent")
        if not await self._outgoing.send(encode_request(message)):
            await self._fail_to_send()

    async def _fail_to_send(self) -> NoReturn:
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        raise trio.BrokenResourceError("the server has ended the call with OK")

    async def send_eof(self) -> None:
        """Say that no more requests come, once those sent are out. Does not wait for that."""
        await trio.lowlevel.checkpoint()
        if not self._half_closed:
            self._half_closed = True
            self._outgoing.end_with(send_close())

    async def receive(self) -> ResponseT | None:
        """Return the next response, None when the call has ended with OK.

        Raises RpcError when it ended otherwise. A cancelled call of it loses no response.
        """
        message = await self._incoming.receive()
        if message is not None:
            return decode_response(message, self._response_type)
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        return None

    # What follows is for the channel.

    def first_batches(
        self, metadata: tuple[Pair, ...]
    ) -> list[tuple[tuple[Operation, ...], BatchTag]]:
        """Return the batches that a call of this stream starts with."""
        request, self._only_request = self._only_request, None
        only = () if request is None else (send_message(encode_request(request)), send_close())
        return [
            ((receive_status(), send_initial_metadata(metadata), *only), self._on_status),
            ((receive_initial_metadata(),), self._on_headers),
        ]

    def begin(self, start: StartBatch) -> None:
        """Use the call on which `start` starts batches."""
        self._incoming = Incoming(start)
        self._outgoing = Outgoing(start)
        # gRPC holds the status back until the messages before it are read: without this, a
        # client that only sends would never learn that the server has answered.
        self._incoming.read_ahead()

    def _on_headers(self, event: BatchEvent) -> None:
        self.initial_metadata = Metadata(event.batch_operations[0].initial_metadata())

    def _on_status(self, event: BatchEvent) -> Action:
        status = event.batch_operations[0]
        trailing = status.trailing_metadata()
        self.trailing_metadata = Metadata(trailing)
        if status.code() != StatusCode.OK:
            self._error = error_from_status(status.code(), status.details(), trailing)
        return self._on_ended

    def _on_ended(self) -> None:
        self._outgoing.break_off()
        self._ended.set()

    @property
    def over(self) -> bool:
        """Whether the status has come."""
        return self._ended.is_set()
