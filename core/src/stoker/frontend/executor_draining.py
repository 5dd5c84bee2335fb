"""Executors that are to take nothing new, and that are to take actions again (SCH-06)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

import structlog

from stoker.protos import admin_pb2 as admin
from stoker.scheduler.floor import ExecutorState
from stoker.scheduler.scheduler import Scheduler
from stoker.workers.report import WorkerCounts

log = structlog.get_logger(__name__)

_REASON = "is drained: somebody has told it to take nothing new"


class Workers(Protocol):
    """What is asked of a pool of workers."""

    @property
    def counts(self) -> WorkerCounts: ...
    def drain(self) -> None: ...
    def resume(self) -> None: ...


class ExecutorDraining:
    """Tells the scheduler, and the pools of workers by the names of their executors."""

    def __init__(self, scheduler: Scheduler, pools: Mapping[str, Workers]) -> None:
        self._scheduler = scheduler
        self._pools = pools

    def drain(self, executor: str) -> None:
        """`executor` takes nothing new; what it has it ends, and its workers go once idle."""
        log.info("executor is drained", executor=executor)
        self._scheduler.detach(executor, _REASON)
        self._pools[executor].drain()

    def resume(self, executor: str) -> None:
        """`executor` takes actions again."""
        log.info("executor takes actions again", executor=executor)
        self._pools[executor].resume()
        self._scheduler.attach(executor)

    def statuses(self, executors: Collection[str]) -> Iterator[admin.ExecutorStatus]:
        """How each stands."""
        for state in self._scheduler.executors():
            if state.name in executors:
                yield self._status(state)

    def _status(self, state: ExecutorState) -> admin.ExecutorStatus:
        lines = self._scheduler.waiting_by_executors()
        return admin.ExecutorStatus(
            executor=state.name,
            state=_word(state),
            busy_slots=state.busy_slots,
            free_slots=state.free_slots,
            waiting=sum(line.tasks for names, line in lines.items() if state.name in names),
            workers=self._pools[state.name].counts.places,
        )


def _word(state: ExecutorState) -> str:
    if state.away is None:
        return "serving"
    return "draining" if state.busy_slots else "drained"
