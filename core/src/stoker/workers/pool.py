"""The persistent workers of an executor: who has which, and how many there may be."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import structlog
import trio

from stoker.action import LoadedAction
from stoker.errors import StokerError, Unavailable
from stoker.spi import ExecutionStrategy, ProcessSpec, ProcessUser, WorkerProtocol
from stoker.workers.places import Places, Ticket
from stoker.workers.plan import WorkerPlan
from stoker.workers.settings import WorkerSettings
from stoker.workers.worker import Worker, WorkerMachinery

_log = structlog.get_logger(__name__)


class Root(Protocol):
    """What keeps a worker's folder: the pool only asks it to take the folder away."""

    async def remove(self) -> None:
        """Delete the folder and all below it. Raises StokerError where something withstands."""


RootT = TypeVar("RootT", bound=Root)


class WorkerCounts(NamedTuple):
    """What a pool holds at one moment."""

    places: int
    """Processes that are there, or begin or end; at most `max_workers`."""
    idle: int
    """Those that wait for work."""
    waiting: int
    """Leases that wait for a worker."""


@asynccontextmanager
async def open_worker_pool(
    *,
    strategy: ExecutionStrategy,
    protocols: Mapping[str, WorkerProtocol],
    folder: Path,
    open_root: Callable[[Path], RootT],
    settings: WorkerSettings,
    user: ProcessUser | None = None,
) -> AsyncIterator[WorkerPool[RootT]]:
    """A pool that keeps its workers' folders in `folder`, which no pool has used before.

    Their temporary folders belong to `user`, if workers run as somebody else than the server.

    On leaving, idle workers are ended politely and others at once; no process is left.
    """
    machinery = WorkerMachinery(
        strategy=strategy,
        max_response_bytes=settings.max_response_bytes,
        shutdown_grace_seconds=settings.shutdown_grace_seconds,
    )
    async with trio.open_nursery() as nursery:
        pool = WorkerPool(
            nursery=nursery,
            machinery=machinery,
            protocols=protocols,
            folder=folder,
            open_root=open_root,
            settings=settings,
            user=user,
        )
        try:
            yield pool
        finally:
            pool.close()


class WorkerPool(Generic[RootT]):
    """Workers of any key, reused last in, first out. Calls may overlap."""

    def __init__(
        self,
        *,
        nursery: trio.Nursery,
        machinery: WorkerMachinery,
        protocols: Mapping[str, WorkerProtocol],
        folder: Path,
        open_root: Callable[[Path], RootT],
        settings: WorkerSettings,
        user: ProcessUser | None,
    ) -> None:
        self._user = user
        self._nursery = nursery
        self._machinery = machinery
        self._protocols = protocols
        self._folder = folder
        self._open_root = open_root
        self._settings = settings
        self._places: Places[Worker[RootT]] = Places(
            settings.max_workers, settings.max_workers_per_key
        )
        self._workers: dict[Worker[RootT], trio.Event] = {}  # each with the end of its lease
        self._numbers = itertools.count(1)
        self._closed = False

    @property
    def protocols(self) -> Collection[str]:
        """The names of the protocols that its workers may speak."""
        return self._protocols.keys()

    @property
    def counts(self) -> WorkerCounts:
        """How many workers there are now."""
        return WorkerCounts(self._places.held, self._places.idle, self._places.waiting)

    @asynccontextmanager
    async def lease(
        self, plan: WorkerPlan, action: LoadedAction, environment: Mapping[str, str]
    ) -> AsyncIterator[Worker[RootT]]:
        """A worker for `plan`, alone, until the context is left. Waits for one, first come first.

        A new one gets `environment`, with HOME and TMPDIR set to a folder of its own where that
        has neither. It has no process yet: `Worker.start` or `Worker.perform` starts it, once its
        root is laid out. If the context is left by an exception, cancellation included, the
        process is ended, and killed if need be; the worker's place is free once it is gone.
        Raises Unavailable if there is no folder to be had.
        """
        worker = await self._take(plan, action, environment)
        clean = False
        try:
            yield worker
            clean = True
        finally:
            self._give_back(worker, clean=clean)

    def close(self) -> None:
        """End all workers, without waiting for that. No lease may begin after it."""
        self._closed = True
        for worker, unleased in self._workers.items():
            if unleased.is_set():
                worker.retire()
            else:
                worker.kill()

    async def _take(
        self, plan: WorkerPlan, action: LoadedAction, environment: Mapping[str, str]
    ) -> Worker[RootT]:
        while True:
            ticket = await self._wait_for_grant(plan)
            if ticket.worker is None:
                return self._create(ticket, plan, action, environment)
            # It may have died since it was granted, and is then being cleared away already.
            if ticket.worker.usable:
                return self._resume(ticket.worker)

    async def _wait_for_grant(self, plan: WorkerPlan) -> Ticket[Worker[RootT]]:
        granted = trio.Event()
        ticket: Ticket[Worker[RootT]] = Ticket(plan.key, granted.set)
        self._places.ask(ticket)
        self._settle()
        try:
            await granted.wait()
        except BaseException:
            self._refuse(ticket)
            raise
        return ticket

    def _refuse(self, ticket: Ticket[Worker[RootT]]) -> None:
        """What may have been granted to one who was cancelled goes to the next."""
        if not ticket.granted:
            self._places.withdraw(ticket)
        elif ticket.worker is None:
            self._places.decline(ticket)
        else:
            self._places.rest(ticket.worker)
        self._settle()

    def _create(
        self,
        ticket: Ticket[Worker[RootT]],
        plan: WorkerPlan,
        action: LoadedAction,
        environment: Mapping[str, str],
    ) -> Worker[RootT]:
        try:
            worker = self._build(plan, action, environment)
        except BaseException:
            self._refuse(ticket)
            raise
        self._log_created(worker)
        self._places.enter(worker)
        self._workers[worker] = trio.Event()
        self._nursery.start_soon(self._run, worker, name=worker.name)
        return worker

    def _build(
        self, plan: WorkerPlan, action: LoadedAction, environment: Mapping[str, str]
    ) -> Worker[RootT]:
        number = next(self._numbers)
        name = _worker_name(number, action.mnemonic)
        top, log = self._folder / f"worker-{number}", self._folder / f"{name}.log"
        with _disk_errors("making a worker's folder"):
            (top / "root").mkdir(parents=True)
            (top / "tmp").mkdir(0o700)
            top.chmod(0o711)
            log.touch(0o600)
            if self._user is not None:
                # The log too: a process may open by name what it has as a descriptor.
                for path in (top / "tmp", log):
                    os.chown(path, *self._user)
        spec = ProcessSpec(
            argv=plan.key.argv,
            environment={"HOME": str(top / "tmp"), "TMPDIR": str(top / "tmp"), **environment},
            root=top / "root",
            working_directory=plan.key.working_directory,
            temporary_directory=top / "tmp",
            stderr=log,
            properties=action.platform,
            root_changes=True,
            namespace=action.namespace,
        )
        return Worker(
            name=name,
            key=plan.key,
            root=self._open_root(spec.root),
            spec=spec,
            protocol=self._protocols[plan.protocol],
            machinery=self._machinery,
        )

    def _resume(self, worker: Worker[RootT]) -> Worker[RootT]:
        worker.resume()
        worker.fresh = False
        self._workers[worker] = trio.Event()
        return worker

    def _give_back(self, worker: Worker[RootT], *, clean: bool) -> None:
        self._workers[worker].set()
        if clean and worker.usable and not self._closed:
            worker.rest(self._settings.idle_seconds)
            self._places.rest(worker)
        else:
            worker.kill()
            self._places.leave(worker)
        self._settle()

    def _settle(self) -> None:
        for worker in self._places.settle():
            # Somebody waits for its place, so this is no time for politeness.
            worker.kill()

    async def _run(self, worker: Worker[RootT]) -> None:
        """The whole life of a worker, to the removal of its folder."""

        def leave() -> None:
            self._places.leave(worker)
            self._settle()

        await worker.live(leave)
        self._places.free(worker)
        self._settle()
        with trio.CancelScope(shield=True):
            await self._workers[worker].wait()
            await self._remove(worker)
        del self._workers[worker]

    async def _remove(self, worker: Worker[RootT]) -> None:
        top = worker.folder.parent
        try:
            await worker.root.remove()
            await self._open_root(top).remove()
            with _disk_errors("removing a worker's log"):
                worker.log.unlink(missing_ok=True)
        except StokerError as error:
            _log.warning("worker's folder not removed", worker=worker.name, reason=str(error))

    def _log_created(self, worker: Worker[RootT]) -> None:
        differences = [worker.key.difference(other.key) for other in self._workers]
        nearest = min(differences, key=len, default=())
        _log.info("worker created", worker=worker.name, nearest_key_differs_in=nearest)


def _worker_name(number: int, mnemonic: str) -> str:
    """It becomes a file's name, and the mnemonic is the client's."""
    word = re.sub(r"[^A-Za-z0-9_.+-]", "_", mnemonic)[:64]
    return f"worker-{number}-{word}" if word else f"worker-{number}"


@contextmanager
def _disk_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{doing} {error.filename!r} failed: {error.strerror}") from error
