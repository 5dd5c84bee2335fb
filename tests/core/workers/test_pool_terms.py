"""What a pool does by its settings and terms: budgets, retirement, recovery, logs, reports."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from stoker.errors import Unavailable
from stoker.execution.input_root import InputRoot
from stoker.workers.plan import WorkerPlan, WorkerTerms
from stoker.workers.pool import WorkerPool
from stoker.workers.report import KeyReport, WorkerReport
from stoker.workers.requests import build_request
from stoker.workers.worker import Worker

from .workshop import (
    Work,
    WorkerRoot,
    Workshop,
    is_alive,
    read_report,
    wait_until_gone,
)


async def wait_for_places(pool: WorkerPool[InputRoot], count: int) -> None:
    """Wait until processes have gone, which only the system decides."""
    while pool.counts.places > count:
        await trio.lowlevel.checkpoint()


def only_key(pool: WorkerPool[InputRoot]) -> KeyReport:
    [key] = pool.report().keys
    return key


def only_worker(pool: WorkerPool[InputRoot]) -> WorkerReport:
    [worker] = only_key(pool).workers
    return worker


# --- retirement and budgets


async def test_a_worker_is_replaced_after_its_requests(  # PWK-16
    workshop: Workshop, tmp_path: Path
) -> None:
    farewell = tmp_path / "farewell"
    options = {"terms": WorkerTerms(max_requests=2), "startup": [f"--farewell={farewell}"]}
    async with workshop.pool() as pool:
        reports = [await workshop.report(pool, **options) for _ in range(3)]
        assert [report["count"] for report in reports] == [1, 2, 1]
        await wait_until_gone(reports[0]["pid"])
        assert farewell.read_text() == f"{reports[0]['pid']}\n", "it was asked politely"
        await wait_for_places(pool, 1)
        assert pool.report().ended == {"retired": 1}
        assert pool.report().misses == {"first": 1, "retired": 1}


async def test_a_worker_that_is_too_large_ends_once_it_is_idle(  # WORKERS 8.13, PWK-16
    workshop: Workshop,
) -> None:
    async with workshop.pool(max_worker_memory_bytes=1) as pool:
        work = await workshop.work("report")
        async with workshop.lease(pool, work) as worker:
            pid = read_report(await workshop.perform(worker, work))["pid"]
            await pool.measure_memory()
            memory_bytes = only_worker(pool).memory_bytes
            assert memory_bytes is not None
            assert 1_000_000 < memory_bytes == pool.report().memory_bytes
            assert is_alive(pid), "nobody is interrupted"
        await wait_until_gone(pid)
        await wait_for_places(pool, 0)
        assert pool.report().ended == {"evicted": 1}


async def test_memory_is_measured_without_being_asked(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.workers.pool.MEASURE_SECONDS", 0.05)
    async with workshop.pool(max_worker_memory_bytes=1) as pool:
        await wait_until_gone((await workshop.report(pool))["pid"])


async def test_all_together_stay_within_their_memory(workshop: Workshop) -> None:  # WORKERS 8.13
    async with workshop.pool(max_memory_bytes=25_000_000) as pool:
        pids = [(await workshop.report(pool, startup=[f"--{n}"]))["pid"] for n in range(8)]
        await pool.measure_memory()
        while (pool.report().memory_bytes or 0) > 25_000_000:
            await trio.lowlevel.checkpoint()
        assert 0 < pool.counts.places < 8
        assert sum(map(is_alive, pids)) == pool.counts.places
        again = await workshop.report(pool, startup=["--new"])
        assert again["count"] == 1


async def test_the_workers_of_an_invocation_quit_after_it(
    workshop: Workshop,
) -> None:  # WORKERS 8.13
    async with workshop.pool(quit_after_invocation_seconds=0.05) as pool:
        mine = await workshop.work("report", invocation="mine")
        other = await workshop.work("report", startup=["--other"], invocation="other")
        async with workshop.lease(pool, other) as kept:
            kept_pid = read_report(await workshop.perform(kept, other))["pid"]
            pid = read_report(await workshop.run(pool, mine))["pid"]
            await wait_until_gone(pid)
            await wait_for_places(pool, 1)
            assert pool.report().ended == {"invocation": 1}
            assert is_alive(kept_pid)
        await wait_until_gone(kept_pid)


async def test_a_waiting_action_of_high_priority_comes_first(workshop: Workshop) -> None:
    order: list[str] = []
    async with workshop.pool(max_workers=1) as pool:
        work = await workshop.work("nothing")
        high = await workshop.work("nothing", terms=WorkerTerms(high_priority=True))

        async def run(name: str, what: Any) -> None:
            async with workshop.lease(pool, what) as worker:
                order.append(name)
                await workshop.perform(worker, what)

        async with trio.open_nursery() as nursery, workshop.lease(pool, work) as worker:
            await workshop.perform(worker, work)
            for name, what in (("low", work), ("high", high)):
                nursery.start_soon(run, name, what)
                await trio.testing.wait_all_tasks_blocked()
    assert order == ["high", "low"]


# --- leases


async def test_a_retry_gets_a_fresh_process_although_a_warm_one_is_idle(  # WORKERS 8.6
    workshop: Workshop,
) -> None:
    one = WorkerTerms(max_workers_per_key=1)
    async with workshop.pool() as pool:
        work = await workshop.work("report", terms=one)
        warm = read_report(await workshop.run(pool, work))["pid"]
        async with workshop.lease(pool, work, avoid_warm=True) as worker:
            assert worker.fresh
            assert read_report(await workshop.perform(worker, work))["pid"] != warm
        await wait_until_gone(warm)


async def test_leases_of_a_multiplex_worker_overlap(workshop: Workshop) -> None:  # WORKERS 8.7
    async with workshop.pool() as pool:
        work = await workshop.work("report", multiplex=True)
        async with workshop.lease(pool, work) as first:
            # It has no process yet, and is shared all the same.
            async with workshop.lease(pool, work) as second:
                assert second is first
                assert only_worker(pool).in_flight == 2
                await workshop.perform(first, work)
                await workshop.perform(second, work)
            assert pool.counts == (1, 0, 0)
            assert only_worker(pool).state == "busy"
        assert pool.counts == (1, 1, 0)
        assert only_worker(pool).served == 2


async def test_a_failed_multiplex_worker_ends_with_its_last_lease(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        work = await workshop.work("report", multiplex=True)
        async with workshop.lease(pool, work) as worker:
            pid = read_report(await workshop.perform(worker, work))["pid"]
            with pytest.raises(ValueError, match="outputs"):
                async with workshop.lease(pool, work):
                    raise ValueError("outputs")
            assert read_report(await workshop.perform(worker, work))["pid"] == pid
            assert read_report(await workshop.run(pool, work))["pid"] != pid
        await wait_until_gone(pid)


async def test_a_worker_that_recovers_holds_up_its_pool_and_not_the_caller(  # WORKERS 8.8, PWK-15
    workshop: Workshop,
) -> None:
    async with workshop.pool(cancel_grace_seconds=3600) as pool:
        work = await workshop.work("hang", cancellable=True)
        with trio.CancelScope() as scope:
            async with workshop.lease(pool, work) as worker, trio.open_nursery() as nursery:
                nursery.start_soon(workshop.perform, worker, work)
                while not worker.usable:  # until its process was asked for
                    await trio.lowlevel.checkpoint()
                await wait_until_started(worker)
                await trio.testing.wait_all_tasks_blocked(0.01)
                scope.cancel()
        assert scope.cancelled_caught
        assert only_worker(pool).state == "recovering"
        assert pool.counts == (1, 0, 0)
        report = await workshop.report(pool, cancellable=True)
        assert report["count"] == 1, "the place of one that recovers is nobody else's"
        assert pool.report().misses == {"first": 1, "busy": 1}


async def test_one_request_that_was_given_up_costs_its_siblings_nothing(workshop: Workshop) -> None:
    options: dict[str, Any] = {"multiplex": True, "cancellable": True}
    async with workshop.pool(cancel_grace_seconds=3600) as pool:
        work = await workshop.work("report", **options)
        hanging = await workshop.work("hang", **options)
        async with workshop.lease(pool, work) as worker:
            await workshop.perform(worker, work)
            with trio.CancelScope() as scope:
                async with workshop.lease(pool, hanging), trio.open_nursery() as nursery:
                    await ask(workshop, worker, hanging, nursery)
                    scope.cancel()
            assert worker.recovering
            assert only_worker(pool).in_flight == 2
        assert only_worker(pool).in_flight == 1
        async with workshop.lease(pool, work) as again:
            assert again is worker
            with pytest.raises(ValueError, match="outputs"):
                async with workshop.lease(pool, work):
                    raise ValueError("outputs")
            async with workshop.lease(pool, work) as fresh:
                assert fresh is not worker


async def ask(
    workshop: Workshop, worker: Worker[InputRoot], work: Work, nursery: trio.Nursery
) -> None:
    """Send a request, and return once it is on its way."""
    await worker.folder.lay_out(work.tree)
    request = await build_request(work.plan, work.action, work.tree, workshop.blobs)
    nursery.start_soon(worker.perform, *request)
    # Nothing is in a thread any more, which would count as blocked.
    await trio.testing.wait_all_tasks_blocked(0.01)


async def wait_until_started(worker: Worker[InputRoot]) -> None:
    while await worker.measure_memory() is None:
        await trio.lowlevel.checkpoint()


async def test_one_that_does_not_recover_is_ended_and_its_place_free(workshop: Workshop) -> None:
    async with workshop.pool(cancel_grace_seconds=0, max_workers=1) as pool:
        work = await workshop.work("hang", cancellable=True)
        with trio.CancelScope() as scope:
            async with workshop.lease(pool, work) as worker, trio.open_nursery() as nursery:
                nursery.start_soon(workshop.perform, worker, work)
                await wait_until_started(worker)
                await trio.testing.wait_all_tasks_blocked(0.01)
                scope.cancel()
        assert (await workshop.report(pool))["count"] == 1


# --- folders and logs


async def test_each_process_has_folders_of_its_own(workshop: Workshop) -> None:  # WORKERS 8.9
    async with workshop.pool() as pool:
        work = await workshop.work("report")
        async with workshop.lease(pool, work) as one, workshop.lease(pool, work) as two:
            for worker in (one, two):
                report = read_report(await workshop.perform(worker, work))
                temporary = worker.spec.temporary_directory
                assert report["folder"] == str(worker.spec.root)
                assert report["environment"]["HOME"] == str(temporary / "home")
                assert report["environment"]["TMPDIR"] == str(temporary / "tmp")
                assert (temporary / "tmp").is_dir()
            assert one.spec.root.parent != two.spec.root.parent
            assert one.log.parent == workshop.folder / "workers" / "logs"
            assert one.log.name == "worker-1-Tool_Run.log"


async def test_the_newest_logs_of_ended_workers_are_kept(workshop: Workshop) -> None:
    logs = workshop.folder / "workers" / "logs"
    async with workshop.pool(kept_logs=2) as pool:
        for _ in range(4):
            with pytest.raises(Exception, match="exited with status 3"):
                await workshop.run(pool, await workshop.work("die", "3"))
        while len(list(logs.iterdir())) > 2:
            await trio.lowlevel.checkpoint()
        kept = sorted(log.name for log in logs.iterdir())
        assert kept == ["worker-3-Tool_Run.log", "worker-4-Tool_Run.log"]
        assert "dying words" in (logs / kept[-1]).read_text()


async def test_a_folder_that_withstands_costs_no_more_than_itself(workshop: Workshop) -> None:
    # For instance one that an action has made immutable: its log must not be in anybody's way.
    class Withstanding(WorkerRoot):
        async def remove(self) -> None:
            await super().remove()
            raise Unavailable("this folder withstands")

    def open_folder(_: WorkerPlan, top: Path) -> InputRoot:
        return Withstanding(top, workshop.blobs)

    workshop.open_root = open_folder  # type: ignore[method-assign]  # one of another kind
    async with workshop.pool(kept_logs=1) as pool:
        for _ in range(2):
            with pytest.raises(Exception, match="exited with status 3"):
                await workshop.run(pool, await workshop.work("die", "3"))
    # The pool says itself that nothing is left, logs among it.


# --- reports


async def test_the_report_says_why_there_was_no_warm_worker(
    workshop: Workshop,
) -> None:  # WORKERS 8.15
    with structlog.testing.capture_logs() as logged:
        async with workshop.pool() as pool:
            work = await workshop.work("report")
            async with workshop.lease(pool, work) as worker:
                await workshop.perform(worker, work)
                await workshop.run(pool, work)
            await workshop.run(pool, work)
            await workshop.report(pool, startup=["--target=//a:b"])
            await workshop.report(pool, name="Other")
            report = pool.report()
    assert report.hits == 2, "the last one shares a key, whatever its name"
    assert report.misses == {"first": 1, "busy": 1, "key": 1, "key:argv": 1}
    first, second = report.keys
    assert (first.hits, first.misses) == (2, {"first": 1, "busy": 1})
    assert second.misses == {"key": 1}
    assert second.nearest_key_differs_in == ("argv",)
    created = [entry for entry in logged if entry["event"] == "worker created"]
    assert [entry["reason"] for entry in created] == ["first", "busy", "key"]
    assert created[-1]["nearest_key_differs_in"] == ("argv",)
    assert {entry["tools_by"] for entry in created} == {"marked"}
    states = [worker.state for key in report.keys for worker in key.workers]
    assert states == ["idle"] * 3
    assert report.places == 3


async def test_the_report_knows_keys_whose_workers_have_gone(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        with pytest.raises(Exception, match="exited"):
            await workshop.run(pool, await workshop.work("die", "3"))
        await wait_for_places(pool, 0)
        key = only_key(pool)
        assert key.mnemonic == "Tool/Run"
        assert "exited with status 3" in key.last_error
        assert not key.workers or key.workers[0].state == "ending"
        await workshop.report(pool)
        assert only_key(pool).misses == {"first": 1, "failed": 1}


# --- the end


async def test_a_pool_ends_its_workers_side_by_side(  # PWK-16
    workshop: Workshop, tmp_path: Path
) -> None:
    words = [tmp_path / str(n) for n in range(3)]
    for word in words:
        os.mkfifo(word)

    async def hear_all() -> None:
        # Neither the first nor the last of them ends before the second has been asked to.
        for n in (1, 0, 2):
            await trio.to_thread.run_sync(words[n].read_text, abandon_on_cancel=True)

    async with trio.open_nursery() as nursery, workshop.pool(shutdown_grace_seconds=3600) as pool:
        for word in words:
            await workshop.report(pool, startup=[f"--farewell={word}"])
        nursery.start_soon(hear_all)


def pid_of(worker: Worker[InputRoot]) -> int:
    return int(worker.process_name.removeprefix("process "))


async def test_a_storm_leaks_neither_processes_nor_places(workshop: Workshop) -> None:
    """WORKERS 8.8: clients that change their minds at any moment, with workers of every sort."""
    chance = random.Random(3)
    started: set[int] = set()
    workers: set[Worker[InputRoot]] = set()
    terms = [
        WorkerTerms(max_requests=3, max_workers_per_key=2),
        WorkerTerms(max_requests_in_flight=3, max_requests=7, max_workers_per_mnemonic=2),
        WorkerTerms(high_priority=True, max_workers_per_key=1),
    ]
    options: dict[str, Any] = {"max_workers": 5, "cancel_grace_seconds": 0.05, "idle_seconds": 0.05}
    async with workshop.pool(quit_after_invocation_seconds=0.02, **options) as pool:
        works = [
            await workshop.work(
                command,
                *rest,
                startup=[f"--{n}"],
                terms=term,
                multiplex=term.max_requests_in_flight > 1,
                cancellable=cancellable,
                invocation=f"{n}",
            )
            for n, term in enumerate(terms)
            for command, *rest in (
                ["report"],
                ["report"],
                ["hang"],
                ["answer-and-die"],
                ["die", "1"],
            )
            for cancellable in (True, False)
        ]

        async def run(patience_seconds: float) -> None:
            work = chance.choice(works)
            avoid_warm = chance.random() < 0.1
            with trio.move_on_after(patience_seconds):
                try:
                    async with workshop.lease(pool, work, avoid_warm=avoid_warm) as worker:
                        workers.add(worker)
                        await workshop.perform(worker, work)
                except Exception:  # noqa: BLE001  # whatever it fails of, nothing may be lost
                    return

        while len(started) < 5:
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(run, chance.choice([0, 0.02, 0.1, 0.3, 0.6]))
                nursery.start_soon(pool.measure_memory)
            started.update(pid_of(worker) for worker in workers if worker.served)
        assert pool.counts.waiting == 0
        # Whatever is left is idle, and expires.
        await wait_for_places(pool, 0)
        assert (await workshop.report(pool))["count"] == 1
    assert not any(map(is_alive, started))
