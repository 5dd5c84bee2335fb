"""Several requests to one worker at once, and requests that are cancelled."""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from stoker.workers.failure import FaultKind, WorkerFailed
from stoker.workers.worker import Worker

from .alone import open_worker, request
from .workshop import read_report


class Held:
    """A request that the tool has and answers when it is told to, or cancelled."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.output = ""
        self.failure: WorkerFailed | None = None

    async def perform(self, worker: Worker[None], *arguments: str) -> None:
        """To be run as a task."""
        with self.scope:
            try:
                self.output = (await worker.perform(request(*arguments))).response.output
            except WorkerFailed as error:
                self.failure = error
        self.done.set()

    async def cancel(self) -> None:
        """As a caller does, or a deadline of its own."""
        self.scope.cancel()
        await self.done.wait()
        assert self.scope.cancelled_caught


@asynccontextmanager
async def holding(
    worker: Worker[None], count: int = 1, command: str = "hold"
) -> AsyncIterator[list[Held]]:
    """Requests that were sent to `worker`."""
    await worker.start()
    async with trio.open_nursery() as nursery:
        requests = [Held() for _ in range(count)]
        for number, held in enumerate(requests):
            nursery.start_soon(held.perform, worker, command, f"output {number}")
        await trio.testing.wait_all_tasks_blocked()
        yield requests


async def pid_of(worker: Worker[None]) -> int:
    """The process that serves it now."""
    pid: int = read_report((await worker.perform(request("report"))).response)["pid"]
    return pid


@pytest.mark.parametrize("protocol", ["proto", "json"])
async def test_answers_find_their_requests_in_any_order(tmp_path: Path, protocol: str) -> None:
    async with open_worker(tmp_path, protocol=protocol, multiplex=True) as worker:
        for _ in range(2):
            async with holding(worker, 5) as requests:
                assert (await worker.perform(request("release"))).response.output == "released"
            assert [held.output for held in requests] == [f"output {n}" for n in range(5)]
        assert worker.served == 12
        assert worker.usable


@pytest.mark.parametrize(
    ("last", "kind", "reason"),
    [
        # PWK-10, WORKERS 8.12
        (["die", "3"], FaultKind.DIED, "exited with status 3 before it answered 3 requests"),
        (["kill-itself"], FaultKind.DIED, "was ended by signal 9 (SIGKILL) before it answered 3"),
        # PWK-09, WORKERS 8.11
        (["garbage"], FaultKind.GARBAGE, "b'Compiling 3 files"),
        (["wrong-id"], FaultKind.UNKNOWN_ID, "it answered request 77 where 1, 2, 3 was asked"),
        (["nothing"], FaultKind.UNKNOWN_ID, "knows no request ids"),
        (["close-stdout"], FaultKind.CLOSED_STDOUT, "closed its stdout while its process lives"),
    ],
)
async def test_a_fault_fails_all_requests(
    tmp_path: Path, last: list[str], kind: FaultKind, reason: str
) -> None:
    # WORKERS 8.7
    async with open_worker(tmp_path, multiplex=True) as worker:
        async with holding(worker, 2) as requests:
            with pytest.raises(WorkerFailed) as caught:
                await worker.perform(request(*last))
        for failure in (caught.value, *(held.failure for held in requests)):
            assert failure is not None
            assert failure.kind is kind
            assert reason in failure.reason
            # Whose these bytes are cannot be told, and all may be tried again.
            assert not failure.answered
        assert not worker.usable
        assert reason in worker.last_error
        with pytest.raises(WorkerFailed):
            await worker.perform(request())


# WORKERS 8.8, PWK-15
@pytest.mark.parametrize("protocol", ["proto", "json"])
@pytest.mark.parametrize("multiplex", [False, True])
async def test_a_worker_that_heeds_cancel_requests_goes_on(
    tmp_path: Path, protocol: str, multiplex: bool
) -> None:
    async with open_worker(
        tmp_path, "--cancel=heed", protocol=protocol, multiplex=multiplex, cancellable=True
    ) as worker:
        pid = await pid_of(worker)
        for _ in range(3):
            async with holding(worker, 1 + multiplex) as requests:
                await requests[0].cancel()
                assert (worker.recovering, worker.usable) == (True, multiplex)
                assert await worker.recover()
                assert (worker.recovering, worker.usable) == (False, True)
                await worker.perform(request("release"))
            assert [held.output for held in requests[1:]] == ["output 1"] * multiplex
        assert await pid_of(worker) == pid


async def test_a_request_of_a_worker_that_recovers_is_refused(tmp_path: Path) -> None:
    async with open_worker(tmp_path, cancellable=True) as worker, holding(worker) as requests:
        await requests[0].cancel()
        with pytest.raises(WorkerFailed, match="has yet to answer a request that was cancelled"):
            await worker.perform(request())
        assert worker.recovering


@pytest.mark.parametrize("multiplex", [False, True])
async def test_a_worker_that_does_not_answer_a_cancel_request_is_ended(
    tmp_path: Path, multiplex: bool
) -> None:
    async with open_worker(
        tmp_path, multiplex=multiplex, cancellable=True, cancel_grace_seconds=0.05
    ) as worker:
        async with holding(worker, 1 + multiplex) as requests:
            await requests[0].cancel()
            assert not await worker.recover()
        for held in requests[1:]:
            assert held.failure is not None
            assert held.failure.kind is FaultKind.UNRECOVERED
            assert not held.failure.answered
        assert worker.last_error == "did not answer within 0.05 s after a request was cancelled"


# The trap of Bazel's Java library for JSON workers, and a worker that finishes what it has begun.
@pytest.mark.parametrize("manner", ["never-mind", "finish"])
async def test_a_cancelled_request_that_is_answered_as_any_other(
    tmp_path: Path, manner: str
) -> None:
    startup = f"--cancel={manner}"
    for multiplex in (False, True):
        folder = tmp_path / str(multiplex)
        folder.mkdir()
        async with open_worker(
            folder, startup, protocol="json", multiplex=multiplex, cancellable=True
        ) as worker:
            async with holding(worker, 1 + multiplex) as requests:
                await requests[0].cancel()
                # Without ids, a second answer would be taken for that to the next request.
                assert await worker.recover() == multiplex
                if multiplex:
                    # With `never-mind`, what was cancelled is answered here once more.
                    await worker.perform(request("release"))
            assert [held.output for held in requests[1:]] == ["output 1"] * multiplex
            assert worker.usable == multiplex


@pytest.mark.parametrize("multiplex", [False, True])
async def test_a_worker_that_knows_no_cancel_requests_takes_no_more(
    tmp_path: Path, multiplex: bool
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with open_worker(tmp_path, f"--gate={gate}", multiplex=multiplex) as worker:
        async with holding(worker, 1 + multiplex, "report") as requests:
            await requests[0].cancel()
            assert not worker.usable
            assert not worker.recovering
            assert not await worker.recover()
            with pytest.raises(WorkerFailed, match="abandoned") as caught:
                await worker.perform(request())
            assert caught.value.kind is FaultKind.ABANDONED
            if multiplex:
                await trio.Path(gate).write_text("go on")
        # The other one is answered all the same.
        reports = [json.loads(held.output) for held in requests[1:]]
        assert [report["arguments"][1] for report in reports] == ["output 1"] * multiplex
        assert worker.last_error == ""


async def test_a_cancellation_within_the_writing_of_a_request_tears_nothing(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with open_worker(
        tmp_path, f"--gate={gate}", "--cancel=heed", multiplex=True, cancellable=True
    ) as worker:
        await worker.start()
        async with trio.open_nursery() as nursery:
            for name in ("first", "second"):
                nursery.start_soon(worker.perform, request("hold", name, "x" * 1_000_000))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert worker.recovering
        await trio.Path(gate).write_text("go on")
        assert await worker.recover()
        report = read_report((await worker.perform(request("report", "y"))).response)
        # The second one had not been begun, and was never sent.
        assert (report["arguments"], report["count"]) == (["report", "y"], 2)


async def test_one_who_gives_up_the_start_leaves_it_to_the_others(tmp_path: Path) -> None:
    async with open_worker(tmp_path, multiplex=True) as worker:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.start)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await worker.start()
        assert json.loads((await worker.perform(request("report"))).response.output)["count"] == 1


# WORKERS 8.8
async def test_random_cancellations_mix_up_and_lose_nothing(tmp_path: Path) -> None:
    draw = random.Random(5)
    answered = 0

    async def ask(worker: Worker[None], name: str) -> None:
        nonlocal answered
        for number in range(100):
            with trio.CancelScope() as scope:
                if draw.random() < 0.3:
                    scope.deadline = trio.current_time() + draw.random() * 0.002
                text = f"{name}.{number}"
                response = (await worker.perform(request("report", text))).response
                assert read_report(response)["arguments"] == ["report", text]
                answered += 1

    async with open_worker(tmp_path, "--cancel=heed", multiplex=True, cancellable=True) as worker:
        pid = await pid_of(worker)
        async with trio.open_nursery() as nursery:
            for name in "abcdefgh":
                nursery.start_soon(ask, worker, name)
        assert await worker.recover()
        assert not worker.recovering
        assert worker.served >= answered >= 400
        assert await pid_of(worker) == pid
