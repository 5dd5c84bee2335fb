"""Why keys missed, and when invocations are over."""

from __future__ import annotations

import math
from dataclasses import replace

from stoker.workers.history import History, Miss
from stoker.workers.invocations import Invocations

from .test_places import A_KEY


def test_the_nearest_key_of_the_same_mnemonic_tells_the_difference() -> None:  # WORKERS 8.15
    history = History()
    assert history.miss(A_KEY, "Javac", is_busy=False, ending=None) == Miss("first")
    far = replace(A_KEY, silo="s", namespace="n", tools="t")
    assert history.miss(far, "Javac", is_busy=False, ending=None).reason == "key"
    near = replace(far, argv=("--target=//x",))
    miss = history.miss(near, "Javac", is_busy=False, ending=None)
    assert miss == Miss("key", ("argv",))
    assert history.miss(replace(A_KEY, silo="z"), "Rollup", is_busy=False, ending=None) == Miss(
        "first"
    )


def test_what_became_of_the_last_worker_is_the_reason() -> None:
    history = History()
    history.miss(A_KEY, "", is_busy=False, ending=None)
    assert history.miss(A_KEY, "", is_busy=True, ending="evicted") == Miss("busy")
    assert history.miss(A_KEY, "", is_busy=False, ending="evicted") == Miss("evicted")
    history.end(A_KEY, "expired")
    history.end(A_KEY, "failed", "exited with status 3")
    history.end(A_KEY, "expired")
    assert history.miss(A_KEY, "", is_busy=False, ending=None) == Miss("expired")
    [known] = history.known()
    assert known.last_error == "exited with status 3"
    assert history.ended == {"expired": 2, "failed": 1}


def test_only_keys_without_workers_are_forgotten() -> None:
    history = History(max_keys_without_workers=2)
    keys = [replace(A_KEY, tools=str(n)) for n in range(5)]
    for key in keys:
        history.miss(key, "", is_busy=False, ending=None)
    for key in (keys[3], keys[0], keys[1]):
        history.end(key, "expired")
    assert [known.key for known in history.known()] == [keys[0], keys[1], keys[2], keys[4]]
    history.hit(keys[2])
    assert history.hits == 1


def test_an_invocation_is_over_after_a_while_without_actions() -> None:
    invocations = Invocations(10)
    assert invocations.next_end == math.inf
    for name in ("a", "a", "b", ""):
        invocations.begin(name)
    invocations.end("a", 1)
    assert invocations.next_end == math.inf
    invocations.end("b", 2)
    invocations.end("a", 3)
    invocations.end("", 3)
    assert invocations.next_end == 12
    assert invocations.take_ended(11.9) == frozenset()
    invocations.begin("b")
    assert invocations.take_ended(13) == {"a"}
    invocations.end("b", 20)
    assert invocations.take_ended(30) == {"b"}
    assert invocations.take_ended(99) == frozenset()


def test_without_a_setting_no_invocation_is_ever_over() -> None:
    invocations = Invocations(None)
    invocations.begin("a")
    invocations.end("a", 0)
    assert invocations.next_end == math.inf
    assert not invocations.take_ended(1e9)
