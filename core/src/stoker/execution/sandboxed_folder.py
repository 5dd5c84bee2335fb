"""The folder of a multiplex worker that gives each request a folder of its own."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from stoker.execution.disk import on_disk
from stoker.execution.input_root import InputRoot
from stoker.execution.run import Run
from stoker.execution.worker_folders import TIDYING, RequestFolder, Served, WorkerFolder
from stoker.spi import ProcessUser
from stoker.storage.input_tree import InputTree
from stoker.workers.plan import WorkerPlan

SANDBOXES = "__sandbox"
"""Where the folders of requests are, seen from where the worker works, as with Bazel."""


@dataclass(slots=True, eq=False)
class _Sandbox:
    """A folder for one request after the other."""

    number: int
    root: InputRoot
    lock: trio.Lock = field(default_factory=trio.Lock)


class SandboxedFolder(WorkerFolder):
    """The tool's files in the worker's root, for as long as it lives, and roots for requests.

    Those are kept, and brought to the next request's inputs by the difference.
    """

    def __init__(
        self,
        top: Path,
        plan: WorkerPlan,
        *,
        nursery: trio.Nursery,
        open_root: Callable[[Path], InputRoot],
        user: ProcessUser | None,
    ) -> None:
        super().__init__(
            top, nursery=nursery, open_root=open_root, user=user, cancellable=plan.cancellable
        )
        self._plan = plan
        self._sandboxes = self.root.folder / plan.key.working_directory / SANDBOXES
        self._idle: list[_Sandbox] = []
        self._made = 0
        self._in_flight = 0
        self._is_temporary_due = False  # whether its temporary folder is to be wiped

    @asynccontextmanager
    async def open_request(self, run: Run, worker: Served) -> AsyncIterator[RequestFolder]:
        """See :meth:`WorkerFolder.open_request`."""
        self._in_flight += 1
        sandbox = self._take(run.tree)
        folder = RequestFolder(sandbox.root, self._name_of(sandbox))
        try:
            with self._losses(worker):
                await self._prepare_root(run, worker)
                async with sandbox.lock:
                    await sandbox.root.lay_out(run.tree, run.folders)
            yield folder
        finally:
            self._leave(sandbox, folder, worker)

    async def remove(self) -> None:
        """See :meth:`WorkerFolder.remove`."""
        self._spoil("was removed")
        for sandbox in self._idle:
            async with sandbox.lock:
                pass  # whoever was tidying it up is done
        await super().remove()

    def _take(self, tree: InputTree) -> _Sandbox:
        """The one that is nearest to `tree`; of several the one that was used last."""
        if self._idle:
            nearest = min(reversed(self._idle), key=lambda sandbox: sandbox.root.cost(tree))
            self._idle.remove(nearest)
            return nearest
        self._made += 1
        return _Sandbox(self._made, self._open_root(self._sandboxes / str(self._made)))

    def _name_of(self, sandbox: _Sandbox) -> str:
        working_directory = self._plan.key.working_directory
        return posixpath.normpath(f"{SANDBOXES}/{sandbox.number}/{working_directory}")

    async def _prepare_root(self, run: Run, worker: Served) -> None:
        """Lay out the tool, which happens once, and see that the temporary folder is wiped now or
        not before the request is done."""
        async with self._lock:
            self._check_sound(worker)
            await self._wipe_temporary()
            if not self.root.is_known:
                folders = [self._sandboxes.relative_to(self.root.folder).as_posix()]
                await self.root.lay_out(self._plan.tool_tree, folders)
            self.root.check_intact()
            self._check_working_place(run)

    def _leave(self, sandbox: _Sandbox, folder: RequestFolder, worker: Served) -> None:
        if folder.is_open:
            self._after_recovery(worker, partial(self._give_back, sandbox))
        else:
            self._release(sandbox)
            self._in_background(partial(self._tidy_up, sandbox))

    async def _give_back(self, sandbox: _Sandbox) -> None:
        self._release(sandbox)
        await self._tidy_up(sandbox)

    def _release(self, sandbox: _Sandbox) -> None:
        self._idle.append(sandbox)
        self._in_flight -= 1
        self._is_temporary_due |= not self._in_flight

    async def _tidy_up(self, sandbox: _Sandbox) -> None:
        async with sandbox.lock:
            # Whoever has taken it meanwhile has cleaned it.
            if not self._spoilt and sandbox in self._idle and sandbox.root.is_known:
                await sandbox.root.clean()
        async with self._lock:
            if not self._spoilt:
                await self._wipe_temporary()

    async def _wipe_temporary(self) -> None:
        """No request works: those that have come since wait for the lock."""
        if self._is_temporary_due and not self._temporary.is_empty():
            await on_disk(TIDYING, self._temporary.wipe)
        self._is_temporary_due = False
