"""All requests to one worker process, and its answers. Pure: bytes in, bytes out, no I/O, no clock.

A request is *queued* until its frame is taken for writing, *open* until its answer is heard, and
*given up* while it is open and nobody waits for it any more.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stoker.errors import MalformedResponse
from stoker.protos.worker_protocol_pb2 import WorkRequest, WorkResponse
from stoker.spi import Exit, ResponseDecoder, WorkerProtocol
from stoker.workers.failure import EXCERPT_BYTES, Fault, FaultKind, describe_exit

_HINT = "stdout belongs to the protocol; let the tool print to stderr"


@dataclass(slots=True, eq=False)
class Exchange:
    """One request, and what has become of it."""

    request_id: int
    on_over: Callable[[], object]
    """Called once, when nothing more is to be waited for."""
    response: WorkResponse | None = None
    fault: Fault | None = None
    """Why there is no response."""
    answered: bool = False
    """Whether anything came in answer to it."""
    number: int = 0
    """Which of all answers of the process the response is, from 1."""
    given_up: bool = False
    cancel_sent: bool = False
    """Whether a cancel request for it was taken for writing."""

    def finish(self) -> None:
        """The response, if there is one, counts."""
        self.on_over()

    def fail(self, fault: Fault) -> None:
        """There will be no response that counts."""
        self.response, self.fault = None, fault
        self.on_over()


class _Frame(NamedTuple):
    exchange: Exchange
    data: bytes
    is_cancel: bool


class _Breach(Exception):
    """A response that is none of those that are owed."""

    def __init__(self, kind: FaultKind, reason: str) -> None:
        self.kind = kind
        super().__init__(reason)


class Exchanges:
    """Matches answers to requests, and finds everything that is wrong with them.

    A multiplex worker is asked several things at a time, by ids that are never used again. Any
    other is asked one thing at a time, by id 0 (PWK-06).
    """

    def __init__(
        self, protocol: WorkerProtocol, limit_bytes: int, *, multiplex: bool, cancellable: bool
    ) -> None:
        self._protocol = protocol
        self._limit_bytes = limit_bytes
        self._multiplex = multiplex
        self._cancellable = cancellable
        self._ids = itertools.count(1)
        self._asked = 0  # the highest id that was taken for writing
        self._frames: deque[_Frame] = deque()
        self._open: dict[int, Exchange] = {}
        # Ids whose cancel request may have been taken for another request, and be answered too.
        self._surplus: set[int] = set()
        # From one silence to the next: in a silence there can be no half of an answer.
        self._decoder: ResponseDecoder | None = None
        self._declined = False
        self._heeds_cancel = False
        self.fault: Fault | None = None
        """Set once, when no answer can be trusted any more."""
        self.served = 0
        """How many requests were answered."""

    @property
    def recovering(self) -> bool:
        """Whether a request is given up whose answer, or answer to being cancelled, will come."""
        return (
            self.fault is None
            and self._cancellable
            and any(exchange.given_up for exchange in self._open.values())
        )

    @property
    def usable(self) -> bool:
        """Whether another request may be asked, as soon as the worker has room for it."""
        return self.refusal is None

    @property
    def refusal(self) -> Fault | None:
        """Why no other request may be asked."""
        if self.fault is not None:
            return self.fault
        if self._declined:
            return Fault(FaultKind.ABANDONED, "takes no more requests, as one was abandoned")
        if not self._multiplex and self.recovering:
            return Fault(FaultKind.ABANDONED, "has yet to answer a request that was cancelled")
        return None

    def ask(
        self, request: WorkRequest, on_over: Callable[[], object], inputs: Sequence[bytes] = ()
    ) -> Exchange:
        """Queue `request`, whose id is set here, with more `inputs`. Only while `usable`."""
        assert self.usable, "whoever asks has looked at that"
        assert self._multiplex or not (self._open or self._frames), "it is asked one thing a time"
        request.request_id = next(self._ids) if self._multiplex else 0
        exchange = Exchange(request.request_id, on_over)
        frame = _Frame(exchange, self._protocol.encode_with(request, inputs), is_cancel=False)
        self._frames.append(frame)
        return exchange

    def next_frame(self) -> bytes | None:
        """What is to be written next, whole; None if there is nothing. It counts as written."""
        if not self._frames:
            return None
        frame = self._frames.popleft()
        if frame.is_cancel:
            frame.exchange.cancel_sent = True
        else:
            self._open[frame.exchange.request_id] = frame.exchange
            self._asked = frame.exchange.request_id
        return frame.data

    def give_up(self, exchange: Exchange) -> bool:
        """Nobody waits for `exchange` any more. Whether the worker is told so, and is to answer.

        It is told by a cancel request, if it heeds those. If it does not, it takes no more
        requests, and is of no more use as soon as it has none but those that were given up. A
        request that is still queued is never sent.
        """
        exchange.given_up = True
        if self._drop_frames(exchange) or self._open.get(exchange.request_id) is not exchange:
            return False
        if self._cancellable:
            cancel = WorkRequest(request_id=exchange.request_id, cancel=True)
            self._frames.append(_Frame(exchange, self._protocol.encode(cancel), is_cancel=True))
        elif self._is_needed():
            self._declined = True
        else:
            self.fail(Fault(FaultKind.ABANDONED, "was abandoned in mid-request"))
        return self._cancellable

    def _is_needed(self) -> bool:
        """Whether anybody waits for it."""
        exchanges = [*self._open.values(), *(frame.exchange for frame in self._frames)]
        return not all(exchange.given_up for exchange in exchanges)

    def hear(self, data: bytes) -> None:
        """Take what the worker wrote to its stdout: all of it or, where it is wrong, nothing.

        An answer that comes in one breath with garbage is not to be trusted. Whether an exchange
        is over, or all are, tells what has come of it.
        """
        if self.fault is not None:
            return
        matched: list[Exchange] = []
        try:
            for response in self._decode(data):
                self._match(response, matched)
            if not self._open and not self._surplus:
                self._fall_silent()
        except _Breach as error:
            fault = _quoting(error.kind, f"broke its protocol: {error}", data)
            self._distrust(fault, matched)
        except MalformedResponse as error:
            fault = Fault(
                FaultKind.GARBAGE,
                f"broke its protocol: {error}; {_HINT}",
                error.excerpt[:EXCERPT_BYTES],
            )
            self._distrust(fault, matched)
        else:
            self._accept(matched)

    def hear_death(self, ended: Exit) -> None:
        """The process has ended, and all that it wrote was heard."""
        how = describe_exit(ended)
        half = self._half_answer()
        if half is not None:
            reason = f"{how} within its answer, which begins with {half[:200]!r}"
            self._distrust(Fault(FaultKind.DIED, reason, half, ended), [])
        elif not self._open and not self._frames:
            self.fail(Fault(FaultKind.DIED, f"{how} while idle", exit=ended))
        elif len(self._open) > 1:
            reason = f"{how} before it answered {len(self._open)} requests"
            self.fail(Fault(FaultKind.DIED, reason, exit=ended))
        else:
            self.fail(Fault(FaultKind.DIED, f"{how} before it answered", exit=ended))

    def fail(self, fault: Fault) -> None:
        """No answer comes any more. The first fault is the one that counts."""
        if self.fault is not None:
            return
        self.fault = fault
        queued = [frame.exchange for frame in self._frames if not frame.is_cancel]
        exchanges = [*self._open.values(), *queued]
        self._open.clear()
        self._frames.clear()
        for exchange in exchanges:
            exchange.fail(fault)

    def _decode(self, data: bytes) -> list[WorkResponse]:
        if self._decoder is None:
            self._decoder = self._protocol.decoder(self._limit_bytes)
        return self._decoder.feed(data)

    def _match(self, response: WorkResponse, matched: list[Exchange]) -> None:
        exchange = self._open.pop(response.request_id, None)
        if exchange is None:
            self._match_surplus(response, matched)
            return
        matched.append(exchange)
        exchange.response, exchange.answered = response, True
        if response.was_cancelled and not exchange.cancel_sent:
            raise _Breach(
                FaultKind.NOT_CANCELLED,
                f"it answered that request {response.request_id} was cancelled, which nobody had "
                "asked for",
            )
        if response.was_cancelled:
            self._heeds_cancel = True
            self._surplus.clear()
        elif exchange.cancel_sent and not self._heeds_cancel:
            self._surplus.add(response.request_id)

    def _match_surplus(self, response: WorkResponse, matched: list[Exchange]) -> None:
        """An answer to no open request.

        Bazel's own library for JSON workers takes a cancel request for an empty one and answers
        it too. Among unique ids that harms nobody, and others' requests are not to fail by it.
        """
        number = response.request_id
        if self._multiplex and number in self._surplus:
            self._surplus.discard(number)
            return
        if sum(exchange.request_id == number for exchange in matched):
            raise _Breach(FaultKind.REPEATED_ID, "it answered one request 2 times")
        if self._multiplex and 0 < number <= self._asked:
            raise _Breach(FaultKind.REPEATED_ID, f"it answered request {number} again")
        if not self._open:
            raise _Breach(FaultKind.UNASKED, "it answered what nobody had asked")
        raise _Breach(FaultKind.UNKNOWN_ID, self._describe_unknown(number))

    def _describe_unknown(self, number: int) -> str:
        asked = ", ".join(map(str, itertools.islice(self._open, 10)))
        words = f"it answered request {number} where {asked} was asked"
        if self._multiplex and number == 0:
            words += "; a tool that knows no request ids is no multiplex worker"
        return words

    def _fall_silent(self) -> None:
        """Only space may come now, such as a newline that follows the last answer."""
        half = self._half_answer()
        self._decoder = None
        if half is not None:
            raise _Breach(FaultKind.UNASKED, f"it wrote what nobody had asked for; {_HINT}")

    def _half_answer(self) -> bytes | None:
        """How the unfinished answer begins, if there is one. The decoder is of no more use."""
        if self._decoder is None:
            return None
        try:
            self._decoder.end()
        except MalformedResponse as error:
            return error.excerpt[:EXCERPT_BYTES]
        return None

    def _accept(self, matched: list[Exchange]) -> None:
        for exchange in matched:
            self.served += 1
            exchange.number = self.served
            if exchange.given_up:
                self._drop_frames(exchange)
            exchange.finish()
        if self._surplus and not self._multiplex:
            self._fail_ambiguous()

    def _fail_ambiguous(self) -> None:
        """The answer may have crossed with the cancel request, or that was not understood and
        will be answered too: as all ids are 0, by what looks like the answer to the next request.
        Only a worker that has said before that a request was cancelled is known to know better.
        """
        reason = (
            "answered a request that was cancelled as if it were not, and may yet answer the "
            "cancel request as another"
        )
        self.fail(Fault(FaultKind.AMBIGUOUS, reason))

    def _distrust(self, fault: Fault, matched: list[Exchange]) -> None:
        """All requests fail, those `matched` to what was heard last among them."""
        if not matched and len(self._open) == 1:
            for exchange in self._open.values():
                exchange.answered = True
        self.fail(fault)
        for exchange in matched:
            exchange.fail(fault)

    def _drop_frames(self, exchange: Exchange) -> bool:
        """Whether there was something of `exchange` that was not yet taken for writing."""
        kept = [frame for frame in self._frames if frame.exchange is not exchange]
        dropped = len(kept) < len(self._frames)
        if dropped:
            self._frames = deque(kept)
        return dropped


def _quoting(kind: FaultKind, reason: str, data: bytes) -> Fault:
    return Fault(kind, f"{reason}: {data[:200]!r}", data[:EXCERPT_BYTES])
