"""An action as a request to a persistent worker."""

from __future__ import annotations

from collections.abc import Collection

import trio

from stoker.action import Outcome
from stoker.errors import ProgramNotStarted, TimedOut
from stoker.execution.input_root import InputRoot
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

    @property
    def protocols(self) -> Collection[str]:
        """Those that workers may speak here."""
        return self._pool.protocols

    async def run(self, run: Run, plan: WorkerPlan) -> Outcome | None:
        """The outcome of `run`, or None if no worker could serve it, with the reason noted.

        A worker that dies before it says anything is replaced once (PWK-10). Raises what
        :meth:`stoker.execution.executor.Executor.run` raises. Cancellation ends the worker.
        """
        failure: WorkerFailed | None = None
        for _ in range(_ATTEMPTS):
            try:
                return await self._attempt(run, plan)
            except _OutOfTime as end:
                return end.outcome
            except ProgramNotStarted as error:
                run.without_worker(f"the worker could not be started: {error}")
                return None
            except WorkerFailed as error:
                failure = error
                if error.answered:
                    break
                run.messages.append(f"{error}")
        run.without_worker(f"{failure}")
        return None

    async def _attempt(self, run: Run, plan: WorkerPlan) -> Outcome:
        environment = environment_of(run.action.command)
        async with self._pool.lease(plan, run.action, environment) as worker:
            await worker.root.lay_out(run.tree, run.folders)
            request = await build_request(plan, run.action, run.tree, self._blobs)
            run.stages.mark("input_fetch_completed")
            # What it takes to start is not the action's time (RUN-20).
            await worker.start()
            run.start()
            response = await self._perform(run, worker, request)
            run.stages.mark("execution_completed")
            if response is None:
                # By an exception, so that the worker, which is still at it, is ended.
                raise _OutOfTime(await self._out_of_time(run, worker))
            run.stages.note({"worker": worker.name, "served": worker.served})
            # PWK-08: what a worker says belongs on stderr, as with Bazel's own workers.
            ending = Ending(response.exit_code, stderr=response.output.encode())
            return await conclude(run, ending, worker.folder, self._blobs)

    async def _perform(
        self, run: Run, worker: Worker[InputRoot], request: WorkRequest
    ) -> WorkResponse | None:
        with trio.move_on_after(run.limit_seconds):
            return await worker.perform(request)
        return None

    async def _out_of_time(self, run: Run, worker: Worker[InputRoot]) -> Outcome:
        run.stages.note({"worker": worker.name, "served": worker.served})
        error = TimedOut(run.limit_seconds, self._executor)
        ending = Ending(_EXIT_CODE_OF_TIMEOUT, error=error)
        return await conclude(run, ending, worker.folder, self._blobs)


class _OutOfTime(Exception):
    """Leaves a lease with an outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        super().__init__()
