"""Executors: what each is made of, and the slots that work on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
import trio

from stoker.action import LoadedAction
from stoker.compose.services import Services
from stoker.config import Configuration, ExecutorTable
from stoker.execution.executor import Executor, open_executor
from stoker.execution.limited import Limited
from stoker.frontend.instances import Instance
from stoker.frontend.provenance import provenance_of_executor, stamp
from stoker.log_streams.run_output import RunOutputs
from stoker.machine import shortage
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.matching import Offer
from stoker.scheduler.scheduler import Scheduler
from stoker.scheduler.slots import serve_slot

log = structlog.get_logger(__name__)


def offers(configuration: Configuration) -> dict[str, Offer]:
    """What each executor has for actions, to match and queue them by."""
    return {name: _offer(table) for name, table in configuration.executors.items()}


def _offer(table: ExecutorTable) -> Offer:
    properties = {
        key: (value,) if isinstance(value, str) else value
        for key, value in table.properties.items()
    }
    return Offer(properties, table.capacity)


@asynccontextmanager
async def open_executors(
    configuration: Configuration, services: Services, outputs: RunOutputs
) -> AsyncIterator[list[Executor]]:
    """Open every executor that an instance names. What runs prints to `outputs`."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(_open_executor(name, configuration, services, outputs))
            for name in _used_executors(configuration)
        ]


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


def start_slots(
    nursery: trio.Nursery,
    configuration: Configuration,
    executors: Sequence[Executor],
    scheduler: Scheduler,
    instances: Sequence[Instance],
) -> None:
    """Have the slots of `executors` run what `scheduler` has for them, until cancelled."""
    by_name = {instance.name: instance for instance in instances}
    for executor in executors:
        slots = configuration.executors[executor.name].slots
        _start_slots(nursery, executor, slots, scheduler, by_name)


def _start_slots(
    nursery: trio.Nursery,
    executor: Executor,
    slots: int,
    scheduler: Scheduler,
    instances: Mapping[str, Instance],
) -> None:
    async def file_result(action: LoadedAction, result: reapi.ActionResult) -> None:
        instance = instances[action.namespace]
        # In place: those who wait for it now get the same result as those who ask later.
        stamp(result, provenance_of_executor(action, executor.name))
        await instance.actions.update(instance.action_key(action.digest), result)

    for _ in range(slots):
        nursery.start_soon(serve_slot, scheduler, executor.name, executor.run, file_result)
