"""One worker and its process: what it serves, and every way in which it misbehaves."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from stoker.errors import ProgramNotStarted, StokerError
from stoker.execution.input_root import InputRoot
from stoker.protos.worker_protocol_pb2 import WorkRequest, WorkResponse
from stoker.spi import ExecutionStrategy, Exit, Process, ProcessSpec
from stoker.workers.failure import FaultKind, WorkerFailed
from stoker.workers.worker import Worker

from .alone import open_worker, request
from .workshop import Workshop, is_alive, read_report, wait_until_gone


async def failure_of(workshop: Workshop, *lines: str, **options: Any) -> WorkerFailed:
    """How a worker fails that has served one request well; its process must be gone by then."""
    async with workshop.pool() as pool:
        pid = (await workshop.report(pool, **options))["pid"]
        with pytest.raises(WorkerFailed) as caught:
            await workshop.run(pool, await workshop.work(*lines, **options))
        await wait_until_gone(pid)
    assert "worker-1-Tool_Run (process " in str(caught.value)
    return caught.value


async def wait_until_unusable(worker: Worker[InputRoot]) -> None:
    """Wait until the end of its process, or its fault, has been noticed."""
    while worker.usable:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("protocol", "startup"),
    [("proto", []), ("json", ["--json"]), ("json", ["--json", "--pretty"])],
)
async def test_a_worker_serves_one_request_after_the_other(
    workshop: Workshop, protocol: str, startup: list[str]
) -> None:
    async with workshop.pool() as pool:
        reports = [
            await workshop.report(pool, protocol=protocol, startup=startup) for _ in range(3)
        ]
        assert [report["count"] for report in reports] == [1, 2, 3]
        assert len({report["pid"] for report in reports}) == 1
    assert not is_alive(reports[0]["pid"])


# PWK-04, PWK-07 and PWK-10 of the environment: nothing of the server's own is passed on.
async def test_a_worker_is_given_flag_inputs_and_environment(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "sentinel")
    async with workshop.pool() as pool:
        work = await workshop.work(
            "report", "", "last", startup=["--colour"], environment={"NAME": "value"}
        )
        async with workshop.lease(pool, work) as worker:
            report = read_report(await workshop.perform(worker, work))
            assert report["argv"] == ["tool.py", "--colour", "--persistent_worker"]
            assert report["arguments"] == ["report", "", "last"]
            assert report["folder"] == str(worker.spec.root)
            hashes = [[path, file.digest.hash] for path, file in work.tree.files.items()]
            assert report["inputs"] == hashes
            for name in ("TMPDIR", "HOME"):
                private = Path(report["environment"].pop(name))
                assert list(private.iterdir()) == []
                assert not private.is_relative_to(worker.spec.root)
            report["environment"].pop("LC_CTYPE", None)  # Python's own
            assert report["environment"] == {"NAME": "value"}


async def test_a_failed_action_keeps_its_worker(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        response = await workshop.run(pool, await workshop.work("exit-code", "7"))
        assert response == WorkResponse(exit_code=7, output="as asked")
        assert (await workshop.report(pool))["count"] == 2


async def test_a_response_of_no_bytes_is_a_success(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        assert await workshop.run(pool, await workshop.work("nothing")) == WorkResponse()


# WORKERS 8.10, as are answers without one above
async def test_a_newline_after_the_answer_is_no_answer(workshop: Workshop) -> None:
    options: dict[str, Any] = {"startup": ["--json"], "protocol": "json"}
    async with workshop.pool() as pool:
        for _ in range(3):
            await workshop.run(pool, await workshop.work("trailing-newline", **options))
        assert (await workshop.report(pool, **options))["count"] == 4


async def test_a_worker_may_answer_before_it_has_read_all(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        work = await workshop.work("x", startup=["--eager"])
        async with workshop.lease(pool, work) as worker:
            await worker.folder.lay_out(work.tree)
            response = (await worker.perform(WorkRequest(arguments=["y" * 1_000_000]))).response
    assert response.output == "e" * 1_000_000


# WORKERS 8.6, PWK-10
async def test_death_in_mid_request_is_told_with_status_and_last_words(workshop: Workshop) -> None:
    failure = await failure_of(workshop, "die", "3")
    assert failure.reason == "exited with status 3 before it answered"
    assert failure.kind is FaultKind.DIED
    assert failure.exit is not None
    assert (failure.exit.code, failure.exit.signal) == (3, None)
    assert not failure.answered
    assert failure.log_tail == "dying words"
    assert "dying words" in str(failure)


# WORKERS 8.12
async def test_death_by_signal_is_told_with_its_name(workshop: Workshop) -> None:
    failure = await failure_of(workshop, "kill-itself")
    assert failure.reason == "was ended by signal 9 (SIGKILL) before it answered"
    assert failure.exit is not None
    assert (failure.exit.code, failure.exit.signal) == (137, 9)


async def test_half_an_answer_is_quoted(workshop: Workshop) -> None:
    failure = await failure_of(workshop, "half")
    assert failure.reason.startswith("exited with status 0 within its answer, which begins with")
    assert failure.answered
    assert failure.excerpt == b"\x66\x12\x64" + b"x" * 47


async def test_the_answer_of_a_dying_worker_counts(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        work = await workshop.work("answer-and-die")
        async with workshop.lease(pool, work) as worker:
            response = await workshop.perform(worker, work)
            await wait_until_unusable(worker)
        assert response.output == "last words"
        assert (await workshop.report(pool))["count"] == 1


@pytest.mark.parametrize("protocol", ["proto", "json"])
async def test_garbage_is_quoted_with_a_hint(workshop: Workshop, protocol: str) -> None:
    # PWK-09, WORKERS 8.11
    failure = await failure_of(workshop, "garbage", protocol=protocol, startup=[f"--{protocol}"])
    assert failure.reason.startswith("broke its protocol")
    assert "the tool may print to stdout" in failure.reason
    assert failure.excerpt.startswith(b"Compiling 3 files")
    assert failure.answered


async def test_a_wrong_id_is_refused(workshop: Workshop) -> None:
    # PWK-06
    failure = await failure_of(workshop, "wrong-id")
    assert "it answered request 77 where 0 was asked" in failure.reason
    assert failure.excerpt == b"\x02\x18\x4d"


async def test_a_second_answer_is_refused(workshop: Workshop) -> None:
    failure = await failure_of(workshop, "twice")
    assert "it answered one request 2 times" in failure.reason


async def test_a_cancellation_that_nobody_asked_for_is_refused(workshop: Workshop) -> None:
    failure = await failure_of(workshop, "cancelled")
    assert "cancelled, which nobody had asked for" in failure.reason


# WORKERS 8.7
async def test_a_closed_stdout_is_told_from_death(workshop: Workshop) -> None:
    failure = await failure_of(workshop, "close-stdout")
    assert failure.reason == "closed its stdout while its process lives"


async def test_an_answer_that_is_too_large_is_refused(workshop: Workshop) -> None:
    async with workshop.pool(max_response_bytes=1000) as pool:
        with pytest.raises(WorkerFailed, match="1000 are allowed"):
            await workshop.run(pool, await workshop.work("large", "5000"))


async def test_a_closed_stdin_is_told(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        work = await workshop.work("close-stdin-and-hang")
        async with workshop.lease(pool, work) as worker:
            await workshop.perform(worker, work)
            with pytest.raises(WorkerFailed, match="closed its stdin while its process lives"):
                await workshop.perform(worker, work)


async def test_words_before_the_first_request_are_no_answer(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        work = await workshop.work("report", startup=["--greets"])
        async with workshop.lease(pool, work) as worker:
            await worker.folder.lay_out(work.tree)
            await worker.start()
            await wait_until_unusable(worker)
            with pytest.raises(WorkerFailed, match="Welcome to the tool") as caught:
                await workshop.perform(worker, work)
    assert not caught.value.answered


async def test_an_answer_that_nobody_asked_for_ends_the_worker(
    workshop: Workshop, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with workshop.pool() as pool:
        work = await workshop.work("unasked", str(gate))
        async with workshop.lease(pool, work) as worker:
            await workshop.perform(worker, work)
            await trio.Path(gate).write_text("go on")
            await wait_until_unusable(worker)
            with pytest.raises(WorkerFailed, match="answered what nobody had asked") as caught:
                await workshop.perform(worker, work)
            assert b"and another thing" in caught.value.excerpt


async def test_death_is_noticed_though_a_child_keeps_stdout(
    workshop: Workshop, tmp_path: Path
) -> None:
    failure = await failure_of(workshop, "child-keeps-stdout", str(tmp_path / "pid"))
    assert failure.reason == "exited with status 5 before it answered"
    await wait_until_gone(int((tmp_path / "pid").read_text()))


async def test_a_tool_that_knows_no_worker_flag_is_told(workshop: Workshop) -> None:
    # PWK-18
    async with workshop.pool() as pool:
        work = await workshop.work("report", startup=["--knows-no-worker"])
        with pytest.raises(WorkerFailed, match="exited with status 2 ") as caught:
            await workshop.run(pool, work)
        assert not caught.value.answered
        assert caught.value.log_tail == "unknown option --persistent_worker"


async def test_a_program_that_cannot_be_started_is_told(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        work = await workshop.work("report")
        key = replace(work.plan.key, argv=("./none",))
        plan = replace(work.plan, key=key)
        async with pool.lease(plan, work.action, {}) as worker:
            for _ in range(2):
                with pytest.raises(ProgramNotStarted, match="not found"):
                    await worker.start()


async def test_a_cancelled_request_ends_the_process(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        pid = (await workshop.report(pool))["pid"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workshop.run, pool, await workshop.work("hang"))
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        await wait_until_gone(pid)
        assert (await workshop.report(pool))["count"] == 1


async def test_a_worker_whose_request_was_abandoned_answers_nothing_more(
    workshop: Workshop,
) -> None:
    async with workshop.pool() as pool:
        work = await workshop.work("report")
        async with workshop.lease(pool, work) as worker:
            await workshop.perform(worker, work)
            with trio.move_on_after(0.05):
                await worker.perform(WorkRequest(arguments=["hang"]))
            with pytest.raises(WorkerFailed, match="abandoned"):
                await worker.perform(WorkRequest())


async def test_a_worker_whose_start_was_abandoned_does_not_start(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        work = await workshop.work("report")
        async with workshop.lease(pool, work) as worker:
            await worker.folder.lay_out(work.tree)
            with trio.move_on_after(0):
                await worker.start()
            with pytest.raises(WorkerFailed, match="was stopped by the server"):
                await worker.start()


class ToldProcess(Process):
    """A real process, of which the strategy tells what no machine can be asked for in a test."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.name = process.name
        self.stdin, self.stdout = process.stdin, process.stdout

    async def wait(self) -> Exit:
        return (await self._process.wait())._replace(breach="out of memory: the limit is 5 bytes")

    def terminate(self) -> None:
        self._process.terminate()

    async def measure_memory(self) -> int | None:
        return 4711


class ToldStrategy(ExecutionStrategy):
    """Gives processes as above."""

    def __init__(self, strategy: ExecutionStrategy) -> None:
        self._strategy = strategy

    @asynccontextmanager
    async def start(self, spec: ProcessSpec) -> AsyncIterator[Process]:
        async with self._strategy.start(spec) as process:
            yield ToldProcess(process)


async def test_what_the_strategy_tells_of_the_process_is_passed_on(tmp_path: Path) -> None:
    # WORKERS 8.12
    async with open_worker(tmp_path, around=ToldStrategy) as worker:
        assert await worker.measure_memory() is None
        await worker.start()
        assert await worker.measure_memory() == 4711
        with pytest.raises(WorkerFailed) as caught:
            await worker.perform(request("kill-itself"))
    reason = "was ended: out of memory: the limit is 5 bytes before it answered"
    assert caught.value.reason == worker.last_error == reason
    assert await worker.measure_memory() is None


class UnmeasurableProcess(ToldProcess):
    async def measure_memory(self) -> int | None:
        raise RuntimeError("no such file")


class UnmeasurableStrategy(ToldStrategy):
    """Breaks its promise."""

    @asynccontextmanager
    async def start(self, spec: ProcessSpec) -> AsyncIterator[Process]:
        async with self._strategy.start(spec) as process:
            yield UnmeasurableProcess(process)


async def test_a_strategy_that_cannot_measure_ends_nobody(tmp_path: Path) -> None:
    async with open_worker(tmp_path, around=UnmeasurableStrategy) as worker:
        await worker.start()
        with structlog.testing.capture_logs() as logged:
            assert await worker.measure_memory() is None
        assert [str(entry["exc_info"]) for entry in logged] == ["no such file"]
        assert (await worker.perform(request("nothing"))).response.exit_code == 0


async def test_why_a_worker_did_not_start_is_its_last_error(tmp_path: Path) -> None:
    async with open_worker(tmp_path) as worker:
        (tmp_path / "root").rename(tmp_path / "gone")
        with pytest.raises(StokerError) as caught:
            await worker.start()
        assert worker.last_error == str(caught.value)
        assert not worker.usable
