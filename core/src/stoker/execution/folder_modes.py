"""Which sort of folder a worker has, by the mode of its plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from stoker.execution.input_root import InputRoot
from stoker.execution.sandboxed_folder import SandboxedFolder
from stoker.execution.shared_folder import SharedFolder
from stoker.execution.worker_folders import WorkerFolder
from stoker.spi import ProcessUser
from stoker.workers.key import Mode
from stoker.workers.plan import WorkerPlan


def open_worker_folder(
    plan: WorkerPlan,
    top: Path,
    *,
    nursery: trio.Nursery,
    open_root: Callable[[Path], InputRoot],
    user: ProcessUser | None,
) -> WorkerFolder:
    """The folder `top`, for the requests of a worker that serves `plan` (PWK-14)."""
    if plan.key.mode is Mode.SANDBOXED_MULTIPLEX:
        return SandboxedFolder(top, plan, nursery=nursery, open_root=open_root, user=user)
    return SharedFolder(
        top,
        nursery=nursery,
        open_root=open_root,
        user=user,
        cancellable=plan.cancellable,
        is_alone=plan.key.mode is Mode.SINGLEPLEX,
    )
