"""Metrics of the server, in the words of Prometheus: counted where things happen, read here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stoker.scheduler.floor import ExecutorState, WaitingLine
from stoker.scheduler.scheduler import Scheduler
from stoker.workers.report import PoolReport


class ServerMetrics(Collector):
    """What `scheduler` and the worker pools of executors, by name, tell when they are asked."""

    def __init__(self, scheduler: Scheduler, pools: Mapping[str, Callable[[], PoolReport]]) -> None:
        self._scheduler = scheduler
        self._pools = pools

    def collect(self) -> Iterable[Metric]:
        actions = GaugeMetricFamily("stoker_actions", "Actions by stage.", labels=["stage"])
        actions.add_metric(["queued"], self._scheduler.queued)
        actions.add_metric(["executing"], self._scheduler.executing)
        yield actions
        yield from _lines(self._scheduler)
        yield from _slots(self._scheduler.executors())
        reports = {executor: read() for executor, read in self._pools.items()}
        yield _processes(reports)
        yield _memory(reports)
        yield _gauge(
            "stoker_worker_waiting_actions",
            "Actions that wait for a persistent worker.",
            {executor: report.waiting for executor, report in reports.items()},
        )
        yield _leases(reports)
        yield _differences(reports)
        yield _ended(reports)


def _lines(scheduler: Scheduler) -> Iterable[Metric]:
    """What waits, by the executors that could run it: those that it takes more of (SCH-08)."""
    # Executors that nothing waits for are told of too, so that a series does not end.
    lines = {frozenset([state.name]): _NOTHING for state in scheduler.executors()}
    labels = {
        ",".join(sorted(names)): line
        for names, line in {**lines, **scheduler.waiting_by_executors()}.items()
    }
    yield _gauge(
        "stoker_queued_actions",
        "Actions that wait, by all the executors that could run them.",
        {names: line.tasks for names, line in labels.items()},
        label="executors",
    )
    yield _gauge(
        "stoker_oldest_queued_seconds",
        "How long the first of them has waited; 0 where none waits.",
        {names: line.seconds for names, line in labels.items()},
        label="executors",
    )


_NOTHING = WaitingLine(0, 0.0)


def _slots(states: Iterable[ExecutorState]) -> Iterable[Metric]:
    slots = GaugeMetricFamily(
        "stoker_slots",
        "Slots that have an action, or clean up after one, and those that wait for one.",
        labels=["executor", "state"],
    )
    lost = CounterMetricFamily(
        "stoker_lost_actions",
        "How often an executor lost an action, which was run again then, or failed.",
        labels=["executor"],
    )
    drained = {}
    for state in states:
        slots.add_metric([state.name, "busy"], state.busy_slots)
        slots.add_metric([state.name, "free"], state.free_slots)
        lost.add_metric([state.name], state.lost)
        drained[state.name] = 0 if state.away is None else 1
    yield slots
    yield lost
    yield _gauge("stoker_executor_drained", "Whether it takes nothing new.", drained)


def _processes(reports: Mapping[str, PoolReport]) -> Metric:
    family = GaugeMetricFamily(
        "stoker_worker_processes", "Persistent workers by state.", labels=["executor", "state"]
    )
    for executor, report in reports.items():
        states = Counter(worker.state for key in report.keys for worker in key.workers)
        for state in ("starting", "idle", "busy", "recovering", "ending"):
            family.add_metric([executor, state], states[state])
    return family


def _memory(reports: Mapping[str, PoolReport]) -> Metric:
    return _gauge(
        "stoker_worker_memory_bytes",
        "What all persistent workers used together when it was measured last.",
        {
            executor: report.memory_bytes
            for executor, report in reports.items()
            if report.memory_bytes is not None
        },
    )


def _gauge(name: str, says: str, values: Mapping[str, float], label: str = "executor") -> Metric:
    family = GaugeMetricFamily(name, says, labels=[label])
    for labelled, value in values.items():
        family.add_metric([labelled], value)
    return family


def _leases(reports: Mapping[str, PoolReport]) -> Metric:
    family = CounterMetricFamily(
        "stoker_worker_leases",
        "Actions given to a persistent worker: a warm one, or a new one for the reason given.",
        labels=["executor", "worker", "reason"],
    )
    for executor, report in reports.items():
        family.add_metric([executor, "warm", ""], report.hits)
        for reason, count in report.misses.items():
            if not reason.startswith("key:"):
                family.add_metric([executor, "new", reason], count)
    return family


def _differences(reports: Mapping[str, PoolReport]) -> Metric:
    family = CounterMetricFamily(
        "stoker_worker_key_differences",
        "New worker keys by the components in which the nearest other key differed.",
        labels=["executor", "component"],
    )
    for executor, report in reports.items():
        for reason, count in report.misses.items():
            if reason.startswith("key:"):
                family.add_metric([executor, reason.removeprefix("key:")], count)
    return family


def _ended(reports: Mapping[str, PoolReport]) -> Metric:
    family = CounterMetricFamily(
        "stoker_workers_ended",
        "Persistent workers that have ended, by the reason.",
        labels=["executor", "reason"],
    )
    for executor, report in reports.items():
        for reason, count in report.ended.items():
            family.add_metric([executor, reason], count)
    return family
