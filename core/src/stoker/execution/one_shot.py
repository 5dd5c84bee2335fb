"""An action as one process of its own."""

from __future__ import annotations

import signal
from typing import NamedTuple

import trio

from stoker.action import Outcome
from stoker.errors import ProgramNotStarted, TimedOut
from stoker.execution.action_folders import Workplace
from stoker.execution.process import ActionFolders, process_spec
from stoker.execution.run import Ending, Run, conclude
from stoker.execution.stages import signal_name
from stoker.spi import BlobStore, ExecutionStrategy, Exit, Process, ProcessSpec

_KILLED = Exit(128 + signal.SIGKILL, signal.SIGKILL)


class _Stop(NamedTuple):
    exit: Exit
    timed_out: bool


class OneShot:
    """Runs actions as processes, each in folders of its own. Calls may overlap."""

    def __init__(
        self,
        *,
        executor: str,
        blobs: BlobStore,
        strategy: ExecutionStrategy,
        workplace: Workplace,
        grace_seconds: float,
    ) -> None:
        self._executor = executor
        self._blobs = blobs
        self._strategy = strategy
        self._workplace = workplace
        self._grace_seconds = grace_seconds

    async def run(self, run: Run) -> Outcome:
        """See :meth:`stoker.execution.executor.Executor.run`."""
        async with self._workplace.open_place(run.tree) as place:
            folders, root = place.folders, place.root
            await root.lay_out(run.tree, run.folders)
            run.stages.mark("input_fetch_completed")
            run.output.attach(*place.live_files())
            try:
                stop = await self._run_process(run, process_spec(run.action, folders))
                ending = self._ending(run, stop, folders)
                return await conclude(run, ending, root, self._blobs)
            except ProgramNotStarted as error:
                ending = Ending(error.exit_code, stderr=f"{error}\n".encode(), error=error)
                return await conclude(run, ending, None, self._blobs)
            finally:
                # The files may be those of the next action.
                run.output.detach()

    async def _run_process(self, run: Run, spec: ProcessSpec) -> _Stop:
        """Run to the end. When this returns, or raises, nothing of the process lives (RUN-22)."""
        run.start()
        try:
            async with self._strategy.start(spec) as process:
                # Once more: what came before is not the command's time (RUN-20).
                run.stages.mark("execution_start", process.started_ns)
                if process.facts:
                    run.stages.note(process.facts)
                return await self._wait(process, run.limit_seconds)
        finally:
            run.stages.mark("execution_completed")

    async def _wait(self, process: Process, limit_seconds: float) -> _Stop:
        if process.has_exited:
            return _Stop(await process.wait(), timed_out=False)
        with trio.move_on_after(limit_seconds):
            return _Stop(await process.wait(), timed_out=False)
        # RUN-21: time to write down what it has.
        process.terminate()
        with trio.move_on_after(self._grace_seconds):
            return _Stop(await process.wait(), timed_out=True)
        return _Stop(_KILLED, timed_out=True)

    def _ending(self, run: Run, stop: _Stop, folders: ActionFolders) -> Ending:
        run.stages.note_exit(stop.exit)
        error = TimedOut(run.limit_seconds, self._executor) if stop.timed_out else None
        if reason := _reason(stop):
            run.messages.append(f"the command was ended on executor {self._executor}: {reason}")
        # RUN-23: what breaks a limit here may keep to it elsewhere.
        reusable = not stop.exit.breach
        return Ending(
            stop.exit.code,
            folders.stdout,
            folders.stderr,
            error,
            reusable=reusable,
            processes_ended=True,
        )


def _reason(stop: _Stop) -> str:
    """Why it ended before its time, for all that its exit code cannot tell (RUN-15, RUN-23)."""
    if stop.exit.breach or stop.timed_out or stop.exit.signal is None:
        return stop.exit.breach
    return f"signal {stop.exit.signal} ({signal_name(stop.exit.signal)})"
