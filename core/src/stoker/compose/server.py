"""A running server, out of the services, state, executors and listeners of its configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from stoker.compose.executors import offers, open_executors, start_slots
from stoker.compose.listeners import admin_server, announced, listen, listen_admin, rpc_server
from stoker.compose.services import Services, open_services
from stoker.compose.state import State, open_state
from stoker.config import Configuration, InstanceTable
from stoker.digest import DIGEST_FUNCTION_NAMES
from stoker.frontend.executor_draining import ExecutorDraining
from stoker.frontend.instances import Instance, Instances
from stoker.frontend.resuming import resume_all
from stoker.plugins import Catalogue
from stoker.rpc import Server
from stoker.rpc.health import Health
from stoker.scheduler.scheduler import Scheduler, open_scheduler
from stoker.web.metrics import ServerMetrics
from stoker.web.server import open_metrics

log = structlog.get_logger(__name__)

_LAST_WORDS_SECONDS = 0.5
"""What calls have at least to tell how it ended."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that serves."""

    addresses: tuple[str, ...]
    """Where it listens, with the ports that were chosen where the configuration said 0."""
    scheduler: Scheduler
    health: Health
    draining: trio.CancelScope
    """Cancel it to end what still runs when the server is told to stop, without more patience."""


@asynccontextmanager
async def open_server(
    configuration: Configuration, catalogue: Catalogue
) -> AsyncIterator[RunningServer]:
    """Open everything, listen, and serve until the context is left; then drain and close.

    Raises ConfigurationError for what cannot be opened or listened on.
    """
    async with AsyncExitStack() as stack:
        services = await stack.enter_async_context(open_services(configuration, catalogue))
        state = await stack.enter_async_context(open_state(configuration))
        scheduler = await stack.enter_async_context(_open_scheduler(configuration, state))
        unfinished = scheduler.restore(state.kept)
        instances = [
            _instance(name, table, configuration, services)
            for name, table in configuration.instances.items()
        ]
        executors = await stack.enter_async_context(
            open_executors(configuration, services, state.log_streams.runs)
        )
        pools = {executor.name: executor.workers.report for executor in executors}
        executor_draining = ExecutorDraining(scheduler, {e.name: e.workers for e in executors})
        # After the executors, so that no slot works on one that is being closed.
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        start_slots(nursery, configuration, executors, scheduler, instances)
        served = Instances(instances)
        nursery.start_soon(resume_all, served, scheduler, unfinished)
        health, draining = Health(), trio.CancelScope()
        server = rpc_server(served, scheduler, state.history, state.log_streams, health)
        addresses = listen(server, configuration)
        await nursery.start(server.serve)
        admin = admin_server(services, configuration, pools, executor_draining)
        if listen_admin(admin, configuration.admin_socket):
            await nursery.start(admin.serve)
        if metrics_listen := configuration.server.metrics_listen:
            address = await stack.enter_async_context(
                open_metrics(metrics_listen, ServerMetrics(scheduler, pools))
            )
            log.info("metrics are served", address=f"http://{address}/metrics")
        try:
            with announced(health):
                yield RunningServer(addresses, scheduler, health, draining)
        finally:
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


def _open_scheduler(
    configuration: Configuration, state: State
) -> AbstractAsyncContextManager[Scheduler]:
    note = state.history.note if state.history.is_kept else None
    return open_scheduler(offers(configuration), configuration.scheduler, state.journal, note)


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
