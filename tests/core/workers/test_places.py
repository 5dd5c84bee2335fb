"""Places are never lost, never too many, and nobody waits who need not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from stoker.workers.key import WorkerKey
from stoker.workers.places import Places, Ticket

MAX_WORKERS = 4
MAX_WORKERS_PER_KEY = 2

A_KEY = WorkerKey(
    namespace="",
    silo="",
    platform=(),
    argv=(),
    environment=(),
    working_directory="",
    protocol="",
    tools="",
)
KEYS = [replace(A_KEY, tools=str(n)) for n in range(3)]


@dataclass(eq=False)
class Piece:
    """A worker without a process."""

    key: WorkerKey
    usable: bool = True


class PlacesMachine(RuleBasedStateMachine):
    """Clients that ask, give up, work and rest; workers that die and end at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Places[Piece] = Places(MAX_WORKERS, MAX_WORKERS_PER_KEY)
        self.waiting: list[Ticket[Piece]] = []
        self.granted: list[Ticket[Piece]] = []
        self.working: list[Piece] = []
        self.resting: list[Piece] = []
        self.ending: list[Piece] = []

    def settle(self) -> None:
        for piece in self.places.settle():
            self.resting.remove(piece)
            self.ending.append(piece)
        for ticket in [ticket for ticket in self.waiting if ticket.granted]:
            self.waiting.remove(ticket)
            self.granted.append(ticket)
            if ticket.worker is not None:
                self.resting.remove(ticket.worker)

    @rule(key=st.sampled_from(KEYS))
    def ask(self, key: WorkerKey) -> None:
        ticket: Ticket[Piece] = Ticket(key, lambda: None)
        self.waiting.append(ticket)
        self.places.ask(ticket)
        self.settle()

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if self.waiting:
            ticket = data.draw(st.sampled_from(self.waiting))
            self.waiting.remove(ticket)
            self.places.withdraw(ticket)
            self.settle()

    @rule(data=st.data(), accept=st.booleans())
    def answer_grant(self, data: st.DataObject, accept: bool) -> None:
        if not self.granted:
            return
        ticket = data.draw(st.sampled_from(self.granted))
        self.granted.remove(ticket)
        if ticket.worker is None and accept:
            piece = Piece(ticket.key)
            self.places.enter(piece)
            self.working.append(piece)
        elif ticket.worker is None:
            self.places.decline(ticket)
        elif accept:
            self.working.append(ticket.worker)
        else:
            self.resting.append(ticket.worker)
            self.places.rest(ticket.worker)
        self.settle()

    @rule(data=st.data(), clean=st.booleans())
    def give_back(self, data: st.DataObject, clean: bool) -> None:
        if not self.working:
            return
        piece = data.draw(st.sampled_from(self.working))
        self.working.remove(piece)
        if clean:
            self.resting.append(piece)
            self.places.rest(piece)
        else:
            piece.usable = False
            self.ending.append(piece)
            self.places.leave(piece)
        self.settle()

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        if self.resting:
            piece = data.draw(st.sampled_from(self.resting))
            piece.usable = False
            self.resting.remove(piece)
            self.ending.append(piece)
            self.places.leave(piece)
            self.settle()

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.ending:
            piece = data.draw(st.sampled_from(self.ending))
            self.ending.remove(piece)
            self.places.free(piece)
            self.places.leave(piece)  # a lease that is left later changes nothing any more
            self.places.rest(piece)
            self.settle()

    @invariant()
    def counts_agree(self) -> None:
        fresh = [ticket for ticket in self.granted if ticket.worker is None]
        reused = [ticket for ticket in self.granted if ticket.worker is not None]
        held = len(fresh + reused) + len(self.working + self.resting + self.ending)
        assert self.places.held == held <= MAX_WORKERS
        assert self.places.idle == len(self.resting)
        assert self.places.waiting == len(self.waiting)

    @invariant()
    def nobody_waits_who_need_not(self) -> None:
        resting = {piece.key for piece in self.resting}
        assert not resting & {ticket.key for ticket in self.waiting}
        if self.places.held < MAX_WORKERS:
            held = [piece.key for piece in self.working + self.ending]
            held += [ticket.key for ticket in self.granted]
            for ticket in self.waiting:
                assert held.count(ticket.key) == MAX_WORKERS_PER_KEY

    @invariant()
    def idle_workers_make_way(self) -> None:
        keys = [piece.key for piece in self.working + self.ending]
        keys += [ticket.key for ticket in self.granted]
        blocked = [t for t in self.waiting if keys.count(t.key) < MAX_WORKERS_PER_KEY]
        if blocked and self.resting:
            assert self.ending


TestPlaces = PlacesMachine.TestCase


def test_a_worker_that_is_gone_makes_no_way_for_others() -> None:
    places: Places[Piece] = Places(1, 1)
    gone, idle = Piece(KEYS[0]), Piece(KEYS[1])
    for piece in (gone, idle):
        places.ask(Ticket(piece.key, lambda: None))
        places.settle()
        places.enter(piece)
        if piece is gone:
            places.free(piece)
            places.leave(piece)
    places.rest(idle)
    places.ask(Ticket(KEYS[2], lambda: None))
    assert places.settle() == [idle]
