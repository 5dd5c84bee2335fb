"""Metrics as whoever scrapes them gets them: over HTTP, from a server that runs."""

from __future__ import annotations

import http.client
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from stoker.errors import ConfigurationError
from stoker.resources import Capacity
from stoker.scheduler.matching import Offer
from stoker.scheduler.scheduler import Scheduler, open_scheduler
from stoker.scheduler.settings import SchedulerSettings
from stoker.web.metrics import ServerMetrics
from stoker.web.server import open_metrics
from stoker.workers.key import WorkerKey
from stoker.workers.report import KeyReport, PoolReport, WorkerReport

from ..scheduler.actions import make_action

Sample = tuple[str, frozenset[tuple[str, str]]]

KEY = WorkerKey(
    namespace="main",
    silo="",
    platform=(),
    argv=("javac", "--persistent_worker"),
    environment=(),
    working_directory="",
    protocol="proto",
    tools="ab" * 32,
)
IDLE = WorkerReport(
    name="worker-1-Javac",
    process="process 4711",
    state="idle",
    in_flight=0,
    served=7,
    memory_bytes=1000,
    age_seconds=60,
    idle_seconds=1,
    log="/var/log/worker-1-Javac.log",
)
REPORT = PoolReport(
    max_workers=4,
    places=1,
    waiting=2,
    memory_bytes=1000,
    max_memory_bytes=None,
    hits=6,
    misses={"first": 1, "key": 1, "key:argv": 1},
    ended={"expired": 1},
    keys=(
        KeyReport(
            key=KEY,
            mnemonic="Javac",
            workers=(IDLE,),
            waiting=2,
            hits=6,
            misses={"key": 1},
            nearest_key_differs_in=("argv",),
            last_error="",
        ),
    ),
)


async def get(address: str, path: str) -> tuple[int, str]:
    def blocking() -> tuple[int, str]:
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()

    return await trio.to_thread.run_sync(blocking)


@asynccontextmanager
async def open_pages(pools: Mapping[str, Callable[[], PoolReport]]) -> AsyncIterator[str]:
    async with (
        open_scheduler({}, SchedulerSettings()) as scheduler,
        open_metrics("127.0.0.1:0", ServerMetrics(scheduler, pools)) as address,
    ):
        yield address


async def scrape(pools: Mapping[str, Callable[[], PoolReport]]) -> dict[Sample, float]:
    async with open_pages(pools) as address:
        return await samples_at(address)


async def samples_at(address: str) -> dict[Sample, float]:
    status, text = await get(address, "/metrics")
    assert status == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


async def test_what_workers_cost_and_save() -> None:
    samples = await scrape({"linux": lambda: REPORT})
    leases = "stoker_worker_leases_total"
    assert samples[sample(leases, executor="linux", worker="warm", reason="")] == 6
    assert samples[sample(leases, executor="linux", worker="new", reason="first")] == 1
    difference = sample("stoker_worker_key_differences_total", executor="linux", component="argv")
    assert samples[difference] == 1
    assert samples[sample("stoker_worker_processes", executor="linux", state="idle")] == 1
    assert samples[sample("stoker_worker_processes", executor="linux", state="busy")] == 0
    assert samples[sample("stoker_worker_memory_bytes", executor="linux")] == 1000
    assert samples[sample("stoker_worker_waiting_actions", executor="linux")] == 2
    assert samples[sample("stoker_workers_ended_total", executor="linux", reason="expired")] == 1


async def test_actions_by_stage() -> None:
    samples = await scrape({})
    assert samples[sample("stoker_actions", stage="queued")] == 0
    assert samples[sample("stoker_actions", stage="executing")] == 0


async def test_what_waits_for_which_executors_and_what_they_have_free() -> None:  # SCH-08
    capacity = Capacity.of_executor(slots=4, cpus=4, memory_bytes=2**30, default_memory_bytes=None)
    offers = {name: Offer({}, capacity) for name in ("linux", "spare")}

    async def wait_for_work(scheduler: Scheduler, executor: str) -> None:
        async with scheduler.lease(executor):
            await trio.sleep_forever()

    async with (
        open_scheduler(offers, SchedulerSettings()) as scheduler,
        open_metrics("127.0.0.1:0", ServerMetrics(scheduler, {})) as address,
        trio.open_nursery() as nursery,
    ):
        scheduler.detach("spare", "is drained")
        for executor in ("linux", "spare", "spare"):
            nursery.start_soon(wait_for_work, scheduler, executor)
        await trio.testing.wait_all_tasks_blocked()
        for name, executors in (("a", ["linux"]), ("b", ["linux"]), ("c", [*offers])):
            scheduler.submit(make_action(name), priority=0, executors=executors)
        async with scheduler.lease("linux"):
            pass  # lost, and queued again
        before = trio.current_time()
        samples = await samples_at(address)
        assert trio.current_time() > before
        for names, count in (("linux", 1), ("spare", 0), ("linux,spare", 1)):
            assert samples[sample("stoker_queued_actions", executors=names)] == count
            age = samples[sample("stoker_oldest_queued_seconds", executors=names)]
            assert (age > 0) == (count > 0)
        slots = [("linux", "busy", 1), ("linux", "free", 0), ("spare", "busy", 0)]
        for executor, state, count in [*slots, ("spare", "free", 2)]:
            assert samples[sample("stoker_slots", executor=executor, state=state)] == count
        assert samples[sample("stoker_lost_actions_total", executor="linux")] == 1
        assert samples[sample("stoker_lost_actions_total", executor="spare")] == 0
        assert samples[sample("stoker_executor_drained", executor="linux")] == 0
        assert samples[sample("stoker_executor_drained", executor="spare")] == 1
        nursery.cancel_scope.cancel()


async def test_an_address_that_is_taken_is_told() -> None:
    async with open_pages({}) as address:
        with pytest.raises(ConfigurationError, match=f"metrics_listen.*{address}"):
            async with open_metrics(address, CollectorRegistry()):
                pass
