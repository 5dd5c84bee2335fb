"""What is said between stoker and one worker process, and every way in which that goes wrong."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from stoker.errors import MalformedResponse
from stoker.protos.worker_protocol_pb2 import WorkRequest, WorkResponse
from stoker.spi import Exit, Process, ResponseDecoder, WorkerProtocol
from stoker.workers.failure import describe_exit

_CHUNK_BYTES = 65536
_EXCERPT_BYTES = 1024

# A process that ends closes its stdout a moment before it can be waited for, and one that has
# ended may have left an answer in the pipe. Only a misbehaving one makes anybody wait this long.
_END_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a conversation is over."""

    reason: str
    """Words that go on after the worker's name."""
    excerpt: bytes = b""
    exit: Exit | None = None


STOPPED = Fault("was stopped by the server")


class ConversationOver(Exception):
    """No answer comes any more. Says what was seen; the worker makes a WorkerFailed of it."""

    def __init__(self, fault: Fault, *, answered: bool) -> None:
        self.fault = fault
        self.answered = answered
        super().__init__(fault.reason)


class Conversation:
    """The requests and responses of one process, one at a time.

    `listen` must run while `ask` is called: a worker may write before it has read all, and its
    death is to be noticed when nobody asks it anything.
    """

    def __init__(self, process: Process, protocol: WorkerProtocol, limit_bytes: int) -> None:
        assert process.stdin is not None, "a worker is started with pipes"
        assert process.stdout is not None, "a worker is started with pipes"
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._stdout_ended = trio.Event()
        self._protocol = protocol
        self._limit_bytes = limit_bytes
        self._listening = trio.CancelScope()
        self._exchange: _Exchange | None = None
        self.fault: Fault | None = None
        """Set once, when the process can be of no more use."""

    async def listen(self) -> None:
        """Hear all that the process writes. Returns once `fault` is set.

        Cancellation sets it too, so that nobody waits for an answer that nobody hears.
        """
        try:
            with self._listening:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_process)
                    await self._read_stdout()
                    await self._watch_silence()
        finally:
            self.end(STOPPED)

    async def ask(self, request: WorkRequest) -> WorkResponse:
        """The response to `request`. Raises ConversationOver, at once if it already is.

        Cancellation ends the conversation, as an answer may come that nobody waits for.
        """
        assert self._exchange is None, "a worker is asked one thing at a time"
        exchange = _Exchange(request.request_id, self._protocol.decoder(self._limit_bytes))
        if self.fault is not None:
            raise ConversationOver(self.fault, answered=False)
        self._exchange = exchange
        complete = False
        try:
            with exchange.waiting:
                await self._send(self._protocol.encode(request))
                await exchange.over.wait()
            complete = True
        finally:
            if not complete:
                self.end(Fault("was abandoned in mid-request"))
            self._exchange = None
        return exchange.result()

    async def _send(self, data: bytes) -> None:
        try:
            await self._stdin.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # Most often it is death, which is told better by whoever listens.
            await trio.sleep(_END_SECONDS)
            self.end(Fault("closed its stdin while its process lives"))

    async def _read_stdout(self) -> None:
        try:
            while data := await self._stdout.receive_some(_CHUNK_BYTES):
                self._hear(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the same as its end

    async def _watch_silence(self) -> None:
        """Stdout has ended: unless the process does too, it would be waited for without end."""
        self._stdout_ended.set()
        await trio.sleep(_END_SECONDS)
        self.end(Fault("closed its stdout while its process lives"))

    async def _watch_process(self) -> None:
        ended = await self._process.wait()
        with trio.move_on_after(_END_SECONDS):
            await self._stdout_ended.wait()
        self.end(self._death(ended))

    def _death(self, ended: Exit) -> Fault:
        exchange = self._open_exchange()
        if exchange is None:
            return Fault(f"{describe_exit(ended)} while idle", exit=ended)
        if not exchange.heard:
            return Fault(f"{describe_exit(ended)} before it answered", exit=ended)
        heard = bytes(exchange.heard)
        reason = f"{describe_exit(ended)} within its answer, which begins with {heard[:200]!r}"
        return Fault(reason, heard, ended)

    def _open_exchange(self) -> _Exchange | None:
        """The exchange that still waits for its answer."""
        exchange = self._exchange
        return None if exchange is None or exchange.over.is_set() else exchange

    def _hear(self, data: bytes) -> None:
        """All that a chunk changes, without an await in between."""
        exchange = self._open_exchange()
        try:
            if exchange is None:
                self._hear_unasked(data)
            else:
                exchange.hear(data)
        except MalformedResponse as error:
            self.end(Fault(f"broke its protocol: {error}", error.excerpt))

    def _hear_unasked(self, data: bytes) -> None:
        """Only space may come unasked, such as a newline that follows the last answer."""
        decoder = self._protocol.decoder(self._limit_bytes)
        responses = decoder.feed(data)
        decoder.end()
        if responses:
            raise MalformedResponse("it answered what nobody had asked", data[:_EXCERPT_BYTES])

    def end(self, fault: Fault) -> None:
        """The process can be of no more use. The first fault is the one that counts."""
        if self.fault is None:
            self.fault = fault
        if self._exchange is not None:
            self._exchange.fail(self.fault)
        self._listening.cancel()


class _Exchange:
    """One request and its response."""

    def __init__(self, request_id: int, decoder: ResponseDecoder) -> None:
        self._request_id = request_id
        self._decoder = decoder
        self.heard = bytearray()
        """The first bytes of what came in answer."""
        self.over = trio.Event()
        self.waiting = trio.CancelScope()
        self._response: WorkResponse | None = None
        self._fault: Fault | None = None

    def hear(self, data: bytes) -> None:
        """Raises MalformedResponse for all that is not exactly one answer to this request."""
        self.heard += data[: _EXCERPT_BYTES - len(self.heard)]
        responses = self._decoder.feed(data)
        if not responses:
            return
        self._check(responses)
        self._decoder.end()
        self._response = responses[0]
        self.over.set()

    def _check(self, responses: list[WorkResponse]) -> None:
        if len(responses) > 1:
            raise self._malformed(f"it answered one request {len(responses)} times")
        response = responses[0]
        if response.request_id != self._request_id:  # PWK-06
            raise self._malformed(
                f"it answered request {response.request_id} where {self._request_id} was asked"
            )
        if response.was_cancelled:
            raise self._malformed("it answered that it was cancelled, which nobody had asked for")

    def _malformed(self, reason: str) -> MalformedResponse:
        return MalformedResponse(reason, bytes(self.heard))

    def fail(self, fault: Fault) -> None:
        """Nothing more will come. An answer that has come stays."""
        self._fault = fault
        self.over.set()
        self.waiting.cancel()  # it may be stuck in writing what nobody reads

    def result(self) -> WorkResponse:
        """The response. Raises ConversationOver."""
        if self._response is not None:
            return self._response
        assert self._fault is not None, "the exchange is over"
        raise ConversationOver(self._fault, answered=bool(self.heard))
