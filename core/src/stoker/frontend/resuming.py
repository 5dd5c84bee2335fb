"""Takes up again what a server before this one accepted and did not end (SCH-07, OPS-11)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import structlog
import trio

from stoker.action import LoadedAction, Outcome
from stoker.errors import FailedPrecondition, InternalError, StokerError
from stoker.frontend.instances import Instance, Instances
from stoker.frontend.loading import read_action, within_limits
from stoker.scheduler.journal_rows import Accepted, Kept
from stoker.scheduler.operation import Operation
from stoker.scheduler.scheduler import Scheduler

log = structlog.get_logger(__name__)

_AT_A_TIME = 32
"""How many are looked up together. Their order is kept."""


async def resume_all(
    instances: Instances, scheduler: Scheduler, unfinished: Iterable[tuple[Kept, Operation]]
) -> None:
    """Run each operation, or end it: with what the action cache has meanwhile, or with an error.

    Cancellation leaves the rest as it was: for the next server.
    """
    remaining = [*unfinished]
    if remaining:
        log.info("operations of the server before are taken up", operations=len(remaining))
    while remaining:
        batch, remaining = remaining[:_AT_A_TIME], remaining[_AT_A_TIME:]
        found: list[LoadedAction | Outcome] = [Outcome()] * len(batch)
        async with trio.open_nursery() as nursery:
            for place, (kept, _) in enumerate(batch):
                nursery.start_soon(partial(_find, instances, scheduler, kept, found, place))
        for (kept, operation), what in zip(batch, found, strict=True):
            _resume(instances, scheduler, kept.accepted, operation, what)


def _resume(
    instances: Instances,
    scheduler: Scheduler,
    accepted: Accepted,
    operation: Operation,
    found: LoadedAction | Outcome,
) -> None:
    if isinstance(found, Outcome):
        scheduler.end(operation, found)
        return
    try:
        executors = within_limits(instances.resolve(accepted.namespace), found)
    except StokerError as error:
        scheduler.end(operation, Outcome(error=error))
        return
    scheduler.resume(operation, found, priority=accepted.priority, executors=executors)


async def _find(
    instances: Instances,
    scheduler: Scheduler,
    kept: Kept,
    found: list[LoadedAction | Outcome],
    place: int,
) -> None:
    try:
        found[place] = await _action_or_outcome(instances, scheduler, kept.accepted)
    except StokerError as error:
        found[place] = Outcome(error=error)
    except Exception:
        # A bug in a plugin costs one action, not the start of the server.
        log.exception("an operation could not be taken up", operation=kept.name)
        found[place] = Outcome(error=InternalError("the server failed; its log says why"))


async def _action_or_outcome(
    instances: Instances, scheduler: Scheduler, accepted: Accepted
) -> LoadedAction | Outcome:
    instance = instances.resolve(accepted.namespace)
    if not instance.executors:
        raise FailedPrecondition(
            f"instance {instance.name!r} only caches since the server was restarted: "
            f"it has no executors to run actions on"
        )
    action = await read_action(instance, accepted.digest, accepted.request)
    if accepted.skip_cache_lookup or not action.cacheable:
        return action
    return await _cached(instance, scheduler, action) or action


async def _cached(instance: Instance, scheduler: Scheduler, action: LoadedAction) -> Outcome | None:
    """What was filed before the server was killed, or by a twin that runs meanwhile."""
    while True:
        end_count = scheduler.end_count
        result = await instance.actions.get(instance.action_key(action.digest))
        if result is not None:
            return Outcome(result=result, cached=True)
        if not scheduler.ended_since(action, end_count):
            return None
