"""Whether a worker is to be ended, by how one of its leases was left."""

from __future__ import annotations

from typing import TypeVar

import trio

from stoker.workers.places import Reason
from stoker.workers.worker import Worker

FolderT = TypeVar("FolderT")


def has_to_recover(worker: Worker[FolderT], failure: BaseException | None, recoveries: int) -> bool:
    """Whether the request of a lease was given up, and its answer has still to come.

    `failure` is what the lease was left by; `recoveries` says for how many others that holds.
    """
    if not worker.recovering:
        return False
    if not _is_shared(worker):
        return True
    # Of several requests others may have been given up. Who ran out of time leaves without failure.
    return not recoveries if failure is None else _is_cancellation(failure)


def reason_to_end(worker: Worker[FolderT], failure: BaseException | None) -> Reason | None:
    """Why `worker` can serve no more, unless it has to recover; None if it can.

    `failure` is what the lease was left by.
    """
    if failure is None:
        # Who ran out of time leaves without failure too.
        return None if worker.usable else end_by_itself(worker)
    if not _is_cancellation(failure):
        return "failed"
    # The answer to its cancel request may have come before the lease was left. Of one that takes
    # one request at a time nothing tells that from a folder that was left half laid out.
    is_well = worker.usable and worker.plan.cancellable and _is_shared(worker)
    return None if is_well else "cancelled"


def end_by_itself(worker: Worker[FolderT]) -> Reason:
    """Why `worker` ends that nobody has asked to."""
    return "cancelled" if worker.spent_by_cancellation else "failed"


def _is_shared(worker: Worker[FolderT]) -> bool:
    return worker.plan.terms.max_requests_in_flight > 1


def _is_cancellation(failure: BaseException) -> bool:
    if isinstance(failure, BaseExceptionGroup):
        return all(map(_is_cancellation, failure.exceptions))
    return isinstance(failure, trio.Cancelled)
