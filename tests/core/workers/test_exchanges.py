"""Answers are matched to requests as a naive model does, however bytes are cut and ordered."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stoker.protos.worker_protocol_pb2 import WorkRequest, WorkResponse
from stoker.spi import Exit, WorkerProtocol
from stoker.workers.exchanges import Exchange, Exchanges
from stoker.workers.failure import Fault, FaultKind
from stoker_worker_json import JsonProtocol
from stoker_worker_proto import ProtoProtocol

PROTOCOLS: dict[str, WorkerProtocol] = {"proto": ProtoProtocol(), "json": JsonProtocol()}
PROTO = PROTOCOLS["proto"]
LIMIT_BYTES = 1000


def frame(number: int = 0, output: str = "", *, cancelled: bool = False) -> bytes:
    """A response as a worker of protocol ``proto`` writes it; short enough for one byte."""
    response = WorkResponse(request_id=number, output=output, was_cancelled=cancelled)
    message = response.SerializeToString()
    return bytes([len(message)]) + message


def json_frame(number: int = 0, output: str = "", *, cancelled: bool = False) -> bytes:
    """The same in protocol ``json``, with a newline behind."""
    flag = str(cancelled).lower()
    text = f'{{"requestId":{number},"output":"{output}","wasCancelled":{flag}}}\n'
    return text.encode()


@dataclass(eq=False)
class Asked:
    """One who asks, in the model."""

    exchange: Exchange
    over: list[bool]
    sent: bool = False
    given_up: bool = False
    cancel_sent: bool = False
    cancelled: bool = False
    answer: str | None = None
    answered: bool = False
    written: int = 0


@dataclass
class Table:
    """A conversation of `Exchanges` with a worker that the test plays."""

    multiplex: bool = True
    cancellable: bool = True
    protocol: WorkerProtocol = PROTO
    exchanges: Exchanges = field(init=False)

    def __post_init__(self) -> None:
        self.exchanges = Exchanges(
            self.protocol, LIMIT_BYTES, multiplex=self.multiplex, cancellable=self.cancellable
        )

    def ask(self, count: int = 1, *, send: bool = True) -> list[Exchange]:
        """Requests that were asked, and written unless said otherwise."""
        asked = [self.exchanges.ask(WorkRequest(), lambda: None) for _ in range(count)]
        if send:
            assert all(self.exchanges.next_frame() is not None for _ in asked)
        return asked

    def fault(self) -> Fault:
        """What is wrong."""
        assert self.exchanges.fault is not None
        assert not self.exchanges.usable
        return self.exchanges.fault


class ManyRequests(RuleBasedStateMachine):
    """Well-behaved workers, multiplex or not, told of cancellations or not, in both protocols.

    The model: a list of all who have asked, each with what it knows, and the worker's bytes that
    are not yet heard.
    """

    @initialize(
        multiplex=st.booleans(),
        cancellable=st.booleans(),
        protocol=st.sampled_from(["proto", "json"]),
    )
    def begin(self, multiplex: bool, cancellable: bool, protocol: str) -> None:
        self.multiplex, self.cancellable = multiplex, cancellable
        self.write = frame if protocol == "proto" else json_frame
        self.exchanges = Table(multiplex, cancellable, PROTOCOLS[protocol]).exchanges
        self.asked: list[Asked] = []
        self.queue: deque[tuple[Asked, bool]] = deque()
        self.unheard = b""
        self.heard_bytes = 0
        self.written_bytes = 0
        self.heeds = False
        self.declined = False
        self.over = False

    def open(self) -> list[Asked]:
        """Those that the worker has and has not answered, as far as it knows."""
        return [asked for asked in self.asked if asked.sent and not asked.answered]

    def pending(self) -> list[Asked]:
        """Those whose answer has not been heard in whole."""
        return [a for a in self.asked if a.sent and not (a.answered and self.is_heard(a))]

    def is_heard(self, asked: Asked) -> bool:
        return asked.answered and asked.written <= self.heard_bytes

    def is_free(self) -> bool:
        waiting = [a for a in self.asked if not a.sent and not a.given_up]
        return self.multiplex or not (self.pending() or waiting)

    @precondition(lambda self: not self.over and not self.declined and self.is_free())
    @rule()
    def ask(self) -> None:
        request = WorkRequest(arguments=["x"])
        over: list[bool] = []
        exchange = self.exchanges.ask(request, functools.partial(over.append, True))
        assert request.request_id == (len(self.asked) + 1 if self.multiplex else 0)
        asked = Asked(exchange, over)
        self.asked.append(asked)
        self.queue.append((asked, False))

    @rule()
    def send(self) -> None:
        data = self.exchanges.next_frame()
        assert (data is not None) == bool(self.queue)
        if data is not None:
            asked, is_cancel = self.queue.popleft()
            asked.sent = True
            asked.cancel_sent = is_cancel

    @precondition(lambda self: self.open() and not self.over)
    @rule(data=st.data(), output=st.text("ab", max_size=20))
    def answer(self, data: st.DataObject, output: str) -> None:
        asked = data.draw(st.sampled_from(self.open()))
        # A worker of one request at a time that says nothing of the cancellation is another test.
        must = asked.cancel_sent and not self.multiplex
        cancelled = asked.cancel_sent and (must or data.draw(st.booleans()))
        new = self.write(asked.exchange.request_id, output, cancelled=cancelled)
        self.unheard += new
        self.written_bytes += len(new)
        # Without the newline, which belongs to no answer.
        asked.written = self.written_bytes - new.endswith(b"\n")
        asked.answered, asked.answer, asked.cancelled = True, output, cancelled

    @precondition(lambda self: self.unheard)
    @rule(share=st.floats(0, 1))
    def hear(self, share: float) -> None:
        cut = max(1, round(share * len(self.unheard)))
        chunk, self.unheard = self.unheard[:cut], self.unheard[cut:]
        self.exchanges.hear(chunk)
        if self.over:
            return
        was_heard = {id(asked) for asked in self.asked if self.is_heard(asked)}
        self.heard_bytes += cut
        new = [a for a in self.asked if self.is_heard(a) and id(a) not in was_heard]
        for asked in new:
            self.queue = deque(entry for entry in self.queue if entry[0] is not asked)
            self.heeds |= asked.cancelled
            if asked.cancel_sent and not self.heeds and not self.multiplex:
                self.over = True
                assert self.exchanges.fault is not None
                assert self.exchanges.fault.kind is FaultKind.AMBIGUOUS

    @precondition(lambda self: not self.over)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        waiting = [a for a in self.asked if not a.given_up and not self.is_heard(a)]
        if not waiting:
            return
        asked = data.draw(st.sampled_from(waiting))
        asked.given_up = True
        told = self.exchanges.give_up(asked.exchange)
        assert told == (asked.sent and self.cancellable)
        if not asked.sent:
            self.queue.remove((asked, False))
        elif self.cancellable:
            self.queue.append((asked, True))
        elif len(waiting) > 1:
            self.declined = True
        else:
            self.over = True
            assert self.exchanges.fault is not None
            assert self.exchanges.fault.kind is FaultKind.ABANDONED
            self.queue.clear()

    @precondition(lambda self: not self.over)
    @rule()
    def die(self) -> None:
        waiting = [a for a in self.asked if not a.given_up and not self.is_heard(a)]
        self.exchanges.hear_death(Exit(137, 9))
        self.over = True
        assert all(asked.over and asked.exchange.fault for asked in waiting)
        self.queue.clear()

    @invariant()
    def every_answer_is_with_its_request(self) -> None:
        if self.over:
            return
        assert self.exchanges.fault is None
        for asked in self.asked:
            heard = self.is_heard(asked)
            assert asked.over == ([True] if heard else [])
            response = asked.exchange.response
            assert (response is not None) == heard
            assert response is None or response.output == asked.answer

    @invariant()
    def it_says_what_it_can_take(self) -> None:
        lost = any(asked.given_up for asked in self.pending())
        assert self.exchanges.recovering == (lost and self.cancellable and not self.over)
        blocked = self.over or self.declined or (lost and not self.multiplex)
        assert self.exchanges.usable == (not blocked)
        if not self.over:
            assert self.exchanges.served == sum(map(self.is_heard, self.asked))


TestManyRequests = ManyRequests.TestCase
TestManyRequests.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize(
    ("heard", "kind", "reason", "answered"),
    [
        # PWK-06
        (frame(9), FaultKind.UNKNOWN_ID, "answered request 9 where 1, 2 was asked", (False, False)),
        (frame(0), FaultKind.UNKNOWN_ID, "knows no request ids", (False, False)),
        (frame(2) + frame(2), FaultKind.REPEATED_ID, "answered one request 2 times", (False, True)),
        (
            frame(1, cancelled=True),
            FaultKind.NOT_CANCELLED,
            "request 1 was cancelled, which nobody had asked for",
            (True, False),
        ),
        # PWK-09, WORKERS 8.11
        (b"Compiling\n" * 20, FaultKind.GARBAGE, "let the tool print to stderr", (False, False)),
        (frame(1) + b"\xff" * 20, FaultKind.GARBAGE, "broke its protocol", (False, False)),
    ],
)
def test_what_is_wrong_fails_all_in_flight(
    heard: bytes, kind: FaultKind, reason: str, answered: tuple[bool, bool]
) -> None:
    # WORKERS 8.7
    table = Table()
    asked = table.ask(2)
    (queued,) = table.ask(send=False)
    table.exchanges.hear(heard)
    fault = table.fault()
    assert fault.kind is kind
    assert reason in fault.reason
    assert fault.excerpt
    assert fault.excerpt in heard
    assert [exchange.fault for exchange in (*asked, queued)] == [fault] * 3
    assert tuple(exchange.answered for exchange in asked) == answered
    assert not queued.answered


@pytest.mark.parametrize("end", ["garbage", "death"])
def test_bytes_are_laid_to_a_request_that_is_alone(end: str) -> None:
    table = Table()
    (asked,) = table.ask()
    table.exchanges.hear(frame(1, "x" * 50)[:20])
    if end == "garbage":
        table.exchanges.hear(b"\xff" * 200)
    else:
        table.exchanges.hear_death(Exit(1))
        assert table.fault().reason.startswith("exited with status 1 within its answer")
        assert table.fault().excerpt == frame(1, "x" * 50)[:20]
    assert asked.answered


def test_an_answer_to_a_request_that_is_not_yet_sent_is_refused() -> None:
    table = Table(multiplex=False)
    (queued,) = table.ask(send=False)
    table.exchanges.hear(frame())
    assert table.fault().kind is FaultKind.UNASKED
    assert (queued.response, queued.answered) == (None, False)


def test_an_answer_that_is_too_large_is_refused_before_it_is_there() -> None:
    table = Table()
    table.ask()
    table.exchanges.hear(b"\xe9\x07")
    assert "1001 bytes or more is announced where 1000 are allowed" in table.fault().reason


@pytest.mark.parametrize("multiplex", [True, False])
def test_a_request_answered_again_later_is_refused(multiplex: bool) -> None:
    table = Table(multiplex=multiplex)
    (asked,) = table.ask()
    table.exchanges.hear(frame(asked.request_id))
    table.exchanges.hear(frame(asked.request_id))
    assert table.fault().kind is (FaultKind.REPEATED_ID if multiplex else FaultKind.UNASKED)
    assert asked.fault is None


def test_what_comes_in_a_silence_is_refused_at_its_first_byte() -> None:
    for multiplex in (True, False):
        table = Table(multiplex=multiplex)
        (asked,) = table.ask()
        table.exchanges.hear(frame(asked.request_id))
        table.exchanges.hear(b"W")
        assert table.fault().kind is FaultKind.UNASKED
        assert "let the tool print to stderr" in table.fault().reason


def test_a_cancel_request_says_nothing_but_the_id_and_that() -> None:
    table = Table()
    first, second = table.ask(2)
    assert table.exchanges.give_up(second)
    assert table.exchanges.next_frame() == b"\x04\x18\x02\x20\x01"
    table.exchanges.hear(frame(2, cancelled=True) + frame(1, "right"))
    assert first.response is not None
    assert first.response.output == "right"
    assert table.exchanges.usable


def test_a_cancel_request_that_crosses_with_the_answer_is_not_sent_if_it_can_be_helped() -> None:
    table = Table(multiplex=False)
    (asked,) = table.ask()
    table.exchanges.give_up(asked)
    table.exchanges.hear(frame())
    assert table.exchanges.next_frame() is None
    assert table.exchanges.usable


# The Java library for JSON workers answers a cancel request as if it were another request.
def test_a_second_answer_to_a_cancelled_request_harms_no_other() -> None:
    table = Table()
    first, second = table.ask(2)
    table.exchanges.give_up(first)
    table.exchanges.next_frame()
    table.exchanges.hear(frame(1, "empty") + frame(1, "late")[:3])
    table.exchanges.hear(frame(1, "late")[3:])
    table.exchanges.hear(frame(2))
    assert table.exchanges.usable
    assert second.response is not None
    table.exchanges.hear(frame(1))  # a third one
    assert table.fault().kind is FaultKind.REPEATED_ID


def test_a_second_answer_to_a_cancelled_request_may_come_in_pieces() -> None:
    table = Table()
    (asked,) = table.ask()
    table.exchanges.give_up(asked)
    table.exchanges.next_frame()
    table.exchanges.hear(frame(1, "empty") + frame(1, "late")[:3])
    table.exchanges.hear(frame(1, "late")[3:])
    assert table.exchanges.usable


def test_a_second_answer_where_the_first_said_cancelled_is_refused() -> None:
    table = Table()
    (asked,) = table.ask()
    table.exchanges.give_up(asked)
    table.exchanges.next_frame()
    table.exchanges.hear(frame(1, cancelled=True))
    assert table.exchanges.usable
    table.exchanges.hear(frame(1))
    assert table.fault().kind is FaultKind.REPEATED_ID


def test_without_ids_a_cancelled_request_may_not_be_answered_as_any_other() -> None:
    """What might be the second answer would be taken for that to the next request."""
    table = Table(multiplex=False)
    (asked,) = table.ask()
    table.exchanges.give_up(asked)
    table.exchanges.next_frame()
    table.exchanges.hear(frame(0, "whole"))
    assert table.fault().kind is FaultKind.AMBIGUOUS


def test_without_ids_it_may_once_the_worker_is_known_to_heed_cancel_requests() -> None:
    table = Table(multiplex=False)
    for cancelled in (True, False):
        (asked,) = table.ask()
        table.exchanges.give_up(asked)
        table.exchanges.next_frame()
        assert table.exchanges.recovering
        assert not table.exchanges.usable
        table.exchanges.hear(frame(cancelled=cancelled))
        assert table.exchanges.usable
    table.exchanges.hear(frame())
    assert table.fault().kind is FaultKind.UNASKED


def test_a_worker_that_cannot_be_told_takes_no_more_and_finishes_what_it_has() -> None:
    table = Table(cancellable=False)
    first, second = table.ask(2)
    assert not table.exchanges.give_up(first)
    assert table.exchanges.next_frame() is None
    assert not table.exchanges.usable
    assert not table.exchanges.recovering
    table.exchanges.hear(frame(1) + frame(2, "right"))
    assert second.response is not None
    assert second.response.output == "right"
    assert table.exchanges.fault is None
    assert not table.exchanges.usable


def test_answers_that_come_together_are_counted_each_by_itself() -> None:
    table = Table()
    first, second, third = table.ask(3)
    table.exchanges.hear(frame(2) + frame(1))
    table.exchanges.hear(frame(3))
    assert [first.number, second.number, third.number] == [2, 1, 3]
