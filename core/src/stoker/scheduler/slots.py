"""What one slot of an executor does all day."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from stoker.action import LoadedAction, Outcome
from stoker.errors import InternalError, StokerError, sole_cause
from stoker.log_streams.names import StreamNames
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.leasing import Lease
from stoker.scheduler.scheduler import Scheduler

log = structlog.get_logger(__name__)


class Started(Protocol):
    """To be called once the action's process is about to start."""

    def __call__(
        self, metadata: reapi.ExecutedActionMetadata, streams: StreamNames | None = None
    ) -> None:
        """What is known of it, and the names that its output can be read by, if there are any."""


Run = Callable[[LoadedAction, Started], Awaitable[Outcome]]
"""Runs an action. A StokerError that it raises becomes the outcome."""

FileResult = Callable[[LoadedAction, reapi.ActionResult], Awaitable[None]]
"""Files a result in the action cache."""


async def serve_slot(
    scheduler: Scheduler, executor: str, run: Run, file_result: FileResult
) -> None:
    """Run tasks one after the other on one slot of `executor`, until cancelled."""
    while True:
        async with scheduler.lease(executor) as lease:
            try:
                with lease.scope:
                    outcome = await _attempt(lease, run)
                    await _file(lease, outcome, file_result)
                    lease.complete(outcome)
            except Exception:
                # A bug in an executor or plugin costs one action, not the server. The scope takes
                # the Cancelled out of a group, and leaves what was raised beside it.
                log.exception("action failed by a bug", action=str(lease.action.digest))
                lease.complete(Outcome(error=InternalError(_FAILED)))


_FAILED = "the executor failed; the server's log says why"


async def _attempt(lease: Lease, run: Run) -> Outcome:
    try:
        outcome = await run(lease.action, lease.started)
    except Exception as error:
        cause = sole_cause(error)
        if isinstance(cause, StokerError):
            return Outcome(error=cause)
        raise
    if outcome.result is not None:
        stamp = outcome.result.execution_metadata.queued_timestamp
        stamp.CopyFrom(lease.queued_timestamp)
    return outcome


async def _file(lease: Lease, outcome: Outcome, file_result: FileResult) -> None:
    """File a result that may be served again (RUN-33), before anybody hears of it.

    Whether one that tells of a failure may be is for the cache of its instance to say.
    """
    result = outcome.result
    if outcome.error or result is None or not (outcome.reusable and lease.action.cacheable):
        return
    lease.is_filing = True
    try:
        await file_result(lease.action, result)
    except StokerError as error:
        # The client has its result all the same; the next one pays with a run.
        log.warning("result not cached", action=str(lease.action.digest), reason=str(error))
    except Exception:
        log.exception("result not cached, by a bug", action=str(lease.action.digest))
