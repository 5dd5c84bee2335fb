"""Any sequence of calls, against a naive model.

The environment variable STOKER_QUEUE_STEPS asks for a walk of that many calls, millions if need be.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from stoker.scheduler.queue import Task

from .naive_queue import AGEING_SECONDS, EXECUTORS, FAVOURED, NaiveQueue, Request

STEPS = int(os.environ.get("STOKER_QUEUE_STEPS", "2500"))
WALK = 10_000
"""The calls of one test: one of millions would take longer than a test may."""

NAMES = "abcdefgh"
TENANTS = ("", "other", "third")
INVOCATIONS = ("", "one", "two")
PRIORITIES = (-2, 0, 0, 0, 1)
MNEMONICS = (FAVOURED, "Javac", "Javac")
ASKED = {
    "OSFamily": ("linux", "windows", None, None),
    "cpus": ("4", "2.5", "100m", None, None),
    "memory": ("4GiB", "1GiB", None, None),
    "licences": ("1", "1.5", None, None, None, None),
}


def platform_of(values: dict[str, str | None]) -> dict[str, tuple[str, ...]]:
    return {name: (value,) for name, value in values.items() if value}


REQUESTS = st.builds(
    Request,
    st.sampled_from(NAMES),
    st.sampled_from(TENANTS),
    st.sampled_from(INVOCATIONS),
    st.sampled_from(PRIORITIES),
    st.sampled_from(MNEMONICS),
    st.fixed_dictionaries({n: st.sampled_from(values) for n, values in ASKED.items()}).map(
        platform_of
    ),
    st.booleans(),
)


class QueueModel(RuleBasedStateMachine):
    """SCH-01 to SCH-05, SCH-08, EXE-14, EXE-17, EXE-20 to EXE-22, EXE-25, OPS-14."""

    def __init__(self) -> None:
        super().__init__()
        self.model = NaiveQueue()

    @rule(request=REQUESTS)
    def add(self, request: Request) -> None:
        self.model.add(request)

    @rule(executor=st.sampled_from([*EXECUTORS]))
    def offer(self, executor: str) -> None:
        self.model.offer(executor)

    @rule(seconds=st.sampled_from([1.0, AGEING_SECONDS]))
    def pass_time(self, seconds: float) -> None:
        self.model.now += seconds

    @precondition(lambda self: any(self.model.slots.values()))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        offered = [e for e, count in self.model.slots.items() if count]
        self.model.withdraw(data.draw(st.sampled_from(offered)))

    @precondition(lambda self: self.model.running or self.model.waiting)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        tasks = [*self.model.running, *self.model.waiting]
        self.model.complete(data.draw(st.sampled_from(tasks)))

    @precondition(lambda self: self.model.ending)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.model.release(data.draw(st.sampled_from(self.model.ending)))

    @precondition(lambda self: self.model.running)
    @rule(data=st.data(), counted=st.booleans())
    def requeue(self, data: st.DataObject, counted: bool) -> None:
        self.model.requeue(data.draw(st.sampled_from(self.model.running)), counted=counted)

    @precondition(lambda self: self.model.lost)
    @rule(data=st.data())
    def release_lost(self, data: st.DataObject) -> None:
        self.model.release_lost(data.draw(st.sampled_from(self.model.lost)))

    @rule(executor=st.sampled_from([*EXECUTORS]))
    def attach(self, executor: str) -> None:
        self.model.attach(executor)

    @rule(executor=st.sampled_from([*EXECUTORS]))
    def detach(self, executor: str) -> None:
        self.model.detach(executor)

    @precondition(lambda self: self.model.running)
    @rule(data=st.data(), seconds=st.sampled_from([0.5, 1.0, 60.0]))
    def renew(self, data: st.DataObject, seconds: float) -> None:
        self.model.renew(data.draw(st.sampled_from(self.model.running)), seconds)

    @rule()
    def expire(self) -> None:
        self.model.expire()

    def teardown(self) -> None:
        self.model.drain()


QueueModel.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestQueueModel = QueueModel.TestCase


def random_request(choice: random.Random) -> Request:
    return Request(
        choice.choice(NAMES),
        choice.choice(TENANTS),
        choice.choice(INVOCATIONS),
        choice.choice(PRIORITIES),
        choice.choice(MNEMONICS),
        platform_of({name: choice.choice(values) for name, values in ASKED.items()}),
        choice.random() < 0.7,
    )


def twin_of(task: Task, request: Request) -> Request:
    """The action of `task`, asked for by another invocation at another priority."""
    return request._replace(
        name=task.action.target,
        tenant=task.action.namespace,
        mnemonic=task.action.mnemonic,
        platform=task.action.platform,
    )


def step(model: NaiveQueue, choice: random.Random) -> None:
    """One call, such that the queue fills up and runs dry in turns."""
    way = choice.random()
    if way < 0.4:
        request = random_request(choice)
        if model.waiting and way < 0.1:
            request = twin_of(choice.choice(model.waiting), request)
        model.add(request)
    elif way < 0.65:
        executor = choice.choice([*EXECUTORS])
        if model.slots[executor] < 4:
            model.offer(executor)
    elif way < 0.75 and model.running:
        model.complete(choice.choice(model.running))
    elif way < 0.88 and model.ending:
        model.release(choice.choice(model.ending))
    elif way < 0.945:
        lose(model, choice)
    elif way < 0.953 and model.waiting:
        model.complete(choice.choice(model.waiting))
    elif way < 0.958:
        come_or_go(model, choice)
    elif way < 0.965:
        model.now += choice.choice([1.0, AGEING_SECONDS / 5])
    elif any(model.slots.values()):
        model.withdraw(choice.choice([e for e, count in model.slots.items() if count]))


def lose(model: NaiveQueue, choice: random.Random) -> None:
    """A run is lost, may be soon, or its executor has nothing left of one that was."""
    way = choice.random()
    if way < 0.3 and model.running:
        model.requeue(choice.choice(model.running), counted=choice.random() < 0.8)
    elif way < 0.6 and model.running:
        model.renew(choice.choice(model.running), choice.choice([0.5, 1.0, AGEING_SECONDS]))
    elif way < 0.7:
        model.expire()
    elif model.lost:
        model.release_lost(choice.choice(model.lost))


def come_or_go(model: NaiveQueue, choice: random.Random) -> None:
    # They are there for most of the time.
    if choice.random() < 0.7:
        model.attach(choice.choice([*EXECUTORS]))
    else:
        model.detach(choice.choice([*EXECUTORS]))


@pytest.mark.parametrize("seed", range(-(-STEPS // WALK)))
def test_a_long_walk_ends_where_it_began(seed: int) -> None:
    choice = random.Random(seed)
    model = NaiveQueue()
    steps = min(STEPS, WALK)
    for _ in range(steps):
        step(model, choice)
    assert model.begun > steps // 20
    model.drain()
