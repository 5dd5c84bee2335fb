"""An execution strategy for stoker in one file: runs every action through ``nice``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import trio

from stoker import spi

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
KILL_BOUND_SECONDS = 10


class NiceProcess(spi.Process):
    """A process that leads its own group."""

    def __init__(self, process: trio.Process) -> None:
        self.name = f"process {process.pid}"
        self.stdin = process.stdin
        self.stdout = process.stdout
        self._process = process
        self._exit: spi.Exit | None = None
        self._exit_lock = trio.Lock()
        self._reaped = False

    async def wait(self) -> spi.Exit:
        """See :class:`stoker.spi.Process`."""
        async with self._exit_lock:
            if self._exit is None:
                self._exit = await _wait_without_reaping(self._process.pid)
        return self._exit

    def terminate(self) -> None:
        """See :class:`stoker.spi.Process`."""
        if not self._reaped:
            os.killpg(self._process.pid, signal.SIGTERM)

    async def end(self) -> None:
        """Kill the group. All its members get the signal at once: none can fork out of it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        await self.wait()
        self._reaped = True
        await self._process.wait()


async def _wait_without_reaping(pid: int) -> spi.Exit:
    # A process that is reaped gives its number back, and signals to it may reach a stranger.
    pidfd = os.pidfd_open(pid)
    try:
        # Readiness is a hint: it may also be that of an earlier file of the same number.
        while (exit_ := _read_exit(pid)) is None:
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    return exit_


def _read_exit(pid: int) -> spi.Exit | None:
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if status is None:
        return None
    if status.si_code == os.CLD_EXITED:
        return spi.Exit(status.si_status)
    return spi.Exit(128 + status.si_status, status.si_status)


class NiceStrategy(spi.ExecutionStrategy):
    """Starts processes that give way to others."""

    def __init__(self, nice: str, increment: int) -> None:
        self._prefix = (nice, "-n", str(increment))

    def enforcement(self) -> Sequence[str]:
        """See :class:`stoker.spi.ExecutionStrategy`. What is not done has to be said."""
        return (
            "degraded: processes are ended by their process group; what leaves it lives on",
            "degraded: memory limits and limits of processes and processors are not enforced",
        )

    @asynccontextmanager
    async def start(self, spec: spi.ProcessSpec) -> AsyncIterator[spi.Process]:
        """See :class:`stoker.spi.ExecutionStrategy`."""
        process = await self._open(spec, _find_program(spec))
        try:
            yield process
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(KILL_BOUND_SECONDS) as bound:
                    await process.end()
                for stream in filter(None, (process.stdin, process.stdout)):
                    await trio.aclose_forcefully(stream)
            if bound.cancelled_caught:
                raise spi.Unavailable(f"{process.name} cannot be killed")

    async def _open(self, spec: spi.ProcessSpec, program: str) -> NiceProcess:
        with ExitStack() as files:
            try:
                stdout = files.enter_context(_append(spec.stdout)) if spec.stdout else None
                process = await trio.lowlevel.open_process(
                    [*self._prefix, "--", program, *spec.argv[1:]],
                    cwd=spec.root / spec.working_directory,
                    env=spec.environment,
                    stdin=subprocess.DEVNULL if stdout else subprocess.PIPE,
                    stdout=stdout or subprocess.PIPE,
                    stderr=files.enter_context(_append(spec.stderr)),
                    start_new_session=True,
                )
            except OSError as error:
                raise spi.Unavailable(f"nice cannot be started: {error}") from error
        return NiceProcess(process)


def _append(path: Path) -> BinaryIO:
    return path.open("ab", buffering=0)


def _find_program(spec: spi.ProcessSpec) -> str:
    """The program as ``nice`` is to be told it. Raises ProgramNotStarted when it is absent."""
    program = spec.argv[0]
    if "/" in program:
        found = (spec.root / spec.working_directory / program).is_file()
    else:
        path = spec.environment.get("PATH") or DEFAULT_PATH
        program = shutil.which(program, path=path) or program
        found = "/" in program
    if not found:
        raise spi.ProgramNotStarted(program, "not found", exit_code=127)
    return program


class Settings(spi.Settings, frozen=True):
    """The table ``[strategies.NAME]`` with kind = "nice"."""

    increment: Annotated[int, msgspec.Meta(ge=0, le=19)] = 10


@asynccontextmanager
async def open_strategy(settings: Settings, context: spi.Context) -> AsyncIterator[NiceStrategy]:
    """Entered once for each table, when the server starts; left when it stops."""
    nice = shutil.which("nice")
    if nice is None:
        raise spi.ConfigurationError([f"strategies.{context.name}: there is no program 'nice'"])
    yield NiceStrategy(nice, settings.increment)


@spi.hookimpl
def stoker_execution_strategies() -> Mapping[str, spi.Provider[spi.ExecutionStrategy]]:
    """What this package offers: kind "nice"."""
    return {"nice": spi.Provider(Settings, open_strategy, "processes of this machine, by nice")}
