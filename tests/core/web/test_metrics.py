"""Metrics as whoever scrapes them gets them: over HTTP, from a server that runs."""

from __future__ import annotations

import http.client
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from stoker.errors import ConfigurationError
from stoker.scheduler.scheduler import open_scheduler
from stoker.scheduler.settings import SchedulerSettings
from stoker.web.metrics import ServerMetrics
from stoker.web.server import open_metrics
from stoker.workers.key import WorkerKey
from stoker.workers.report import KeyReport, PoolReport, WorkerReport

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


async def test_an_address_that_is_taken_is_told() -> None:
    async with open_pages({}) as address:
        with pytest.raises(ConfigurationError, match=f"metrics_listen.*{address}"):
            async with open_metrics(address, CollectorRegistry()):
                pass
