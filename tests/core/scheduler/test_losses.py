"""Actions whose executors are lost, and which of them are kept out. # SCH-10"""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest

from stoker.action import Outcome
from stoker.errors import Quarantined, Unavailable
from stoker.scheduler.in_hand import InHand, open_in_hand
from stoker.scheduler.losses import Bounds, Loss, Losses, key_of
from stoker.scheduler.operation import Operation
from stoker.scheduler.suspects import Suspects, Waiting

from .actions import make_action

BOUNDS = Bounds(max_attempts=3, max_server_losses=5, quarantine_seconds=100)
SECOND = 10**9


def loss(*, with_server: bool, seconds_ago: int = 0) -> Loss:
    lost = time.time_ns() - seconds_ago * SECOND
    return Loss(lost - 2 * SECOND, lost, "one", with_server)


def lose(losses: Losses, name: str, times: int, *, with_server: bool) -> None:
    for _ in range(times):
        losses.note(key_of(make_action(name)), loss(with_server=with_server))


@pytest.mark.parametrize(("with_server", "bound"), [(False, 3), (True, 5)])
def test_an_action_is_kept_out_once_it_was_lost_too_often(with_server: bool, bound: int) -> None:
    losses = Losses(BOUNDS)
    lose(losses, "a", bound - 1, with_server=with_server)
    losses.check(make_action("a"))
    assert losses.verdict(make_action("a")) is None
    lose(losses, "a", 1, with_server=with_server)
    with pytest.raises(Quarantined) as caught:
        losses.check(make_action("a"))
    assert len(caught.value.history) == bound
    how = "the server was killed" if with_server else "lost after 2.0 s"
    assert all(f"on one, {how}" in told for told in caught.value.history)
    assert str(make_action("a").digest) in str(caught.value)
    assert isinstance(losses.verdict(make_action("a")), Unavailable)
    losses.check(make_action("b"))


def test_losses_of_both_sorts_do_not_add_up() -> None:
    losses = Losses(BOUNDS)
    lose(losses, "a", 2, with_server=False)
    lose(losses, "a", 4, with_server=True)
    losses.check(make_action("a"))


def test_what_ended_by_itself_is_innocent() -> None:
    losses = Losses(BOUNDS)
    lose(losses, "a", 2, with_server=False)
    assert losses.clear(key_of(make_action("a")))
    assert not losses.clear(key_of(make_action("a")))
    lose(losses, "a", 2, with_server=False)
    losses.check(make_action("a"))


def test_a_quarantine_ends() -> None:
    losses = Losses(BOUNDS)
    for seconds in (300, 200, 101):
        losses.note(key_of(make_action("a")), loss(with_server=False, seconds_ago=seconds))
    losses.check(make_action("a"))
    assert not losses
    for seconds in (300, 200, 99):
        losses.note(key_of(make_action("a")), loss(with_server=False, seconds_ago=seconds))
    with pytest.raises(Quarantined):
        losses.check(make_action("a"))


def waiting(name: str) -> Waiting:
    operation = Operation(
        name=name, number=0, namespace="team", action_digest=make_action(name).digest
    )
    return Waiting(operation, make_action(name), 0, ())


def test_the_more_often_it_happened_the_fewer_suspects_run_together() -> None:
    losses = Losses(Bounds(3, 10, 100))
    assert [losses.suspects_at_once(n) for n in (1, 2, 3, 4, 5, 9)] == [16, 8, 4, 2, 1, 1]
    suspects = Suspects(losses)
    assert suspects.may_enter(make_action("innocent"))
    for name, times in (("x", 9), ("y", 6), ("z", 5)):
        lose(losses, name, times, with_server=True)
        suspects.hold(waiting(name))
    entered = []
    while held := suspects.next_to_enter():
        suspects.entered(held.action)
        entered.append(held.operation.name)
        assert suspects.may_enter(make_action("innocent"))
    # The one that was lost least goes first, and alone: those that wait were lost too often.
    assert entered == ["z"]
    losses.clear(key_of(make_action("z")))
    suspects.left(make_action("z"))
    held = suspects.next_to_enter()
    assert held is not None
    assert held.operation.name == "y"


def test_an_operation_that_ended_while_it_was_held_is_passed_over() -> None:
    losses = Losses(BOUNDS)
    lose(losses, "x", 1, with_server=True)
    suspects = Suspects(losses)
    gone = waiting("x")
    suspects.hold(gone)
    gone.operation.outcome = Outcome()
    assert suspects.next_to_enter() is None


def left(in_hand: InHand) -> list[tuple[bytes, str]]:
    return [(each.key, each.loss.executor) for each in in_hand.left]


def test_what_executors_had_is_known_after_a_kill(tmp_path: Path) -> None:
    one, two = key_of(make_action("one")), key_of(make_action("two"))
    with open_in_hand(tmp_path / "in-hand") as in_hand:
        assert in_hand.left == []
        in_hand.let_go(in_hand.take(one, "a"))
        in_hand.take(two, "b" * 200)
        # As another process finds it, had this one been killed now.
        with open_in_hand(tmp_path / "in-hand") as after:
            assert left(after) == [(two, "b" * 80)]
            assert after.left[0].loss.with_server
            after.clear()
    with open_in_hand(tmp_path / "in-hand") as after:
        assert after.left == []


def test_more_than_there_is_room_for_is_not_told_of(tmp_path: Path) -> None:
    key = key_of(make_action("one"))
    with open_in_hand(tmp_path / "in-hand") as in_hand:
        places = [in_hand.take(key, "a") for _ in range(5000)]
        assert places.count(None) == 5000 - 4096
        for place in places:
            in_hand.let_go(place)
        assert in_hand.take(key, "a") is not None


def test_those_who_gave_up_while_they_were_held_are_let_go() -> None:
    losses = Losses(BOUNDS)
    suspects = Suspects(losses)
    for name in ("a", "b"):
        lose(losses, name, 4, with_server=True)
    suspects.entered(make_action("a"))
    stays = waiting("b")
    suspects.hold(stays)
    for _ in range(1000):
        held = waiting("b")
        suspects.hold(held)
        held.operation.outcome = Outcome(error=Unavailable("given up"))
    gc.collect()
    kept = [each for each in gc.get_objects() if type(each) is Waiting]
    assert 1 <= len(kept) < 300
    suspects.left(make_action("a"))
    assert suspects.next_to_enter() is stays


@pytest.mark.parametrize("most", [10, 10**12])
def test_bounds_may_be_as_good_as_none(most: int) -> None:
    losses = Losses(Bounds(most, most, 1e300))
    assert losses.suspects_at_once(1) >= 16
    lose(losses, "a", most if most == 10 else 1, with_server=True)
    for _ in range(2):
        if most == 10:
            with pytest.raises(Quarantined):
                losses.check(make_action("a"))
        else:
            losses.check(make_action("a"))
