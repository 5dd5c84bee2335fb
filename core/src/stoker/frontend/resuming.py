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
from stoker.scheduler.journal_rows import Kept
from stoker.scheduler.scheduler import Scheduler
from stoker.scheduler.suspects import Waiting

log = structlog.get_logger(__name__)

_AT_A_TIME = 32
"""How many are looked up together. Their order is kept."""


async def resume_all(
    instances: Instances, scheduler: Scheduler, unfinished: Iterable[Kept]
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
            for place, kept in enumerate(batch):
                nursery.start_soon(partial(_find, instances, scheduler, kept, found, place))
        for kept, what in zip(batch, found, strict=True):
            _resume(instances, scheduler, kept, what)


def _resume(
    instances: Instances,
    scheduler: Scheduler,
    kept: Kept,
    found: LoadedAction | Outcome,
) -> None:
    operation = kept.operation
    if isinstance(found, Outcome):
        scheduler.end(operation, found)
        return
    try:
        executors = within_limits(instances.resolve(operation.namespace), found)
    except StokerError as error:
        scheduler.end(operation, Outcome(error=error))
        return
    scheduler.resume(Waiting(operation, found, kept.request.priority, executors))


async def _find(
    instances: Instances,
    scheduler: Scheduler,
    kept: Kept,
    found: list[LoadedAction | Outcome],
    place: int,
) -> None:
    try:
        found[place] = await _action_or_outcome(instances, scheduler, kept)
    except StokerError as error:
        found[place] = Outcome(error=error)
    except Exception:
        # A bug in a plugin costs one action, not the start of the server.
        log.exception("an operation could not be taken up", operation=kept.operation.name)
        found[place] = Outcome(error=InternalError("the server failed; its log says why"))


async def _action_or_outcome(
    instances: Instances, scheduler: Scheduler, kept: Kept
) -> LoadedAction | Outcome:
    operation, request, _ = kept
    instance = instances.resolve(operation.namespace)
    if not instance.executors:
        raise FailedPrecondition(
            f"instance {instance.name!r} only caches since the server was restarted: "
            f"it has no executors to run actions on"
        )
    action = await read_action(
        instance,
        operation.action_digest,
        metadata=request.metadata,
        principal=operation.principal,
    )
    if request.skip_cache_lookup or not action.cacheable:
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
