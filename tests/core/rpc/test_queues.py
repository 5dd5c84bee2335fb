"""The bounds of the two queues of a stream, step by step."""

from dataclasses import dataclass
from typing import Any

import trio.testing

from stoker.rpc.flow import (
    QUEUED_BYTES,
    READ_AHEAD_MESSAGES,
    WRITE_BEHIND_MESSAGES,
    Incoming,
    Outgoing,
)


@dataclass
class Done:
    """The event of a batch with one message received, or one sent."""

    received: bytes | None = None
    success: bool = True

    @property
    def batch_operations(self) -> tuple[Any, ...]:
        return (self,)

    def message(self) -> bytes | None:
        return self.received


class Core:
    """Stands for gRPC: takes batches, and completes the outstanding one when told."""

    def __init__(self) -> None:
        self.started = 0
        self._tag: Any = None

    def busy(self) -> bool:
        return self._tag is not None

    def start(self, operations: tuple[Any, ...], tag: Any) -> bool:
        assert self._tag is None, "gRPC allows one outstanding batch of a kind"
        self.started += 1
        self._tag = tag
        return True

    def complete(self, event: Any) -> None:
        tag, self._tag = self._tag, None
        action = tag(event)
        if action is not None:
            action()


async def test_reading_ahead_stops_at_a_number_of_messages() -> None:
    core = Core()
    incoming = Incoming(core.start)
    incoming.read_ahead()
    for number in range(READ_AHEAD_MESSAGES):
        core.complete(Done(b"%d" % number))
    assert not core.busy()
    received = []
    while not core.busy():
        received.append(await incoming.receive())
    # It goes on with half of the room free, so that reads come in runs.
    assert received == [b"%d" % number for number in range(READ_AHEAD_MESSAGES // 2 + 1)]


async def test_reading_ahead_stops_at_a_number_of_bytes() -> None:
    core = Core()
    incoming = Incoming(core.start)
    incoming.read_ahead()
    core.complete(Done(bytes(QUEUED_BYTES - 1)))
    assert core.busy()
    core.complete(Done(b"x"))
    assert not core.busy()
    await incoming.receive()
    assert core.busy()


async def test_nothing_is_read_before_it_is_wanted() -> None:
    core = Core()
    Incoming(core.start)
    assert core.started == 0


async def test_the_end_of_the_stream_stays_the_end() -> None:
    core = Core()
    incoming = Incoming(core.start)
    incoming.read_ahead()
    core.complete(Done(b"last"))
    core.complete(Done(None))
    assert [await incoming.receive() for _ in range(3)] == [b"last", None, None]
    assert core.started == 2


async def test_what_comes_after_a_stop_is_dropped() -> None:
    core = Core()
    incoming = Incoming(core.start)
    incoming.read_ahead()
    core.complete(Done(b"queued"))
    incoming.stop()
    core.complete(Done(b"late"))
    assert not core.busy()
    assert await incoming.receive() is None


async def test_a_receiver_is_woken(nursery: trio.Nursery) -> None:
    core = Core()
    incoming = Incoming(core.start)
    received = []

    async def receive() -> None:
        received.append(await incoming.receive())

    nursery.start_soon(receive)
    await trio.testing.wait_all_tasks_blocked()
    core.complete(Done(b"x"))
    await trio.testing.wait_all_tasks_blocked()
    assert received == [b"x"]


async def test_of_two_receivers_at_once_one_is_refused(nursery: trio.Nursery) -> None:
    core = Core()
    incoming = Incoming(core.start)
    outcomes: list[Any] = []

    async def receive() -> None:
        try:
            outcomes.append(await incoming.receive())
        except trio.BusyResourceError:
            outcomes.append("busy")

    nursery.start_soon(receive)
    nursery.start_soon(receive)
    await trio.testing.wait_all_tasks_blocked()
    core.complete(Done(b"x"))
    await trio.testing.wait_all_tasks_blocked()
    assert outcomes == ["busy", b"x"]


async def send_many(outgoing: Outgoing, message: bytes, sent: list[bool]) -> None:
    while True:
        sent.append(await outgoing.send(message))


async def test_writing_behind_stops_at_a_number_of_messages(nursery: trio.Nursery) -> None:
    core = Core()
    sent: list[bool] = []
    nursery.start_soon(send_many, Outgoing(core.start), b"x", sent)
    await trio.testing.wait_all_tasks_blocked()
    # One is with gRPC, the others wait for it.
    assert len(sent) == 1 + WRITE_BEHIND_MESSAGES
    while len(sent) == 1 + WRITE_BEHIND_MESSAGES:
        core.complete(Done())
        await trio.testing.wait_all_tasks_blocked()
    assert core.busy()
    assert len(sent) == core.started + WRITE_BEHIND_MESSAGES
    nursery.cancel_scope.cancel()


async def test_writing_behind_stops_at_a_number_of_bytes(nursery: trio.Nursery) -> None:
    core = Core()
    sent: list[bool] = []
    nursery.start_soon(send_many, Outgoing(core.start), bytes(QUEUED_BYTES), sent)
    await trio.testing.wait_all_tasks_blocked()
    assert len(sent) == 2
    core.complete(Done())
    await trio.testing.wait_all_tasks_blocked()
    assert len(sent) == 3
    nursery.cancel_scope.cancel()


async def test_a_failed_write_ends_sending(nursery: trio.Nursery) -> None:
    core = Core()
    outgoing = Outgoing(core.start)
    ends: list[Any] = []

    async def send_until_refused() -> None:
        while await outgoing.send(b"x"):
            ends.append("sent")
        ends.append("refused")

    nursery.start_soon(send_until_refused)
    await trio.testing.wait_all_tasks_blocked()
    core.complete(Done(success=False))
    await trio.testing.wait_all_tasks_blocked()
    assert ends == ["sent"] * (1 + WRITE_BEHIND_MESSAGES) + ["refused"]
    assert not core.busy()


async def test_the_last_batch_waits_for_the_messages() -> None:
    core = Core()
    outgoing = Outgoing(core.start)
    for _ in range(3):
        assert await outgoing.send(b"x")
    last: Any = object()
    outgoing.end_with(last)
    assert core.started == 1
    core.complete(Done())
    core.complete(Done())
    assert core.started == 3
    core.complete(Done())
    assert core.started == 4
