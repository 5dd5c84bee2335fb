"""An action as a request to a persistent worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from stoker.action import Outcome
from stoker.errors import InvalidRequest, ProgramNotStarted, StokerError, TimedOut, Unavailable
from stoker.execution.disk import on_disk
from stoker.execution.input_root import InputRoot
from stoker.execution.process import environment_of
from stoker.execution.run import Ending, Run, conclude
from stoker.execution.uploads import Uploads
from stoker.execution.worker_folders import RequestFolder, WorkerFolder
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobStore
from stoker.workers.conversation import Answer
from stoker.workers.failure import WorkerFailed
from stoker.workers.plan import WorkerPlan
from stoker.workers.pool import WorkerPool
from stoker.workers.requests import SpeltRequest, build_request
from stoker.workers.settings import WorkerSettings
from stoker.workers.worker import Worker

_log = structlog.get_logger(__name__)

MAX_KEPT_LOG_BYTES = 64 * 2**10
"""How much of a failed worker's log the client is given: the end of it."""

# Killed, as seen by whoever asked for the exit code.
_EXIT_CODE_OF_TIMEOUT = 137


class OnWorker:
    """Gives actions to the persistent workers of a pool. Calls may overlap."""

    def __init__(
        self,
        executor: str,
        blobs: BlobStore,
        pool: WorkerPool[WorkerFolder],
        settings: WorkerSettings,
    ) -> None:
        self._executor = executor
        self._blobs = blobs
        self._pool = pool
        self._settings = settings

    async def run(self, run: Run, plan: WorkerPlan) -> Outcome | None:
        """The outcome of `run`, or None if it is to be run without a worker, with the reason noted.

        A worker that fails before it says anything is replaced as often as the settings say
        (PWK-10). An outcome of Unavailable is one that no worker could make, where nothing else
        may. Raises what :meth:`stoker.execution.executor.Executor.run` raises. After cancellation
        the worker is ended, or is told and outlives it.
        """
        # Before there is a worker: a request that is at fault must not cost a warm one.
        try:
            request = await build_request(plan, run.action, run.tree, self._blobs)
        except InvalidRequest as error:
            # Of flag files, which to the tool itself may be no such thing, or none too large.
            run.without_worker(f"{error}")
            return None
        attempts = 1 + self._settings.retries
        for attempt in range(1, attempts + 1):
            try:
                return await self._attempt(run, plan, request, avoid_warm=attempt > 1)
            except ProgramNotStarted as error:
                return await self._without_program(run, error)
            except WorkerFailed as error:
                if error.answered or attempt == attempts:
                    return self._without_worker(run, error)
                run.messages.append(f"{error}")
        raise AssertionError("the last attempt returns or raises")

    def _without_worker(self, run: Run, error: WorkerFailed) -> Outcome | None:
        if self._settings.one_shot_fallback:
            run.without_worker(f"{error}")
            return None
        # It says nothing of the action, and is never filed (RUN-24).
        run.messages.append(f"{error}")
        return Outcome(
            error=Unavailable(f"no persistent worker could serve the action: {error}"),
            message="\n".join(run.messages),
            server_logs=run.server_logs,
        )

    async def _without_program(self, run: Run, error: ProgramNotStarted) -> Outcome | None:
        """RUN-17: a program that cannot be started is at fault with and without a worker."""
        if self._settings.one_shot_fallback:
            run.without_worker(f"the worker could not be started: {error}")
            return None
        ending = Ending(error.exit_code, stderr=f"{error}\n".encode(), error=error)
        return await conclude(run, ending, None, self._blobs)

    async def _attempt(
        self, run: Run, plan: WorkerPlan, request: SpeltRequest, *, avoid_warm: bool
    ) -> Outcome:
        async with self._lease(run, plan, avoid_warm=avoid_warm) as worker:
            # The pool may have it serve another action before this one has told of itself.
            key = "miss" if worker.fresh else "hit"
            async with worker.folder.open_request(run, worker) as folder:
                run.stages.mark("input_fetch_completed")
                # What it takes to start is not the action's time (RUN-20).
                await worker.start()
                run.start()
                request.head.sandbox_dir = folder.sandbox_dir
                answer = await _perform(run, worker, request, folder)
                run.stages.mark("execution_completed")
                run.stages.note(
                    {
                        **worker.facts,
                        "worker": worker.name,
                        "served": worker.served if answer is None else answer.number,
                        "worker_key": key,
                        "tools_by": plan.tools_by,
                    }
                )
                root: InputRoot | None = folder.root
                if answer is None and not await worker.let_go():
                    run.messages.append(f"no outputs are taken: {worker.name} may still write them")
                    root = None
                folder.is_open = answer is None and not worker.usable
                return await conclude(run, self._ending(run, answer), root, self._blobs)

    @asynccontextmanager
    async def _lease(
        self, run: Run, plan: WorkerPlan, *, avoid_warm: bool
    ) -> AsyncIterator[Worker[WorkerFolder]]:
        environment = environment_of(run.action.command)
        async with self._pool.lease(plan, run.action, environment, avoid_warm=avoid_warm) as worker:
            try:
                yield worker
            except WorkerFailed:
                # While it is leased: afterwards its log may go.
                await self._keep_log(run, worker)
                raise

    async def _keep_log(self, run: Run, worker: Worker[WorkerFolder]) -> None:
        """Give the client what the worker said on stderr (PWK-08)."""
        try:
            tail = await on_disk(
                "reading a worker's log:", partial(worker.read_log, MAX_KEPT_LOG_BYTES)
            )
            if not tail:
                return
            uploads = Uploads(run.action.digest.function, self._blobs)
            digest = uploads.add(tail)
            await uploads.publish()
        except StokerError as error:
            # The message has the end of it too.
            _log.info("worker's log not kept", worker=worker.name, reason=str(error))
        else:
            log = reapi.LogFile(digest=digest.to_proto(), human_readable=True)
            run.server_logs[f"{worker.name}.log"] = log

    def _ending(self, run: Run, answer: Answer | None) -> Ending:
        if answer is None:
            error = TimedOut(run.limit_seconds, self._executor)
            return Ending(_EXIT_CODE_OF_TIMEOUT, error=error)
        response = answer.response
        code = process_exit_code(response.exit_code)
        if code != response.exit_code:
            run.messages.append(f"the worker answered exit code {response.exit_code}")
        # PWK-08: what a worker says belongs on stderr, as with Bazel's own workers.
        return Ending(code, stderr=response.output.encode())


def process_exit_code(number: int) -> int:
    """What stands for any 32-bit `number` among the exit codes that processes have (RUN-15).

    As when a process exits with it, these are its lowest eight bits; but a failure stays one, and
    is 1 where those are all zero.
    """
    return number & 0xFF or int(number != 0)


async def _perform(
    run: Run, worker: Worker[WorkerFolder], request: SpeltRequest, folder: RequestFolder
) -> Answer | None:
    """The answer, or None where the time was over before it came (PWK-15)."""
    folder.is_open = True
    with trio.move_on_after(run.limit_seconds):
        answer = await worker.perform(*request)
        folder.is_open = False
        return answer
    return None
