"""Where actions are run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from stoker.action import LoadedAction, Outcome
from stoker.errors import InputsMissing, StorageFull
from stoker.execution.action_folders import Workplace, open_workplace
from stoker.execution.disk import Disk
from stoker.execution.folder_modes import open_worker_folder
from stoker.execution.folder_watch import FolderWatch, open_folder_watch
from stoker.execution.input_root import InputRoot
from stoker.execution.on_worker import OnWorker
from stoker.execution.one_shot import OneShot
from stoker.execution.run import Run, Started
from stoker.execution.settings import ExecutionSettings
from stoker.execution.stages import Stages
from stoker.execution.worker_folders import WorkerFolder
from stoker.log_streams.run_output import RunOutputs
from stoker.spi import BlobStore, ExecutionStrategy, ProcessUser, WorkerProtocol
from stoker.storage.input_tree import InputTree
from stoker.storage.tree_cache import InputTrees
from stoker.workers.plan import Planner, WorkerPlan
from stoker.workers.pool import WorkerPool, open_worker_pool
from stoker.workers.settings import WorkerSettings


class Executor:
    """Runs actions, each to its outcome. Calls may overlap: how many is the caller's affair."""

    def __init__(
        self,
        *,
        name: str,
        blobs: BlobStore,
        one_shot: OneShot,
        strategy: ExecutionStrategy,
        workers: WorkerPool[WorkerFolder],
        worker_settings: WorkerSettings,
        workplace: Workplace,
        settings: ExecutionSettings,
        disk: Disk,
        outputs: RunOutputs,
    ) -> None:
        self.name = name
        self.workplace = workplace
        self._disk = disk
        self._outputs = outputs
        self._trees = InputTrees(blobs)
        self._one_shot = one_shot
        self._on_worker = OnWorker(name, blobs, workers, worker_settings)
        self._strategy = strategy
        self.workers = workers
        self._planner = Planner(
            workers.protocols, worker_settings, keeps_containers=strategy.keeps_containers
        )
        self._settings = settings

    async def run(self, action: LoadedAction, started: Started) -> Outcome:
        """Run `action`. `started` is called once its inputs are there, just before it begins, with
        the names that its output can be read by; again where a worker failed and it begins anew;
        and without names before that, whenever there is something to tell of what is fetched for
        it.

        An outcome may hold an error and a result: a timeout with what the action had written
        (RUN-19), a program that cannot be started (RUN-17), outputs that REAPI has no word for.
        Raises InvalidRequest and InputsMissing for faults of the request, FailedPrecondition,
        Unavailable, StorageFull and DataLoss for trouble here, which says nothing of the action
        (RUN-24). After cancellation no process and no folder of the action is left.
        """
        stages = Stages(self.name)
        limit_seconds = self._settings.limit_seconds(action)
        begun = trio.current_time()
        await self._check_room()
        stages.mark("input_fetch_start")
        tree = await self._trees.read(action.input_root)
        output = self._outputs.begin(action.namespace)
        run = Run(
            action=action,
            tree=tree,
            limit_seconds=limit_seconds,
            started=started,
            stages=stages,
            disk=self._disk,
            begun=begun,
            budget=self._settings.output_budget(self.name, action),
            output=output,
        )
        await self._strategy.prepare(action.platform, run.tell)
        try:
            return await self._run_on_worker(run) or await self._one_shot.run(run)
        except InputsMissing as error:
            raise await self._all_missing(tree, error) from error
        finally:
            output.lose()

    async def _check_room(self) -> None:
        try:
            self._disk.check_room()
        except StorageFull:
            # Roots are kept to save time, and never instead of running an action.
            if not await self.workplace.discard_idle():
                raise
            self._disk.check_room()

    async def _all_missing(self, tree: InputTree, found: InputsMissing) -> InputsMissing:
        """`found` and what else has gone from the store, so that one answer names all (EXE-04)."""
        missing = [*found.digests, *await self._trees.find_missing(tree)]
        return InputsMissing(list(dict.fromkeys(missing)))

    async def _run_on_worker(self, run: Run) -> Outcome | None:
        plan = self._planner.plan(run.action, run.tree)
        if isinstance(plan, WorkerPlan):
            surroundings = await self._strategy.identify_surroundings(run.action.platform)
            return await self._on_worker.run(run, plan.within(surroundings))
        if isinstance(plan, str):
            run.without_worker(plan)
        return None


@asynccontextmanager
async def _folder_watch() -> AsyncIterator[FolderWatch]:
    with open_folder_watch() as watch:
        yield watch


@asynccontextmanager
async def open_executor(
    *,
    name: str,
    blobs: BlobStore,
    strategy: ExecutionStrategy,
    protocols: Mapping[str, WorkerProtocol],
    folder: Path,
    settings: ExecutionSettings,
    worker_settings: WorkerSettings,
    link_inputs: bool = False,
    link_worker_inputs: bool = False,
    user: ProcessUser | None = None,
    outputs: RunOutputs | None = None,
) -> AsyncIterator[Executor]:
    """An executor, and its persistent workers, in `folder`, which it has to itself.

    What an earlier one left there is never seen again, and deleted in the background. Without
    `protocols`, actions that ask for a persistent worker are run as any other. Inputs are links
    to blobs where that is said to be safe (RUN-02), of one-shot actions and of workers; folders
    belong to `user`, whom processes run as where that is not the server's own. What actions print
    can be read from `outputs` while they run. Raises
    ConfigurationError if another executor, of whatever process, uses the folder.
    """
    open_root = partial(InputRoot, blobs=blobs, link=link_inputs, user=user)
    async with (
        open_workplace(folder, open_root=open_root, settings=settings, user=user) as workplace,
        _folder_watch() as watch,
        # Tidies up what workers leave, and so ends after them.
        trio.open_nursery() as nursery,
    ):
        one_shot = OneShot(
            executor=name,
            blobs=blobs,
            strategy=strategy,
            workplace=workplace,
            grace_seconds=settings.termination_grace_seconds,
        )
        async with open_worker_pool(
            strategy=strategy,
            protocols=protocols,
            folder=workplace.workers,
            open_folder=partial(
                open_worker_folder,
                nursery=nursery,
                open_root=partial(
                    InputRoot, blobs=blobs, link=link_worker_inputs, user=user, watch=watch
                ),
                user=user,
            ),
            settings=worker_settings,
            user=user,
        ) as workers:
            yield Executor(
                name=name,
                blobs=blobs,
                one_shot=one_shot,
                strategy=strategy,
                workers=workers,
                worker_settings=worker_settings,
                workplace=workplace,
                settings=settings,
                disk=Disk(folder),
                outputs=RunOutputs() if outputs is None else outputs,
            )
        nursery.cancel_scope.cancel()
