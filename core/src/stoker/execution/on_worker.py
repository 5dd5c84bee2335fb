"""An action as a request to a persistent worker."""

from __future__ import annotations

import trio

from stoker.action import Outcome
from stoker.errors import ProgramNotStarted, TimedOut
from stoker.execution.input_root import InputRoot, RootReplaced
from stoker.execution.process import environment_of
from stoker.execution.run import Ending, Run, conclude
from stoker.protos.worker_protocol_pb2 import WorkRequest, WorkResponse
from stoker.spi import BlobStore
from stoker.workers.failure import WorkerFailed
from stoker.workers.plan import WorkerPlan, build_request
from stoker.workers.pool import WorkerPool
from stoker.workers.worker import Worker

_ATTEMPTS = 2

# Killed, as seen by whoever asked for the exit code.
_EXIT_CODE_OF_TIMEOUT = 137


class OnWorker:
    """Gives actions to the persistent workers of a pool. Calls may overlap."""

    def __init__(self, executor: str, blobs: BlobStore, pool: WorkerPool[InputRoot]) -> None:
        self._executor = executor
        self._blobs = blobs
        self._pool = pool

    async def run(self, run: Run, plan: WorkerPlan) -> Outcome | None:
        """The outcome of `run`, or None if no worker could serve it, with the reason noted.

        A worker that dies before it says anything is replaced once (PWK-10). Raises what
        :meth:`stoker.execution.executor.Executor.run` raises. Cancellation ends the worker.
        """
        # Before there is a worker: a request that is at fault must not cost a warm one.
        request = await build_request(plan, run.action, run.tree, self._blobs)
        failure: WorkerFailed | None = None
        for _ in range(_ATTEMPTS):
            if failure is not None:
                run.messages.append(f"{failure}")
            try:
                return await self._attempt(run, plan, request)
            except ProgramNotStarted as error:
                run.without_worker(f"the worker could not be started: {error}")
                return None
            except WorkerFailed as error:
                failure = error
                if error.answered:
                    break
        run.without_worker(f"{failure}")
        return None

    async def _attempt(self, run: Run, plan: WorkerPlan, request: WorkRequest) -> Outcome:
        environment = environment_of(run.action.command)
        async with self._pool.lease(plan, run.action, environment) as worker:
            await _lay_out(run, worker)
            run.stages.mark("input_fetch_completed")
            # What it takes to start is not the action's time (RUN-20).
            await worker.start()
            run.start()
            response = await self._perform(run, worker, request)
            run.stages.mark("execution_completed")
            run.stages.note({"worker": worker.name, "served": worker.served})
            # A worker that ran out of time is of no more use: the pool ends it.
            return await conclude(run, self._ending(run, response), worker.folder, self._blobs)

    async def _perform(
        self, run: Run, worker: Worker[InputRoot], request: WorkRequest
    ) -> WorkResponse | None:
        with trio.move_on_after(run.limit_seconds):
            return await worker.perform(request)
        return None

    def _ending(self, run: Run, response: WorkResponse | None) -> Ending:
        if response is None:
            error = TimedOut(run.limit_seconds, self._executor)
            return Ending(_EXIT_CODE_OF_TIMEOUT, error=error)
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


async def _lay_out(run: Run, worker: Worker[InputRoot]) -> None:
    try:
        await worker.folder.lay_out(run.tree, run.folders)
    except RootReplaced as error:
        # By an earlier action: this one is to have a worker that has its folder.
        raise WorkerFailed(worker.name, f"has lost its folder: {error}", answered=False) from error
