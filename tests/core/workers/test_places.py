"""Places are never lost, never too many, and nobody waits who need not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stoker.workers.key import WorkerKey
from stoker.workers.places import Places, Reason, Ticket
from stoker.workers.plan import WorkerTerms

MAX_WORKERS = 3
MAX_MEMORY_BYTES = 150
MAX_WORKER_MEMORY_BYTES = 90

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
KEYS = [replace(A_KEY, tools=str(n)) for n in range(4)]
SINGLE = WorkerTerms(max_workers_per_key=2, max_workers_per_mnemonic=2)
KINDS = {
    KEYS[0]: ("A", SINGLE),
    KEYS[1]: ("A", replace(SINGLE, max_workers_per_key=1)),
    KEYS[2]: ("B", WorkerTerms(max_workers_per_key=2, max_requests=5, max_requests_in_flight=3)),
    KEYS[3]: ("C", WorkerTerms(max_workers_per_key=2, max_requests=2, high_priority=True)),
}


@dataclass(eq=False)
class Piece:
    """A worker without a process."""

    key: WorkerKey = KEYS[0]
    usable: bool = True
    leases: int = 1
    requests: int = 1
    memory_bytes: int = 0
    is_ending: bool = False
    is_hurried: bool = False
    retires: bool = False
    """Whether the model knows that it is given nothing more; the places may know of others."""

    @property
    def terms(self) -> WorkerTerms:
        return KINDS[self.key][1]

    @property
    def is_full(self) -> bool:
        return (
            self.leases >= self.terms.max_requests_in_flight
            or self.requests >= (self.terms.max_requests or 1000)
            or self.is_ending
        )


def ticket_for(key: WorkerKey, *, avoid_warm: bool = False) -> Ticket[Piece]:
    name, terms = KINDS[key]
    return Ticket(key, lambda: None, name=name, terms=terms, avoid_warm=avoid_warm)


@dataclass
class Model:
    """What there should be, kept as simply as can be."""

    waiting: list[Ticket[Piece]] = field(default_factory=list)  # in the order of their coming
    granted: list[Ticket[Piece]] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    @property
    def unentered(self) -> list[Ticket[Piece]]:
        return [ticket for ticket in self.granted if ticket.worker is None]

    def staying(self) -> list[WorkerKey]:
        """The keys of all that is not being ended."""
        keys = [piece.key for piece in self.pieces if not piece.is_ending]
        return keys + [ticket.key for ticket in self.unentered]


class PlacesMachine(RuleBasedStateMachine):
    """Clients that ask, give up, work and rest; workers that grow, die and end at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Places[Piece] = Places(MAX_WORKERS, MAX_MEMORY_BYTES, MAX_WORKER_MEMORY_BYTES)
        self.model = Model()

    def settle(self) -> None:
        model = self.model
        for piece, at_once in self.places.settle():
            assert not piece.is_ending or (at_once and not piece.is_hurried), "told once"
            assert not piece.leases, "nobody is interrupted"
            piece.is_ending, piece.is_hurried = True, at_once
        granted = [ticket for ticket in model.waiting if ticket.granted]
        for ticket in granted:
            self.check_turn(ticket)
        for ticket in granted:
            model.waiting.remove(ticket)
            model.granted.append(ticket)
            if ticket.worker is not None:
                self.check_lease(ticket.worker)

    def check_turn(self, ticket: Ticket[Piece]) -> None:
        """Of those who ask for the same, none who came earlier is left behind."""
        for other in self.model.waiting[: self.model.waiting.index(ticket)]:
            same = other.key == ticket.key and other.avoid_warm == ticket.avoid_warm
            assert other.granted or not same

    def check_lease(self, piece: Piece) -> None:
        assert piece.usable
        assert not piece.is_full
        assert not piece.retires
        piece.leases += 1
        piece.requests += 1

    # --- clients

    @rule(key=st.sampled_from(KEYS), avoid_warm=st.sampled_from([False, False, False, True]))
    def ask(self, key: WorkerKey, avoid_warm: bool) -> None:
        ticket = ticket_for(key, avoid_warm=avoid_warm)
        self.model.waiting.append(ticket)
        self.places.ask(ticket)
        self.settle()

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.model.waiting))
        self.model.waiting.remove(ticket)
        self.places.withdraw(ticket)
        self.settle()

    @precondition(lambda self: self.model.granted)
    @rule(data=st.data(), accept=st.sampled_from([True, True, False]))
    def answer_grant(self, data: st.DataObject, accept: bool) -> None:
        self.answer(data.draw(st.sampled_from(self.model.granted)), accept=accept)

    def answer(self, ticket: Ticket[Piece], *, accept: bool) -> None:
        self.model.granted.remove(ticket)
        piece = ticket.worker
        if piece is None and accept:
            piece = Piece(ticket.key)
            self.model.pieces.append(piece)
            self.places.enter(ticket, piece)
        elif not accept:
            self.places.decline(ticket)
            if piece is not None:
                piece.leases -= 1
                piece.requests -= 1
        self.settle()

    def leased(self) -> list[Piece]:
        """Those with a lease that somebody has accepted."""
        granted = Counter(ticket.worker for ticket in self.model.granted)
        return [piece for piece in self.model.pieces if piece.leases > granted[piece]]

    @precondition(lambda self: self.leased())
    @rule(data=st.data(), clean=st.sampled_from([True, True, True, False]))
    def give_back(self, data: st.DataObject, clean: bool) -> None:
        piece = data.draw(st.sampled_from(self.leased()))
        if not clean:
            piece.retires = True
            piece.usable = False
            self.places.retire(piece, "failed")
        self.release(piece)

    def release(self, piece: Piece) -> None:
        piece.leases -= 1
        self.places.release(piece)
        self.settle()

    # --- workers

    @precondition(lambda self: self.model.pieces)
    @rule(data=st.data(), notice=st.booleans())
    def die(self, data: st.DataObject, notice: bool) -> None:
        piece = data.draw(st.sampled_from(self.model.pieces))
        piece.usable = False
        if notice:
            self.places.leave(piece, "failed")
            piece.is_ending = piece.is_hurried = True
            self.settle()

    @precondition(lambda self: self.places.idle)
    @rule()
    def expire(self) -> None:
        piece = self.places.least_recently_used()
        assert piece is not None
        assert not piece.leases
        self.places.retire(piece, "expired")
        self.settle()
        assert piece.is_ending

    @precondition(lambda self: any(piece.is_ending for piece in self.model.pieces))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.free(data.draw(st.sampled_from([p for p in self.model.pieces if p.is_ending])))

    def free(self, piece: Piece) -> None:
        self.model.pieces.remove(piece)
        self.places.free(piece)
        self.places.leave(piece, "failed")  # what is left later changes nothing any more
        self.places.release(piece)
        self.places.retire(piece, "retired")
        self.settle()

    @rule(sizes=st.lists(st.sampled_from([10, 40, 60, 80, 100]), min_size=3, max_size=3))
    def measure(self, sizes: list[int]) -> None:
        for piece, size in zip(self.model.pieces, sizes, strict=False):
            piece.memory_bytes = size
            self.places.measured(piece, size)
        self.places.save_memory()
        self.settle()
        idle = [p for p in self.model.pieces if not p.leases and not p.is_ending]
        assert all(piece.memory_bytes <= MAX_WORKER_MEMORY_BYTES for piece in idle)
        staying = [p for p in self.model.pieces if not p.is_ending]
        if idle:
            busy = [p for p in staying if p not in idle and self.may_stay(p)]
            assert sum(p.memory_bytes for p in [*idle, *busy]) <= MAX_MEMORY_BYTES
        for piece in staying:
            piece.retires = piece.retires or not self.may_stay(piece)

    def may_stay(self, piece: Piece) -> bool:
        place = self.places.place_of(piece)
        return place is not None and place.retiring is None

    def of_key(self, key: WorkerKey) -> list[Piece]:
        return [piece for piece in self.model.pieces if piece.key == key]

    def has_room(self, piece: Piece) -> bool:
        return piece.usable and not piece.is_full and not piece.retires and self.may_stay(piece)

    # --- what holds always

    @invariant()
    def counts_agree(self) -> None:
        model = self.model
        assert self.places.held == len(model.unentered) + len(model.pieces) <= MAX_WORKERS
        assert self.places.waiting == len(model.waiting)
        idle = [p for p in model.pieces if not p.leases and not p.is_ending]
        assert self.places.idle == len(idle)

    @invariant()
    def limits_are_kept(self) -> None:
        keys = Counter(self.model.staying())
        names = Counter(KINDS[key][0] for key in self.model.staying())
        for key, (name, terms) in KINDS.items():
            assert keys[key] <= terms.max_workers_per_key
            assert names[name] <= (terms.max_workers_per_mnemonic or MAX_WORKERS)
        for piece in self.model.pieces:
            assert piece.leases <= piece.terms.max_requests_in_flight
            assert piece.requests <= (piece.terms.max_requests or 1000)

    @invariant()
    def nobody_waits_who_need_not(self) -> None:
        keys = Counter(self.model.staying())
        names = Counter(KINDS[key][0] for key in self.model.staying())
        used = sum(piece.memory_bytes for piece in self.model.pieces)
        may_start = self.places.held < MAX_WORKERS and (
            used <= MAX_MEMORY_BYTES or not self.places.held
        )
        for ticket in self.model.waiting:
            assert ticket.avoid_warm or not any(map(self.has_room, self.of_key(ticket.key)))
            name, terms = KINDS[ticket.key]
            most = terms.max_workers_per_mnemonic or MAX_WORKERS
            within = keys[ticket.key] < terms.max_workers_per_key and names[name] < most
            assert not (may_start and within)

    @invariant()
    def idle_workers_make_way(self) -> None:
        used = sum(piece.memory_bytes for piece in self.model.pieces)
        keys = Counter(self.model.staying())
        names = Counter(KINDS[key][0] for key in self.model.staying())
        blocked = 0
        for ticket in self.model.waiting:
            name, terms = KINDS[ticket.key]
            most = terms.max_workers_per_mnemonic or MAX_WORKERS
            within = keys[ticket.key] < terms.max_workers_per_key and names[name] < most
            blocked += within and used <= MAX_MEMORY_BYTES
        if blocked and self.places.idle:
            assert any(piece.is_hurried for piece in self.model.pieces)

    def teardown(self) -> None:
        """Once all do their work and nobody comes any more, everybody gets a worker."""
        for _ in range(1000):
            if ending := [piece for piece in self.model.pieces if piece.is_ending]:
                self.free(ending[0])
            elif self.model.granted:
                self.answer(self.model.granted[0], accept=True)
            elif leased := self.leased():
                self.release(leased[0])
            elif self.model.waiting:
                # Dead ones that nobody has noticed are all that may be in the way.
                dead = [piece for piece in self.model.pieces if not piece.usable]
                assert dead, "somebody waits for nothing"
                self.places.leave(dead[0], "failed")
                dead[0].is_ending = dead[0].is_hurried = True
                self.settle()
            else:
                break
            self.counts_agree()
            self.limits_are_kept()
        assert not self.model.waiting


TestPlaces = PlacesMachine.TestCase
TestPlaces.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)


class Board:
    """Places, with clients that take whatever they are given."""

    def __init__(self, max_workers: int, **limits: int) -> None:
        self.places: Places[Piece] = Places(max_workers, **limits)
        self.ended: list[tuple[Piece, bool]] = []

    def settle(self) -> None:
        self.ended += self.places.settle()

    def ask(
        self, key: WorkerKey, terms: WorkerTerms | None = None, name: str = ""
    ) -> Ticket[Piece]:
        ticket: Ticket[Piece] = Ticket(key, lambda: None, name=name, terms=terms)
        self.places.ask(ticket)
        self.settle()
        return ticket

    def work(self, key: WorkerKey, terms: WorkerTerms | None = None, name: str = "") -> Piece:
        ticket = self.ask(key, terms, name)
        assert ticket.granted
        if ticket.worker is not None:
            return ticket.worker
        piece = Piece(key)
        self.places.enter(ticket, piece)
        self.settle()
        return piece

    def rest(self, piece: Piece) -> None:
        self.places.release(piece)
        self.settle()

    def free(self, piece: Piece) -> Reason:
        reason = self.places.free(piece)
        self.settle()
        return reason


def test_the_largest_makes_way_but_those_of_high_priority_last() -> None:  # WORKERS 8.13
    board = Board(4)
    urgent = WorkerTerms(high_priority=True)
    pieces = [board.work(KEYS[n], urgent if n == 0 else None) for n in range(4)]
    for piece, size in zip(pieces, (900, 10, 500, 10), strict=True):
        board.rest(piece)
        board.places.measured(piece, size)
    for expected in (2, 1, 3, 0):
        ticket = board.ask(replace(A_KEY, tools=f"new {expected}"))
        assert board.ended.pop() == (pieces[expected], True)
        assert not board.ended
        assert board.free(pieces[expected]) == "evicted"
        assert ticket.granted


def test_the_least_recently_used_makes_way_where_nothing_is_measured() -> None:  # PWK-16
    board = Board(3)
    pieces = [board.work(KEYS[n]) for n in range(3)]
    for n in (1, 0, 2):
        board.rest(pieces[n])
    board.ask(KEYS[3])
    assert board.ended == [(pieces[1], True)]


def test_no_more_make_way_than_places_are_needed() -> None:
    one = WorkerTerms(max_workers_per_key=1)
    board = Board(2)
    for piece in [board.work(KEYS[n]) for n in range(2)]:
        board.rest(piece)
    for _ in range(2):
        board.ask(KEYS[2], one)
    assert len(board.ended) == 1


def test_high_priority_comes_first() -> None:
    board = Board(1)
    piece = board.work(KEYS[0])
    low = [board.ask(KEYS[1]), board.ask(KEYS[2])]
    high = board.ask(KEYS[3], WorkerTerms(high_priority=True))
    board.rest(piece)
    board.free(piece)
    assert high.granted
    assert not any(ticket.granted for ticket in low)


def test_a_worker_that_is_never_idle_keeps_nobody_out_for_good() -> None:  # WORKERS 8.7
    several = WorkerTerms(max_requests_in_flight=2)
    board = Board(1)
    piece = board.work(KEYS[0], several)
    blocked = board.ask(KEYS[1])
    # From now on the worker would have one request after the other, and never none.
    later = board.ask(KEYS[0], several)
    assert not later.granted
    board.rest(piece)
    assert board.ended[-1] == (piece, True), "somebody waits for its place"
    board.free(piece)
    assert blocked.granted


def test_a_multiplex_worker_is_filled_before_another_is_started() -> None:
    several = WorkerTerms(max_requests_in_flight=3)
    board = Board(4)
    pieces = [board.work(KEYS[0], several) for _ in range(4)]
    assert pieces[0] is pieces[1] is pieces[2] is not pieces[3]
    assert board.places.held == 2


def test_one_who_waits_for_a_mnemonic_sends_away_its_idle_worker() -> None:
    one = WorkerTerms(max_workers_per_mnemonic=1)
    board = Board(4)
    piece = board.work(KEYS[0], one, "Javac")
    blocked = board.ask(KEYS[1], one, "Javac")
    assert not blocked.granted
    assert board.ask(KEYS[2], one, "Scalac").granted, "another mnemonic is not held up"
    board.rest(piece)
    assert board.ended == [(piece, False)]
    # Whatever ends politely is in nobody's way as long as there are places.
    assert blocked.granted


def test_memory_is_saved_first_with_the_idle_then_with_the_busy() -> None:  # WORKERS 8.13
    board = Board(4, max_memory_bytes=100)
    pieces = [board.work(KEYS[n]) for n in range(4)]
    for piece, size in zip(pieces, (70, 60, 20, 40), strict=True):
        board.places.measured(piece, size)
    board.rest(pieces[2])
    board.rest(pieces[3])
    board.places.save_memory()
    board.settle()
    assert [piece for piece, _ in board.ended] == [pieces[3], pieces[2]]
    fresh = board.ask(KEYS[0])
    for piece in pieces[2:]:
        board.free(piece)
    assert not fresh.granted, "130 are still used"
    board.rest(pieces[1])
    assert board.places.is_idle(pieces[1]), "without the largest the rest is within the budget"
    board.rest(pieces[0])
    assert board.ended[-1] == (pieces[0], False)
    assert not fresh.granted
    board.free(pieces[0])
    assert fresh.granted


def test_above_the_budget_one_may_live() -> None:
    board = Board(4, max_memory_bytes=100)
    piece = board.work(KEYS[0])
    board.places.measured(piece, 1000)
    board.places.save_memory()
    waiting = [board.ask(KEYS[1]), board.ask(KEYS[2])]
    board.rest(piece)
    assert board.free(piece) == "evicted"
    assert all(ticket.granted for ticket in waiting)


def test_a_worker_that_has_served_its_requests_is_replaced() -> None:  # PWK-16
    twice = WorkerTerms(max_workers_per_key=1, max_requests=2, max_requests_in_flight=2)
    board = Board(4)
    piece = board.work(KEYS[0], twice)
    assert board.work(KEYS[0], twice) is piece
    third = board.ask(KEYS[0], twice)
    board.rest(piece)
    assert board.places.waiting == 1
    assert not board.ended
    board.rest(piece)
    assert board.ended == [(piece, False)]
    assert third.place is not None
    assert third.worker is None
    assert board.free(piece) == "retired"
