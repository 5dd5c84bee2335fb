"""The composition root: a configuration and what is installed become a running server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import structlog
import trio

from stoker.action import LoadedAction
from stoker.config import SERVICE_TABLES, Configuration, ExecutorTable, InstanceTable, ServiceName
from stoker.digest import DIGEST_FUNCTION_NAMES
from stoker.errors import ConfigurationError, StokerError, sole_cause
from stoker.execution.enclosed import Enclosed
from stoker.execution.executor import Executor, open_executor
from stoker.execution.limited import Limited
from stoker.frontend.action_cache import ActionCacheService
from stoker.frontend.admin import AdminService
from stoker.frontend.bytestream import ByteStreamService
from stoker.frontend.capabilities import CapabilitiesService
from stoker.frontend.cas import CasService
from stoker.frontend.execution import ExecutionService
from stoker.frontend.executor_draining import ExecutorDraining
from stoker.frontend.explain import ExplainService
from stoker.frontend.instances import Instance, Instances
from stoker.frontend.log_streams import LogStreamService, LogTransfers
from stoker.frontend.operations import OperationsService
from stoker.frontend.provenance import provenance_of_executor, stamp
from stoker.frontend.resuming import resume_all
from stoker.frontend.status import translate
from stoker.history.records import History, open_history
from stoker.history.settings import HistorySettings
from stoker.log_streams.run_output import RunOutputs
from stoker.log_streams.streams import LogStreams, open_log_streams
from stoker.machine import shortage
from stoker.plugins import Catalogue
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Server
from stoker.rpc.health import SERVICE_NAME as HEALTH
from stoker.rpc.health import Health
from stoker.rpc.reflection import reflection_services
from stoker.scheduler.journal import Journal, is_journal, open_journal
from stoker.scheduler.journal_rows import Kept
from stoker.scheduler.matching import Offer
from stoker.scheduler.scheduler import Scheduler, open_scheduler
from stoker.scheduler.slots import serve_slot
from stoker.spi import (
    ActionCache,
    BlobStore,
    Context,
    ExecutionStrategy,
    Sandbox,
    WorkerProtocol,
)
from stoker.storage.completeness import CompleteActionCache
from stoker.storage.verifying import VerifyingBlobStore
from stoker.tables import references
from stoker.tls import load_tls
from stoker.web.metrics import ServerMetrics
from stoker.web.server import open_metrics
from stoker.workers.report import PoolReport

log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""What a request may weigh. The batch limit that is advertised counts the bytes of blobs alone;
the digests beside many tiny ones weigh several times as much (GEN-14). More would let one request
keep all others waiting while it is parsed."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that serves."""

    addresses: tuple[str, ...]
    """Where it listens, with the ports that were chosen where the configuration said 0."""
    scheduler: Scheduler
    health: Health
    draining: trio.CancelScope
    """Cancel it to end what still runs when the server is told to stop, without more patience."""


class Services:
    """Every opened service, by its sort of table and its name."""

    def __init__(self, opened: Mapping[str, Mapping[str, object]]) -> None:
        self._opened = opened
        self._verifying = {
            name: VerifyingBlobStore(cast("BlobStore", store))
            for name, store in opened["blob_stores"].items()
        }

    def blob_store(self, name: str) -> BlobStore:
        """The store of this name, which verifies what is written to it."""
        return self._verifying[name]

    def action_cache(self, table: InstanceTable) -> CompleteActionCache:
        """The instance's cache, which serves whole results only."""
        cache = cast("ActionCache", self._opened["action_caches"][table.action_cache])
        return CompleteActionCache(
            cache,
            self.blob_store(table.blob_store),
            max_tree_bytes=table.max_tree_bytes,
            cache_failures=table.cache_failures,
        )

    def admin(
        self,
        configuration: Configuration,
        pools: Mapping[str, Callable[[], PoolReport]],
        draining: ExecutorDraining,
    ) -> AdminService:
        """The admin service, over all that stand on no other service: the rest is made of them."""
        leaves: dict[str, dict[str, object]] = _no_services()
        for name, (_, settings) in configuration.services.items():
            if not any(references(settings)):
                leaves[name.table][name.name] = self._opened[name.table][name.name]
        return AdminService(
            cast("Mapping[str, ActionCache]", leaves["action_caches"]),
            cast("Mapping[str, BlobStore]", leaves["blob_stores"]),
            pools,
            draining,
        )

    def enclosed(self, table: ExecutorTable) -> Enclosed:
        """The strategy of an executor, within its sandbox."""
        strategy = cast("ExecutionStrategy", self._opened["strategies"][table.strategy])
        return Enclosed(strategy, cast("Sandbox", self._opened["sandboxes"][table.sandbox]))

    def worker_protocols(self, names: tuple[str, ...] | None) -> dict[str, WorkerProtocol]:
        """Those of these names; all for None."""
        protocols = cast("Mapping[str, WorkerProtocol]", self._opened["worker_protocols"])
        return {name: protocols[name] for name in (protocols if names is None else names)}


@asynccontextmanager
async def open_services(
    configuration: Configuration, catalogue: Catalogue
) -> AsyncIterator[Services]:
    """Open every service of the configuration, those that others name first.

    Raises ConfigurationError naming the table of one that cannot be opened.
    """
    opened = _no_services()
    async with AsyncExitStack() as stack:
        for name in configuration.services:
            await _open_service(name, configuration, catalogue, opened, stack)
        yield Services(opened)


def _no_services() -> dict[str, dict[str, object]]:
    return {table: {} for table in SERVICE_TABLES}


async def _open_service(
    name: ServiceName,
    configuration: Configuration,
    catalogue: Catalogue,
    opened: dict[str, dict[str, object]],
    stack: AsyncExitStack,
) -> None:
    kind, settings = configuration.services[name]
    provider = catalogue.kinds(name.table)[kind].provider
    context = Context(name.name, configuration.folder, opened)
    with _naming(name):
        opened[name.table][name.name] = await stack.enter_async_context(
            provider.open(settings, context)
        )


@contextmanager
def _naming(name: ServiceName) -> Iterator[None]:
    """Adds the name of a table to whatever goes wrong while it is opened."""
    try:
        yield
    except Exception as error:
        cause = sole_cause(error)
        if isinstance(cause, StokerError | OSError):
            raise ConfigurationError([f"{name} cannot be opened: {cause}"]) from error
        raise


class Trial(NamedTuple):
    """What became of opening every service once."""

    services: list[tuple[ServiceName, str | None]]
    """Each with what is wrong with it, or None."""
    enforcement: dict[str, Sequence[str]]
    """How each executor whose services can be opened isolates and limits its actions."""


async def try_services(configuration: Configuration, catalogue: Catalogue) -> Trial:
    """Open every service once."""
    outcomes: dict[ServiceName, str | None] = {}
    opened = _no_services()
    async with AsyncExitStack() as stack:
        for name, (_, settings) in configuration.services.items():
            needed = [ServiceName(table, other) for _, table, other in references(settings)]
            if failed := next((other for other in needed if outcomes[other]), None):
                outcomes[name] = f"{name} needs {failed}, which cannot be opened"
                continue
            try:
                await _open_service(name, configuration, catalogue, opened, stack)
                outcomes[name] = None
            except ConfigurationError as error:
                outcomes[name] = str(error)
        sound = Services(opened)
        enforcement = {
            name: Limited(sound.enclosed(table), table.limits).enforcement()
            for name, table in configuration.executors.items()
            if table.strategy in opened["strategies"] and table.sandbox in opened["sandboxes"]
        }
    return Trial([*outcomes.items()], enforcement)


@asynccontextmanager
async def open_server(
    configuration: Configuration, catalogue: Catalogue
) -> AsyncIterator[RunningServer]:
    """Open everything, listen, and serve until the context is left; then drain and close.

    Raises ConfigurationError for what cannot be opened or listened on.
    """
    async with AsyncExitStack() as stack:
        services = await stack.enter_async_context(open_services(configuration, catalogue))
        offers = {name: _offer(table) for name, table in configuration.executors.items()}
        journal, kept = await _open_journal(configuration, stack)
        history = await stack.enter_async_context(_open_history(configuration))
        note = history.note if history.is_kept else None
        scheduler = await stack.enter_async_context(
            open_scheduler(offers, configuration.scheduler, journal, note)
        )
        unfinished = scheduler.restore(kept)
        state = configuration.path(configuration.server.state_directory)
        log_streams = await stack.enter_async_context(
            open_log_streams(state / "log-streams", configuration.log_streams)
        )
        instances = [
            _instance(name, table, configuration, services)
            for name, table in configuration.instances.items()
        ]
        executors = [
            await stack.enter_async_context(
                _open_executor(name, configuration, services, log_streams.runs)
            )
            for name in _used_executors(configuration)
        ]
        pools = {executor.name: executor.workers.report for executor in executors}
        executor_draining = ExecutorDraining(scheduler, {e.name: e.workers for e in executors})
        # After the executors, so that no slot works on one that is being closed.
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        for executor in executors:
            slots = configuration.executors[executor.name].slots
            _start_slots(nursery, executor, slots, scheduler, instances)
        served = Instances(instances)
        nursery.start_soon(resume_all, served, scheduler, unfinished)
        health, draining = Health(), trio.CancelScope()
        server = _rpc_server(served, scheduler, history, log_streams, health)
        addresses = tuple(_listen(server, configuration))
        await nursery.start(server.serve)
        admin = Server(
            [services.admin(configuration, pools, executor_draining).service()],
            translate_error=translate,
        )
        if _listen_admin(admin, configuration.admin_socket):
            await nursery.start(admin.serve)
        if listen := configuration.server.metrics_listen:
            address = await stack.enter_async_context(
                open_metrics(listen, ServerMetrics(scheduler, pools))
            )
            log.info("metrics are served", address=f"http://{address}/metrics")
        for name in ("", *_SERVED):
            health.set_serving(name, serving=True)
        try:
            yield RunningServer(addresses, scheduler, health, draining)
        finally:
            for name in ("", *_SERVED):
                health.set_serving(name, serving=False)
            with draining:
                await _drain(server, scheduler, configuration.server.drain_seconds)
            await server.stop(0)
            await admin.stop(0)


async def _drain(server: Server, scheduler: Scheduler, seconds: float) -> None:
    """Let actions end, then calls, and take no new ones of either (SCH-06)."""
    end = trio.current_time() + seconds
    log.info("draining", executing=scheduler.executing, queued=scheduler.queued, seconds=seconds)
    # Until nothing runs, calls are taken: those who wait for it read, upload and ask again.
    await scheduler.drain(seconds)
    log.info("drained", handed_back=scheduler.queued)
    await server.stop(max(end - trio.current_time(), _LAST_WORDS_SECONDS))


def _open_history(configuration: Configuration) -> AbstractAsyncContextManager[History]:
    path = configuration.path(configuration.server.state_directory) / "history.sqlite"
    settings = configuration.history
    if not configuration.executors and not path.exists():
        # There will be nothing to record.
        settings = HistorySettings(enabled=False)
    return open_history(path, settings)


async def _open_journal(
    configuration: Configuration, stack: AsyncExitStack
) -> tuple[Journal | None, list[Kept]]:
    """The journal and what is in it; none where that is not wanted, or there is nothing to run.

    Raises ConfigurationError, also where another server has the same state_directory.
    """
    folder = configuration.path(configuration.server.state_directory) / "scheduler"
    # Operations of a server that had executors are still asked for, if only to be told.
    needed = bool(configuration.executors) or is_journal(folder)
    if not configuration.scheduler.journal or not needed:
        return None, []
    try:
        return await stack.enter_async_context(open_journal(folder, configuration.scheduler))
    except Exception as error:
        cause = sole_cause(error)
        if isinstance(cause, StokerError | OSError):
            reason = f"[scheduler] the journal cannot be opened: {cause}"
            raise ConfigurationError([reason]) from error
        raise


def _used_executors(configuration: Configuration) -> list[str]:
    """Executors that no instance names are not opened: they could never get an action."""
    used = {name for table in configuration.instances.values() for name in table.executors}
    for name in configuration.executors.keys() - used:
        log.warning("executor is not used by any instance", executor=name)
    tables = [configuration.executors[name] for name in used]
    cpus, memory_bytes = sum(t.cpus for t in tables), sum(t.memory_bytes for t in tables)
    if len(tables) > 1 and (reason := shortage(cpus, memory_bytes)):
        log.warning("executors have more together than the machine", reason=reason)
    return [name for name in configuration.executors if name in used]


def _offer(table: ExecutorTable) -> Offer:
    properties = {
        key: (value,) if isinstance(value, str) else value
        for key, value in table.properties.items()
    }
    return Offer(properties, table.capacity)


def _instance(
    name: str, table: InstanceTable, configuration: Configuration, services: Services
) -> Instance:
    return Instance(
        name=name,
        blobs=services.blob_store(table.blob_store),
        actions=services.action_cache(table),
        executors={
            executor: configuration.executors[executor].limits.maximum_timeout_seconds
            for executor in table.executors
        },
        client_updates=table.client_updates,
        digest_functions=tuple(DIGEST_FUNCTION_NAMES[name] for name in table.digest_functions),
        max_blob_bytes=table.max_blob_bytes,
        check_actions=table.check_actions,
    )


@asynccontextmanager
async def _open_executor(
    name: str, configuration: Configuration, services: Services, outputs: RunOutputs
) -> AsyncIterator[Executor]:
    table = configuration.executors[name]
    store = next(i.blob_store for i in configuration.instances.values() if name in i.executors)
    folder = configuration.path(configuration.server.state_directory) / "executors" / name
    enclosed = services.enclosed(table)
    limited = Limited(enclosed, table.limits)
    log.info(
        "executor opens",
        executor=name,
        slots=table.slots,
        cpus=table.cpus,
        memory_bytes=table.memory_bytes,
        enforcement=[*limited.enforcement()],
    )
    for sentence in limited.enforcement():
        if sentence.startswith("degraded:"):
            log.warning("executor enforces less than it should", executor=name, reason=sentence)
    async with open_executor(
        name=name,
        blobs=services.blob_store(store),
        strategy=limited,
        link_inputs=enclosed.protects_inputs,
        link_worker_inputs=enclosed.protects_changing_inputs,
        user=enclosed.user,
        protocols=services.worker_protocols(table.worker_protocols),
        folder=folder,
        settings=table.limits,
        worker_settings=table.workers,
        outputs=outputs,
    ) as executor:
        yield executor


def _start_slots(
    nursery: trio.Nursery,
    executor: Executor,
    slots: int,
    scheduler: Scheduler,
    instances: list[Instance],
) -> None:
    caches = {instance.name: instance for instance in instances}

    async def file_result(action: LoadedAction, result: reapi.ActionResult) -> None:
        instance = caches[action.namespace]
        # In place: those who wait for it now get the same result as those who ask later.
        stamp(result, provenance_of_executor(action, executor.name))
        await instance.actions.update(instance.action_key(action.digest), result)

    for _ in range(slots):
        nursery.start_soon(serve_slot, scheduler, executor.name, executor.run, file_result)


_LAST_WORDS_SECONDS = 0.5
"""What calls have at least to tell how it ended."""

_REAPI = "build.bazel.remote.execution.v2"
_SERVED = (
    f"{_REAPI}.Capabilities",
    f"{_REAPI}.ContentAddressableStorage",
    f"{_REAPI}.ActionCache",
    f"{_REAPI}.Execution",
    "google.bytestream.ByteStream",
    "google.longrunning.Operations",
    "build.bazel.remote.logstream.v1.LogStreamService",
    "stoker.v1.Explain",
)


def _rpc_server(
    instances: Instances,
    scheduler: Scheduler,
    history: History,
    log_streams: LogStreams,
    health: Health,
) -> Server:
    return Server(
        [
            CapabilitiesService(instances).service(),
            CasService(instances).service(),
            ByteStreamService(instances, LogTransfers(instances, log_streams)).service(),
            LogStreamService(instances, log_streams).service(),
            ActionCacheService(instances).service(),
            ExecutionService(instances, scheduler).service(),
            OperationsService(instances, scheduler).service(),
            ExplainService(instances, scheduler, history).service(),
            health.service,
            *reflection_services([*_SERVED, HEALTH]),
        ],
        translate_error=translate,
        max_receive_message_bytes=MAX_MESSAGE_BYTES,
    )


def _listen(server: Server, configuration: Configuration) -> list[str]:
    credentials = load_tls(configuration)
    addresses = []
    for written in configuration.server.listen:
        unix = written.startswith("unix:")
        address = f"unix:{configuration.path(written[5:])}" if unix else written
        try:
            port = server.add_listener(address, credentials)
        except OSError as error:
            raise ConfigurationError([f"[server] listen: {error}"]) from error
        addresses.append(address if unix else f"{address.rpartition(':')[0]}:{port}")
    return addresses


def _listen_admin(server: Server, path: Path) -> bool:
    """Listen on the admin socket, which the server's own user alone may reach.

    Without it, for want of a place, the server serves all the same: returns False.
    """
    try:
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True, mode=0o700)
        with _private_files():
            server.add_listener(f"unix:{path}")
    except OSError as error:
        log.warning("there is no admin socket", path=str(path), reason=str(error))
        return False
    return True


@contextmanager
def _private_files() -> Iterator[None]:
    # A chmod afterwards would leave a moment in which anybody can connect.
    previous = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(previous)
