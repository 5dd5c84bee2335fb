"""One execution as its client sees it: a row of Operation messages, whatever the network does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from random import SystemRandom

import trio
from google.longrunning import operations_pb2

from stoker.client.calls import REAPI, Calls
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ClientStream, RpcError, StatusCode

_EXECUTION = f"{REAPI}.Execution"
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
MAX_RECONNECTS = 8
"""How often one execution takes up a broken stream again, before it gives up."""


class Operations(AsyncIterator[operations_pb2.Operation]):
    """The messages of one execution up to the one that is done. One task iterates.

    A stream that breaks with UNAVAILABLE is taken up again by WaitExecution, or by Execute where
    the server has forgotten the operation, after pauses that grow. Raises RpcError for any other
    failure, and after `MAX_RECONNECTS`.
    """

    def __init__(self, calls: Calls, request: reapi.ExecuteRequest, exits: AsyncExitStack) -> None:
        self._calls = calls
        self._request = request
        self._exits = exits
        self._stream: ClientStream[operations_pb2.Operation] | None = None
        self._reconnects = 0
        self._done = False
        self.name = ""
        """The operation's name, from the first message on; for `RemoteInstance.cancel`."""

    async def __anext__(self) -> operations_pb2.Operation:
        """The next message, which repeats the state when it comes after a reconnect."""
        if self._done:
            raise StopAsyncIteration
        while True:
            try:
                operation = await self._receive()
            except RpcError as error:
                await self._recover(error)
            else:
                self.name = operation.name
                self._done = operation.done
                return operation

    async def _receive(self) -> operations_pb2.Operation:
        if self._stream is None:
            self._stream = await self._open_stream()
        operation = await self._stream.receive()
        if operation is None:
            message = f"the server has ended the stream of {self.name or 'an operation'} early"
            raise RpcError(StatusCode.UNAVAILABLE, message)
        return operation

    async def _open_stream(self) -> ClientStream[operations_pb2.Operation]:
        method = "WaitExecution" if self.name else "Execute"
        request = reapi.WaitExecutionRequest(name=self.name) if self.name else self._request
        return await self._exits.enter_async_context(
            self._calls.stream(f"{_EXECUTION}/{method}", operations_pb2.Operation, request)
        )

    async def _recover(self, error: RpcError) -> None:
        self._stream = None
        await self._exits.aclose()
        forgotten = error.code is StatusCode.NOT_FOUND and self.name
        if not (forgotten or error.code is StatusCode.UNAVAILABLE):
            raise error
        if self._reconnects == MAX_RECONNECTS:
            raise error
        if forgotten:
            self.name = ""  # OPS-10: the action is asked for anew.
        pause_seconds = min(_FIRST_PAUSE_SECONDS * 2**self._reconnects, _LONGEST_PAUSE_SECONDS)
        self._reconnects += 1
        # Jitter: clients that lost one server together should not come back together.
        await trio.sleep(pause_seconds * SystemRandom().uniform(0.5, 1.0))
