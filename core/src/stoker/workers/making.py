"""New workers: their folders, their logs, and what they are to be started as."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog

from stoker.action import LoadedAction
from stoker.errors import StokerError, Unavailable
from stoker.spi import ProcessSpec, ProcessUser, WorkerProtocol
from stoker.workers.logs import WorkerLogs
from stoker.workers.plan import WorkerPlan
from stoker.workers.worker import Worker, WorkerMachinery

_log = structlog.get_logger(__name__)


class Folder(Protocol):
    """What keeps a worker's folder: the pool only asks it to take the folder away."""

    async def remove(self) -> None:
        """Delete the folder and all below it. Raises StokerError where something withstands."""


FolderT = TypeVar("FolderT", bound=Folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMaker(Generic[FolderT]):
    """Makes the workers of one pool.

    Each has a folder ``worker-NUMBER`` that no other ever has (WORKERS 8.9). Below it, ``root`` is
    the input root, which stays the same as long as the process lives (WORKERS 8.14), and ``tmp``
    is for the process, with ``home`` and ``tmp`` as HOME and TMPDIR.
    """

    machinery: WorkerMachinery
    protocols: Mapping[str, WorkerProtocol]
    folder: Path
    open_folder: Callable[[WorkerPlan, Path], FolderT]
    user: ProcessUser | None
    logs: WorkerLogs
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def make(
        self, plan: WorkerPlan, action: LoadedAction, environment: Mapping[str, str]
    ) -> Worker[FolderT]:
        """A worker without a process. Raises Unavailable if there is no folder to be had."""
        number = next(self.numbers)
        name = _worker_name(number, plan.name or action.mnemonic)
        top = self.folder / f"worker-{number}"
        with _disk_errors("making a worker's folder"):
            _make_folders(top, self.user)
            log = self.logs.open(name)
        temporary = top / "tmp"
        spec = ProcessSpec(
            argv=plan.key.argv,
            environment={
                "HOME": str(temporary / "home"),
                "TMPDIR": str(temporary / "tmp"),
                **environment,
            },
            root=top / "root",
            working_directory=plan.key.working_directory,
            temporary_directory=temporary,
            stderr=log,
            properties=action.platform,
            root_changes=True,
            namespace=action.namespace,
        )
        return Worker(
            name=name,
            plan=plan,
            folder=self.open_folder(plan, top),
            spec=spec,
            protocol=self.protocols[plan.protocol],
            machinery=self.machinery,
        )

    async def remove(self, worker: Worker[FolderT]) -> None:
        """Remove what is left of a worker that has ended, but for its log. Failures are logged."""
        try:
            await worker.folder.remove()
        except StokerError as error:
            _log.warning("worker's folder not removed", worker=worker.name, reason=str(error))
        try:
            with _disk_errors("removing a worker's log"):
                self.logs.end(worker.log)
        except StokerError as error:
            _log.warning("worker's log not removed", worker=worker.name, reason=str(error))

    def remove_logs(self) -> None:
        """Remove the logs of all workers, which have ended. Failures are logged."""
        try:
            with _disk_errors("removing the workers' logs"):
                self.logs.remove()
        except StokerError as error:
            _log.warning("workers' logs not removed", reason=str(error))


def _make_folders(top: Path, user: ProcessUser | None) -> None:
    (top / "root").mkdir(parents=True)
    top.chmod(0o711)
    temporary = top / "tmp"
    for path in (temporary, temporary / "home", temporary / "tmp"):
        path.mkdir(0o700)
        if user is not None:
            os.chown(path, *user)


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
