"""The pool: who gets which worker, how many there are, and how they end."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from stoker.errors import FailedPrecondition, Unavailable
from stoker.execution.input_root import InputRoot
from stoker.spi import ProcessSpec, ProcessUser, Sandbox
from stoker.workers.failure import WorkerFailed
from stoker.workers.plan import WorkerTerms
from stoker.workers.pool import WorkerPool, open_worker_pool
from stoker.workers.settings import WorkerSettings
from stoker_exec_local import open_local

from .workshop import PROTOCOLS, Work, Workshop, is_alive, read_report, wait_until_gone


async def test_the_last_worker_to_rest_is_the_first_to_work(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        work = await workshop.work("report")
        async with workshop.lease(pool, work) as first, workshop.lease(pool, work) as second:
            await workshop.perform(first, work)
            await workshop.perform(second, work)
        assert pool.counts == (2, 2, 0)
        # The inner context was left first, so that `first` was the last to rest.
        async with workshop.lease(pool, work) as third:
            assert third is first
            assert not third.fresh
            assert third.served == 1


@pytest.mark.parametrize(
    "other",
    [
        {"startup": ["--other"]},
        {"tool": b"# changed\n" + Path(__file__).with_name("tool.py").read_bytes()},  # PWK-11
        {"environment": {"NAME": "other"}},
        {"cache-silo-key": "other"},  # PWK-12
        {"persistentWorkerKey": "other"},
    ],
    ids=["startup", "tool", "environment", "silo", "client-key"],
)
async def test_another_key_means_another_worker(
    workshop: Workshop, other: dict[str, object]
) -> None:
    async with workshop.pool() as pool:
        first = await workshop.report(pool)
        second = await workshop.report(pool, **other)
        assert first["pid"] != second["pid"]
        assert (await workshop.report(pool))["pid"] == first["pid"]


async def test_a_full_key_is_waited_for(workshop: Workshop) -> None:
    one = WorkerTerms(max_workers_per_key=1)
    async with workshop.pool() as pool:
        work = await workshop.work("report", terms=one)
        async with trio.open_nursery() as nursery, workshop.lease(pool, work) as worker:
            report = read_report(await workshop.perform(worker, work))
            nursery.start_soon(workshop.run, pool, work)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.counts == (1, 0, 1)
            # Another key is not held up.
            assert (await workshop.report(pool, startup=["--other"]))["count"] == 1
        async with workshop.lease(pool, work) as worker:
            assert worker.served == 2
            assert read_report(await workshop.perform(worker, work))["pid"] == report["pid"]


async def test_leases_are_granted_first_come_first_served(workshop: Workshop) -> None:
    order: list[int] = []

    async with workshop.pool(max_workers=1) as pool:
        work = await workshop.work("nothing")

        async def lease(number: int) -> None:
            async with workshop.lease(pool, work) as worker:
                order.append(number)
                await workshop.perform(worker, work)

        async with trio.open_nursery() as nursery, workshop.lease(pool, work) as worker:
            await workshop.perform(worker, work)
            for number in range(5):
                nursery.start_soon(lease, number)
                await trio.testing.wait_all_tasks_blocked()
            assert order == []
    assert order == [0, 1, 2, 3, 4]


async def test_the_idle_worker_of_another_key_makes_way(workshop: Workshop) -> None:
    async with workshop.pool(max_workers=2) as pool:
        oldest = await workshop.report(pool, startup=["--one"])
        older = await workshop.report(pool, startup=["--two"])
        await workshop.report(pool, startup=["--three"])
        assert not is_alive(oldest["pid"])
        assert pool.counts == (2, 2, 0)
        assert (await workshop.report(pool, startup=["--two"]))["pid"] == older["pid"]


async def test_a_worker_that_ignores_the_end_makes_way_at_once(workshop: Workshop) -> None:
    startup = ["--ignore-eof", "--ignore-term"]
    async with workshop.pool(max_workers=1, shutdown_grace_seconds=3600) as pool:
        stubborn = await workshop.report(pool, startup=startup)
        await workshop.report(pool)
        assert not is_alive(stubborn["pid"])


async def test_busy_workers_are_waited_for_whatever_their_key(workshop: Workshop) -> None:
    async with workshop.pool(max_workers=1) as pool:
        work = await workshop.work("report")
        other = await workshop.work("report", startup=["--other"])
        async with trio.open_nursery() as nursery, workshop.lease(pool, work) as worker:
            await workshop.perform(worker, work)
            nursery.start_soon(workshop.run, pool, other)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(workshop.run, pool, work)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.counts == (1, 0, 2)
        async with workshop.lease(pool, work) as worker:
            # The other key came first, so it had the only place in between.
            assert worker.served == 1


async def test_an_idle_worker_expires(workshop: Workshop, tmp_path: Path) -> None:
    farewell = tmp_path / "farewell"
    async with workshop.pool(idle_seconds=0.05) as pool:
        pid = (await workshop.report(pool, startup=[f"--farewell={farewell}"]))["pid"]
        await wait_until_gone(pid)
        assert farewell.read_text() == f"{pid}\n"
        while pool.counts.places:
            await trio.lowlevel.checkpoint()


async def test_a_leased_worker_does_not_expire(workshop: Workshop) -> None:
    async with workshop.pool(idle_seconds=0.05) as pool:
        work = await workshop.work("report")
        pid = (await workshop.report(pool))["pid"]
        async with workshop.lease(pool, work) as worker:
            deadline = trio.current_time() + 0.15
            while trio.current_time() < deadline:
                await trio.lowlevel.checkpoint()
            assert read_report(await workshop.perform(worker, work))["pid"] == pid


async def test_a_pool_ends_politely(workshop: Workshop, tmp_path: Path) -> None:
    farewell = tmp_path / "farewell"
    async with workshop.pool(shutdown_grace_seconds=3600) as pool:
        report = await workshop.report(pool, startup=[f"--farewell={farewell}"])
    assert farewell.read_text() == f"{report['pid']}\n"


async def test_a_worker_that_ignores_the_end_is_asked_to_terminate(
    workshop: Workshop, tmp_path: Path
) -> None:
    word = tmp_path / "word"
    startup = ["--ignore-eof", f"--heeds-term={word}"]
    async with workshop.pool(shutdown_grace_seconds=1) as pool:
        report = await workshop.report(pool, startup=startup)
    assert word.read_text() == f"{report['pid']}\n"


@pytest.mark.parametrize(
    ("startup", "grace_seconds"),
    [(["--ignore-eof"], 0.1), (["--ignore-eof", "--ignore-term"], 0.1), ([], 0)],
)
async def test_a_pool_ends_though_a_worker_does_not(
    workshop: Workshop, startup: list[str], grace_seconds: float
) -> None:
    async with workshop.pool(shutdown_grace_seconds=grace_seconds) as pool:
        pid = (await workshop.report(pool, startup=startup))["pid"]
    assert not is_alive(pid)


async def test_a_cancelled_pool_leaves_nothing(workshop: Workshop) -> None:
    pids = []
    with trio.CancelScope() as scope:
        async with workshop.pool() as pool:
            pids.append((await workshop.report(pool))["pid"])
            work = await workshop.work("report")
            async with workshop.lease(pool, work) as worker:
                pids.append(read_report(await workshop.perform(worker, work))["pid"])
                scope.cancel()
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not any(map(is_alive, pids))


async def test_a_lease_left_by_an_exception_ends_the_process(workshop: Workshop) -> None:
    async with workshop.pool(max_workers=1) as pool:
        work = await workshop.work("report")
        pids = []

        async def fail() -> None:
            async with workshop.lease(pool, work) as worker:
                pids.append(read_report(await workshop.perform(worker, work))["pid"])
                raise ValueError("outputs")

        with pytest.raises(ValueError, match="outputs"):
            await fail()
        # The only place is free once the process is gone.
        assert (await workshop.report(pool))["count"] == 1
        assert not any(map(is_alive, pids))


async def test_a_lease_that_starts_nothing_costs_nothing(workshop: Workshop) -> None:
    async with workshop.pool(max_workers=1) as pool:
        work = await workshop.work("report")
        async with workshop.lease(pool, work) as unused:
            assert unused.fresh
        async with workshop.lease(pool, work) as worker:
            assert worker is not unused
            assert worker.fresh


async def test_the_folder_stays_until_the_lease_ends(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        work = await workshop.work("die", "1")
        async with workshop.lease(pool, work) as worker:
            with pytest.raises(WorkerFailed):
                await workshop.perform(worker, work)
            while pool.counts.places:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert (worker.spec.root / "tool.py").exists()
            assert worker.log.read_text() == "dying words\n"
        await wait_until_removed(worker.spec.root)


async def wait_until_removed(folder: Path) -> None:
    while folder.exists():  # a folder has no event
        await trio.sleep(0)


async def test_the_folder_of_a_worker_is_never_replaced(workshop: Workshop) -> None:
    async with workshop.pool() as pool:
        work = await workshop.work("report")
        inodes = set()
        for _ in range(3):
            async with workshop.lease(pool, work) as worker:
                await workshop.perform(worker, work)
                inodes.add(worker.spec.root.stat().st_ino)
        assert len(inodes) == 1


async def test_a_folder_that_cannot_be_used_is_told(workshop: Workshop) -> None:
    (workshop.folder / "file").write_text("")
    async with (
        open_local() as strategy,
        open_worker_pool(
            strategy=strategy,
            protocols=PROTOCOLS,
            folder=workshop.folder / "file" / "workers",
            open_folder=workshop.open_root,
            settings=WorkerSettings(),
        ) as pool,
    ):
        with pytest.raises(Unavailable, match="file"):
            await workshop.report(pool)


# The chaos of a client that changes its mind: places and processes must all come back.
async def test_random_cancellation_leaks_nothing(workshop: Workshop) -> None:
    chance = random.Random(4)
    pids: set[int] = set()
    served = 0

    async with workshop.pool(max_workers=4) as pool:
        works = [await workshop.work("report", startup=[f"--{n}"]) for n in range(3)]

        async def run(patience_seconds: float) -> None:
            nonlocal served
            work = chance.choice(works)
            with trio.move_on_after(patience_seconds):
                async with workshop.lease(pool, work) as worker:
                    pids.add(read_report(await workshop.perform(worker, work))["pid"])
                    served += 1

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                patience_seconds = chance.choice([0, 0.01, 0.1, 1, 60])
                nursery.start_soon(run, patience_seconds)
        assert pool.counts.places <= 4
        assert pool.counts.waiting == 0
        while pool.counts.places > pool.counts.idle:
            await trio.lowlevel.checkpoint()
        for work in works:
            await workshop.run(pool, work)
    assert served >= 20
    assert not any(map(is_alive, pids))


# The same with workers that die, so that idle ones are lost between two leases.
async def test_dying_workers_leak_no_places(workshop: Workshop) -> None:
    chance = random.Random(5)
    succeeded: list[bool] = []

    async with workshop.pool(max_workers=2) as pool:

        async def run(command: str) -> None:
            work = await workshop.work(command, "0")
            try:
                await workshop.run(pool, work)
            except WorkerFailed:
                succeeded.append(False)
            else:
                succeeded.append(True)

        async with trio.open_nursery() as nursery:
            for _ in range(60):
                command = chance.choice(["report", "answer-and-die", "die", "wrong-id"])
                nursery.start_soon(run, command)
        assert len(succeeded) == 60
        # One that died after its last answer may still be leased: that costs one more failure.
        while not succeeded[-1]:
            await run("report")
    assert False in succeeded


class RecordingSandbox(Sandbox):
    """Marks the environment of what it encloses, and counts what is inside."""

    def __init__(self) -> None:
        self.inside = 0

    @asynccontextmanager
    async def enclose(self, spec: ProcessSpec) -> AsyncIterator[ProcessSpec]:
        self.inside += 1
        try:
            yield replace(spec, environment={**spec.environment, "ENCLOSED": "1"})
        finally:
            self.inside -= 1


class BrokenSandbox(RecordingSandbox):
    """Encloses nothing."""

    @asynccontextmanager
    async def enclose(self, spec: ProcessSpec) -> AsyncIterator[ProcessSpec]:
        if spec.argv:
            raise FailedPrecondition("no user namespaces here")
        yield spec


async def test_a_worker_lives_within_its_sandbox(workshop: Workshop) -> None:
    sandbox = RecordingSandbox()
    async with workshop.pool(sandbox=sandbox) as pool:
        for _ in range(2):
            assert (await workshop.report(pool))["environment"]["ENCLOSED"] == "1"
            assert sandbox.inside == 1
    assert sandbox.inside == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_what_a_worker_writes_to_belongs_to_its_user(workshop: Workshop) -> None:
    # As /dev/stderr, which a tool opens by name, would be refused to it otherwise.
    user = ProcessUser(65534, 65534)
    async with workshop.pool(user=user) as pool:
        work = await workshop.work("report")
        async with workshop.lease(pool, work) as worker:
            temporary = worker.spec.temporary_directory
            for path in (worker.log, temporary, temporary / "home", temporary / "tmp"):
                status = path.stat()
                assert (status.st_uid, status.st_gid, status.st_mode & 0o077) == (*user, 0)


async def test_nothing_runs_where_the_sandbox_fails(workshop: Workshop) -> None:
    async with workshop.pool(sandbox=BrokenSandbox()) as pool:
        for _ in range(20):
            with pytest.raises(FailedPrecondition, match="no user namespaces"):
                await workshop.report(pool)


async def test_a_pool_that_is_closed_refuses_whoever_would_get_a_worker(
    workshop: Workshop,
) -> None:
    refused = []

    async def wait(pool: WorkerPool[InputRoot], work: Work) -> None:
        with pytest.raises(Unavailable, match="closed"):
            await workshop.run(pool, work)
        refused.append(work)

    async with trio.open_nursery() as nursery:
        async with workshop.pool(max_workers=1) as pool:
            work = await workshop.work("report")
            async with workshop.lease(pool, work):
                nursery.start_soon(wait, pool, work)
                await trio.testing.wait_all_tasks_blocked()
                pool.close()
                # Of those in flight nothing is taken away.
                assert not refused
        await wait(pool, work)
    assert len(refused) == 2
