"""The folder of a worker whose requests all work in the worker's own root.

Singleplex workers have one request after the other there, multiplex ones several at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from stoker.execution.claims import Claim, Claims, claim
from stoker.execution.disk import on_disk
from stoker.execution.input_root import InputRoot
from stoker.execution.run import Run
from stoker.execution.worker_folders import TIDYING, RequestFolder, Served, WorkerFolder
from stoker.spi import ProcessUser
from stoker.workers.failure import WorkerFailed


class SharedFolder(WorkerFolder):
    """One root, brought to the input root of a request by the difference to the last one.

    While others are in flight, the inputs of a request are added to theirs, and only its outputs
    removed when it is done. One that does not agree with them waits, first come first served.
    """

    def __init__(
        self,
        top: Path,
        *,
        nursery: trio.Nursery,
        open_root: Callable[[Path], InputRoot],
        user: ProcessUser | None,
        cancellable: bool,
        is_alone: bool,
    ) -> None:
        """With `is_alone`, no two requests agree."""
        super().__init__(
            top, nursery=nursery, open_root=open_root, user=user, cancellable=cancellable
        )
        self._is_alone = is_alone
        self._claims = Claims()
        self._turns: set[trio.Event] = set()

    @asynccontextmanager
    async def open_request(self, run: Run, worker: Served) -> AsyncIterator[RequestFolder]:
        """See :meth:`WorkerFolder.open_request`."""
        own = claim(run.action, run.tree, run.folders, is_alone=self._is_alone)
        folder = RequestFolder(self.root)
        try:
            await self._wait_for_turn(own)
            async with self._lock:
                self._check_sound(worker)
                with self._losses(worker):
                    await self._lay_out(run, own, worker)
            yield folder
        finally:
            self._leave(own, folder, worker)

    async def _wait_for_turn(self, own: Claim) -> None:
        turn = trio.Event()
        self._claims.ask(own, turn.set)
        if turn.is_set():
            return
        self._turns.add(turn)
        try:
            await turn.wait()
        finally:
            self._turns.remove(turn)

    def _spoil(self, reason: str) -> None:
        super()._spoil(reason)
        for turn in self._turns:
            # They see that it is spoilt: what they wait for may never come.
            turn.set()

    async def _lay_out(self, run: Run, own: Claim, worker: Served) -> None:
        if not self._claims.others(own):
            own.is_laid_out = True
            await self.root.lay_out(run.tree, run.folders)
        elif self.root.is_known:
            own.is_laid_out = True
            await self.root.add(run.tree, run.folders, own.outputs)
        else:
            # It would have to be emptied under those who use it.
            raise WorkerFailed(
                worker.name, "has a folder that is in doubt, and in use", answered=False
            )
        self._check_working_place(run)

    def _leave(self, own: Claim, folder: RequestFolder, worker: Served) -> None:
        if folder.is_open:
            self._after_recovery(worker, partial(self._settle, own))
        elif own.is_laid_out:
            # Whoever waits for the outcome need not wait for this too.
            self._in_background(partial(self._settle, own))
        else:
            self._claims.give_back(own)

    def _is_clean(self, own: Claim) -> bool:
        """Whether a few looks tell that there is nothing to tidy up."""
        return (
            not self._claims.others(own)
            and self._temporary.is_empty()
            and self.root.skip_cleaning()
        )

    async def _settle(self, own: Claim) -> None:
        """Tidy up after a request, before anybody who does not agree with it has the folder."""
        try:
            if self._is_clean(own):
                return
            async with self._lock:
                if self._spoilt or not self.root.is_known:
                    return
                if self._claims.others(own):
                    await self.root.drop(own.outputs)
                else:
                    await on_disk(TIDYING, self._tidy_up)
        finally:
            self._claims.give_back(own)

    def _tidy_up(self) -> None:
        self.root.clean_now()
        self._temporary.wipe()
