"""What is said between stoker and one worker process, and every way in which that goes wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import trio

from stoker.errors import StokerError
from stoker.protos.worker_protocol_pb2 import WorkRequest, WorkResponse
from stoker.spi import Process
from stoker.workers.exchanges import Exchange, Exchanges
from stoker.workers.failure import Fault, FaultKind

_CHUNK_BYTES = 65536

# A process that ends closes its stdout a moment before it can be waited for, and one that has
# ended may have left an answer in the pipe. Only a misbehaving one makes anybody wait this long.
_END_SECONDS = 1.0

STOPPED = Fault(FaultKind.STOPPED, "was stopped by the server")


class ConversationOver(Exception):
    """No answer comes any more. Says what was seen; the worker makes a WorkerFailed of it."""

    def __init__(self, fault: Fault, *, answered: bool) -> None:
        self.fault = fault
        self.answered = answered
        super().__init__(fault.reason)


class Answer(NamedTuple):
    """What a worker has said to one request."""

    response: WorkResponse
    number: int
    """Which of all answers of its process this is, from 1. Those that come together differ."""


class _GivenUp(NamedTuple):
    """A request that was cancelled, and how long its answer is waited for."""

    over: trio.Event
    since: float


class Conversation:
    """The requests and responses of one process.

    `listen` must run while `ask` is called: it writes, as no cancellation of an `ask` may tear a
    frame, and it reads, as a worker may answer before it has read all, and its death is to be
    noticed when nobody asks it anything.
    """

    def __init__(self, process: Process, exchanges: Exchanges) -> None:
        assert process.stdin is not None, "a worker is started with pipes"
        assert process.stdout is not None, "a worker is started with pipes"
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._stdout_ended = trio.Event()
        self._frames_wanted = trio.lowlevel.ParkingLot()
        self._listening = trio.CancelScope()
        self._exchanges = exchanges
        self._given_up: deque[_GivenUp] = deque()

    @property
    def fault(self) -> Fault | None:
        """Set once, when the process can be of no more use."""
        return self._exchanges.fault

    @property
    def recovering(self) -> bool:
        """Whether the answer to a cancelled request is still to come."""
        return self._exchanges.recovering

    async def listen(self) -> None:
        """Write all that is asked and hear all that the process writes. Returns once `fault` is
        set.

        Cancellation sets it too, so that nobody waits for an answer that nobody hears.
        """
        try:
            with self._listening:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_process)
                    nursery.start_soon(self._write_stdin)
                    await self._read_stdout()
                    await self._watch_silence()
        finally:
            self.end(STOPPED)

    async def ask(self, request: WorkRequest, inputs: Sequence[bytes] = ()) -> Answer:
        """The answer to `request`, whose id is set here, with more `inputs`.

        Calls overlap for multiplex workers.
        Raises ConversationOver, at once if it already is. Cancellation gives the request up,
        which a cancellable worker is told.
        """
        if (refusal := self._exchanges.refusal) is not None:
            raise ConversationOver(refusal, answered=False)
        over = trio.Event()
        exchange = self._exchanges.ask(request, over.set, inputs)
        self._frames_wanted.unpark()
        try:
            await over.wait()
        finally:
            if not over.is_set():
                self._give_up(exchange, over)
        if exchange.response is None:
            assert exchange.fault is not None, "the exchange is over"
            raise ConversationOver(exchange.fault, answered=exchange.answered)
        return Answer(exchange.response, exchange.number)

    def _give_up(self, exchange: Exchange, over: trio.Event) -> None:
        self._forget_answered()
        if self._exchanges.give_up(exchange):
            self._given_up.append(_GivenUp(over, trio.current_time()))
            self._frames_wanted.unpark()
        self._stop_if_over()

    async def recover(self, grace_seconds: float) -> None:
        """Wait until all requests that were given up are answered, or `fault` is set.

        It is set when one takes longer than `grace_seconds` from its cancellation. Calls may
        overlap, and be cancelled.
        """
        while self.recovering:
            oldest = self._given_up[0]
            with trio.move_on_at(oldest.since + grace_seconds):
                await oldest.over.wait()
            if not oldest.over.is_set():
                reason = f"did not answer within {grace_seconds:g} s after a request was cancelled"
                self.end(Fault(FaultKind.UNRECOVERED, reason))
            self._forget_answered()

    def _forget_answered(self) -> None:
        while self._given_up and self._given_up[0].over.is_set():
            self._given_up.popleft()

    def end(self, fault: Fault) -> None:
        """The process can be of no more use. The first fault is the one that counts."""
        self._exchanges.fail(fault)
        self._stop_if_over()

    def _stop_if_over(self) -> None:
        if self._exchanges.fault is not None:
            self._listening.cancel()

    async def _write_stdin(self) -> None:
        """Each frame by itself: there are tools that lose what is behind one in the same read."""
        try:
            while True:
                if frame := self._exchanges.next_frame():
                    await self._stdin.send_all(frame)
                else:
                    await self._frames_wanted.park()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # Most often it is death, which is told better by whoever listens.
            await trio.sleep(_END_SECONDS)
            self.end(Fault(FaultKind.CLOSED_STDIN, "closed its stdin while its process lives"))

    async def _read_stdout(self) -> None:
        try:
            while data := await self._stdout.receive_some(_CHUNK_BYTES):
                self._exchanges.hear(bytes(data))
                self._stop_if_over()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the same as its end

    async def _watch_silence(self) -> None:
        """Stdout has ended: unless the process does too, it would be waited for without end."""
        self._stdout_ended.set()
        await trio.sleep(_END_SECONDS)
        self.end(Fault(FaultKind.CLOSED_STDOUT, "closed its stdout while its process lives"))

    async def _watch_process(self) -> None:
        try:
            ended = await self._process.wait()
        except StokerError as error:
            self.end(Fault(FaultKind.LOST, f"was lost: {error}"))
            return
        with trio.move_on_after(_END_SECONDS):
            await self._stdout_ended.wait()
        self._exchanges.hear_death(ended)
        self._stop_if_over()
