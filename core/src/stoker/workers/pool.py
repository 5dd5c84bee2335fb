"""The persistent workers of an executor: who has which, and how many there may be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Generic

import structlog
import trio

from stoker.action import LoadedAction
from stoker.alarm import Alarm
from stoker.errors import Unavailable
from stoker.spi import ExecutionStrategy, ProcessUser, WorkerProtocol
from stoker.workers.expiry import Expiry
from stoker.workers.failure import WorkerFailed
from stoker.workers.history import History
from stoker.workers.logs import WorkerLogs
from stoker.workers.making import Folder, FolderT, WorkerMaker
from stoker.workers.places import Places, Reason, Ticket
from stoker.workers.plan import WorkerPlan
from stoker.workers.report import PoolReport, WorkerCounts
from stoker.workers.resident import Resident
from stoker.workers.settings import WorkerSettings
from stoker.workers.survey import survey
from stoker.workers.verdict import end_by_itself, has_to_recover, reason_to_end
from stoker.workers.worker import Worker, WorkerMachinery

__all__ = ["Folder", "WorkerPool", "open_worker_pool"]

_log = structlog.get_logger(__name__)

MEASURE_SECONDS = 5.0
"""How often the memory of workers is measured, and how long that may take."""


@asynccontextmanager
async def open_worker_pool(
    *,
    strategy: ExecutionStrategy,
    protocols: Mapping[str, WorkerProtocol],
    folder: Path,
    open_folder: Callable[[WorkerPlan, Path], FolderT],
    settings: WorkerSettings,
    user: ProcessUser | None = None,
) -> AsyncIterator[WorkerPool[FolderT]]:
    """A pool that keeps its workers' folders in `folder`, which no pool has used before.

    `open_folder` is given each worker's own folder, in which ``root`` and ``tmp`` are made, and
    deletes it with all that is in it when asked to. What processes write to belongs to `user`, if
    they run as somebody else than the server.

    On leaving, idle workers are ended politely and others at once; no process is left, nor log.
    """
    maker = WorkerMaker(
        machinery=_machinery(strategy, settings),
        protocols=protocols,
        folder=folder,
        open_folder=open_folder,
        user=user,
        logs=WorkerLogs(folder / "logs", settings.kept_logs, user),
    )
    async with trio.open_nursery() as nursery:
        pool = WorkerPool(nursery, maker, settings)
        try:
            yield pool
        finally:
            pool.close()
    maker.remove_logs()


def _machinery(strategy: ExecutionStrategy, settings: WorkerSettings) -> WorkerMachinery:
    return WorkerMachinery(
        strategy=strategy,
        max_response_bytes=settings.max_response_bytes,
        max_log_bytes=settings.max_log_bytes,
        cancel_grace_seconds=settings.cancel_grace_seconds,
        shutdown_grace_seconds=settings.shutdown_grace_seconds,
    )


class WorkerPool(Generic[FolderT]):
    """Workers of any key, reused last in, first out. Calls may overlap."""

    def __init__(
        self, nursery: trio.Nursery, maker: WorkerMaker[FolderT], settings: WorkerSettings
    ) -> None:
        self._nursery = nursery
        self._maker = maker
        self._settings = settings
        self._places: Places[Resident[FolderT]] = Places(
            settings.max_workers, settings.max_memory_bytes, settings.max_worker_memory_bytes
        )
        self._residents: dict[Resident[FolderT], None] = {}
        self._history = History()
        self._expiry = Expiry(
            self._places,
            idle_seconds=settings.idle_seconds,
            quit_after_invocation_seconds=settings.quit_after_invocation_seconds,
        )
        self._closed = False
        self._drained = False
        self._upkeep = trio.CancelScope()
        self._alarm = Alarm(self._sweep)
        nursery.start_soon(self._keep_up)

    @property
    def protocols(self) -> Collection[str]:
        """The names of the protocols that its workers may speak."""
        return self._maker.protocols.keys()

    @property
    def counts(self) -> WorkerCounts:
        """How many workers there are now."""
        return WorkerCounts(self._places.held, self._places.idle, self._places.waiting)

    def report(self) -> PoolReport:
        """All that those who run the server may want to know, as it is at this moment."""
        return survey(
            self._settings, self._places, self._history, self._residents, trio.current_time()
        )

    # --- leases

    @asynccontextmanager
    async def lease(
        self,
        plan: WorkerPlan,
        action: LoadedAction,
        environment: Mapping[str, str],
        *,
        avoid_warm: bool = False,
    ) -> AsyncIterator[Worker[FolderT]]:
        """A worker for one request of `plan`, until the context is left. Waits for one.

        High priority goes first, then who came first. A multiplex worker may have several leases;
        with `avoid_warm` it is one that nobody has had before.

        A new worker gets `environment`, with HOME and TMPDIR set to folders of its own where that
        has neither. It has no process yet: `Worker.start` or `Worker.perform` starts it, once its
        root is laid out.

        A worker that cannot be used again is ended when its last lease is over, and its place is
        free once it is gone. So is one whose lease is left by an exception, unless that is a
        cancellation that the worker was told of: then the pool waits for its answer, not the
        caller. Raises Unavailable if there is no folder to be had, and once the pool is closed.
        """
        invocation = action.metadata.tool_invocation_id
        self._expiry.begin_action(invocation)
        try:
            resident = await self._take(plan, action, environment, avoid_warm=avoid_warm)
        except BaseException:
            self._end_action(invocation)
            raise
        resident.lease(invocation)
        failure: BaseException | None = None
        try:
            yield resident.worker
        except BaseException as error:
            failure = error
            raise
        finally:
            self._give_back(resident, invocation, failure)
            del failure  # it refers to this frame

    async def _take(
        self,
        plan: WorkerPlan,
        action: LoadedAction,
        environment: Mapping[str, str],
        *,
        avoid_warm: bool,
    ) -> Resident[FolderT]:
        while True:
            ticket = await self._wait_for_grant(plan, avoid_warm=avoid_warm)
            if self._closed:
                self._refuse(ticket)
                raise Unavailable("the pool of persistent workers is closed")
            if ticket.worker is None:
                return self._create(ticket, plan, action, environment)
            # It may have died since it was granted, and is then being cleared away already.
            if ticket.worker.usable:
                return self._reuse(ticket.worker)
            self._refuse(ticket)

    async def _wait_for_grant(
        self, plan: WorkerPlan, *, avoid_warm: bool
    ) -> Ticket[Resident[FolderT]]:
        granted = trio.Event()
        ticket: Ticket[Resident[FolderT]] = Ticket(
            plan.key, granted.set, name=plan.name, terms=plan.terms, avoid_warm=avoid_warm
        )
        self._places.ask(ticket)
        self._settle()
        if not ticket.granted:
            try:
                await granted.wait()
            except BaseException:
                self._refuse(ticket)
                raise
        return ticket

    def _refuse(self, ticket: Ticket[Resident[FolderT]]) -> None:
        """What may have been granted to one who was cancelled goes to the next."""
        if ticket.granted:
            self._places.decline(ticket)
            if ticket.worker is not None:
                self._note_rest(ticket.worker)
        else:
            self._places.withdraw(ticket)
        self._settle()

    def _create(
        self,
        ticket: Ticket[Resident[FolderT]],
        plan: WorkerPlan,
        action: LoadedAction,
        environment: Mapping[str, str],
    ) -> Resident[FolderT]:
        try:
            worker = self._maker.make(plan, action, environment)
        except BaseException:
            self._refuse(ticket)
            raise
        resident = Resident(worker, trio.current_time())
        self._note_miss(resident, plan, avoid_warm=ticket.avoid_warm)
        self._places.enter(ticket, resident)
        self._residents[resident] = None
        self._nursery.start_soon(self._run, resident, name=worker.name)
        self._settle()
        return resident

    def _note_miss(
        self, resident: Resident[FolderT], plan: WorkerPlan, *, avoid_warm: bool
    ) -> None:
        # Of the places of its key one is the new one's own.
        is_busy = self._places.count_of(plan.key) > 1 and not avoid_warm
        endings = [
            place.ending
            for other in self._residents
            if other.worker.key == plan.key and (place := self._places.place_of(other))
        ]
        ending = next((reason for reason in reversed(endings) if reason), None)
        miss = self._history.miss(plan.key, plan.name, is_busy=is_busy, ending=ending)
        _log.info(
            "worker created",
            worker=resident.worker.name,
            reason=miss.reason,
            nearest_key_differs_in=miss.differs_in,
            tools_by=plan.tools_by,
        )

    def _reuse(self, resident: Resident[FolderT]) -> Resident[FolderT]:
        resident.worker.fresh = False
        self._history.hit(resident.worker.key)
        return resident

    def _give_back(
        self, resident: Resident[FolderT], invocation: str, failure: BaseException | None
    ) -> None:
        resident.release()
        if isinstance(failure, WorkerFailed):
            resident.failure = failure.reason
        if not self._closed and has_to_recover(resident.worker, failure, resident.recoveries):
            resident.recoveries += 1
            self._nursery.start_soon(self._recover, resident, invocation)
            return
        reason = "closed" if self._closed else reason_to_end(resident.worker, failure)
        self._end_request(resident, invocation, reason)

    async def _recover(self, resident: Resident[FolderT], invocation: str) -> None:
        """The request keeps its part of the worker until it is answered."""
        usable = False
        try:
            usable = await resident.worker.recover()
        finally:
            resident.recoveries -= 1
            self._end_request(resident, invocation, None if usable else "cancelled")

    def _end_request(
        self, resident: Resident[FolderT], invocation: str, reason: Reason | None
    ) -> None:
        if reason is not None:
            self._places.retire(resident, reason)
        self._places.release(resident)
        self._note_rest(resident)
        if self._drained:
            self._end_idle()
        self._end_action(invocation)
        self._settle()

    def _end_action(self, invocation: str) -> None:
        self._expiry.end_action(invocation, trio.current_time())
        self._alarm.set(self._expiry.next_end)

    # --- the life of workers

    def _settle(self) -> None:
        for resident, at_once in self._places.settle():
            if at_once:
                resident.worker.kill()
            else:
                resident.worker.retire()

    async def _run(self, resident: Resident[FolderT]) -> None:
        """The whole life of a worker, to the removal of its folder."""
        worker = resident.worker

        def leave() -> None:
            place = self._places.place_of(resident)
            # Unless it was told to: then it may take its time.
            if place is not None and place.ending is None:
                self._places.leave(resident, end_by_itself(worker))
                self._settle()

        await worker.live(leave)
        reason = self._places.free(resident)
        error = worker.last_error or resident.failure
        self._history.end(worker.key, reason, error)
        self._settle()
        with trio.CancelScope(shield=True):
            await resident.wait_vacant()
            await self._maker.remove(worker)
        del self._residents[resident]
        _log.info(
            "worker ended",
            worker=worker.name,
            reason=reason,
            served=worker.served,
            error=error,
        )

    def close(self) -> None:
        """End all workers, without waiting for that. Whoever would get a worker then is refused."""
        self._closed = True
        self._upkeep.cancel()
        for resident in self._residents:
            place = self._places.place_of(resident)
            if self._places.is_idle(resident):
                self._places.retire(resident, "closed")
            elif place is not None and place.ending is None:
                self._places.leave(resident, "closed")
                resident.worker.kill()
        self._settle()

    def drain(self) -> None:
        """End the workers that are idle, and others once they are, until `resume`.

        Leases are given all the same: what has begun may need one.
        """
        self._drained = True
        self._end_idle()
        self._settle()

    def resume(self) -> None:
        """Keep idle workers again."""
        self._drained = False

    def _end_idle(self) -> None:
        for resident in self._residents:
            if self._places.is_idle(resident):
                self._places.retire(resident, "drained")

    # --- upkeep

    async def _keep_up(self) -> None:
        with self._upkeep:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._alarm.run)
                while True:
                    await trio.sleep(MEASURE_SECONDS)
                    with trio.move_on_after(MEASURE_SECONDS):
                        await self.measure_memory()

    async def measure_memory(self) -> None:
        """Measure all workers now, and end those that use too much. It is done regularly anyway.

        Calls may overlap. After cancellation some were measured, and all that is known counts.
        """
        try:
            async with trio.open_nursery() as nursery:
                for resident in self._residents:
                    nursery.start_soon(self._measure, resident)
        finally:
            self._places.save_memory()
            self._settle()

    async def _measure(self, resident: Resident[FolderT]) -> None:
        self._places.measured(resident, await resident.worker.measure_memory())

    def _note_rest(self, resident: Resident[FolderT]) -> None:
        if self._places.is_idle(resident):
            resident.idle_since = trio.current_time()

    def _sweep(self) -> None:
        self._expiry.retire_overdue(self._residents, trio.current_time())
        self._settle()
        self._alarm.set(self._expiry.next_end)
