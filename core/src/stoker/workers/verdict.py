"""Whether a worker is to be ended, by how one of its leases was left."""

from __future__ import annotations

from typing import TypeVar

import trio

from stoker.workers.places import Reason
from stoker.workers.worker import Worker

FolderT = TypeVar("FolderT")


def reason_to_end(worker: Worker[FolderT], failure: BaseException | None) -> Reason | None:
    """Why `worker`, which has nothing to recover from, can serve no more; None if it can.

    `failure` is what the lease was left by.
    """
    if failure is None:
        return None if worker.usable else "failed"
    if not _is_cancellation(failure):
        return "failed"
    # The answer to its cancel request may have come before the lease was left. Of one that takes
    # one request at a time nothing tells that from a folder that was left half laid out.
    is_shared = worker.plan.terms.max_requests_in_flight > 1
    return None if worker.usable and worker.plan.cancellable and is_shared else "cancelled"


def _is_cancellation(failure: BaseException) -> bool:
    if isinstance(failure, BaseExceptionGroup):
        return all(map(_is_cancellation, failure.exceptions))
    return isinstance(failure, trio.Cancelled)
