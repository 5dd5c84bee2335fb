"""Starting a process of this machine as a specification asks."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import trio

from stoker import spi
from stoker_exec_local.process import LocalProcess
from stoker_exec_local.program import find_program, why_not_started

# A program that was just written is busy for as long as a child, forked by another thread
# meanwhile, has not come to its exec: milliseconds (RUN-18).
_BUSY_PAUSES_SECONDS: Final = (0.005, 0.01, 0.02, 0.04, 0.08)


class LocalStrategy(spi.ExecutionStrategy):
    """Processes of this machine, with the rights of the server itself and no enclosure."""

    @asynccontextmanager
    async def start(self, spec: spi.ProcessSpec) -> AsyncIterator[spi.Process]:
        """See :class:`stoker.spi.ExecutionStrategy`."""
        process = await _start(spec)
        try:
            yield process
        finally:
            await process.end()


async def _start(spec: spi.ProcessSpec) -> LocalProcess:
    folder = spec.root / spec.working_directory
    program = spec.argv[0]
    if "/" not in program:
        program = await trio.to_thread.run_sync(find_program, spec, folder)
    with _open_output(spec.stdout) as stdout, _open_output(spec.stderr) as stderr:
        try:
            process = await _open_when_written(spec, program, folder, stdout, stderr)
        except (OSError, ValueError) as error:
            reason = await trio.to_thread.run_sync(why_not_started, error, spec, program, folder)
            raise reason from error
    return await _watched(process)


async def _open_when_written(
    spec: spi.ProcessSpec, program: str, folder: Path, stdout: int, stderr: int
) -> trio.Process:
    for pause_seconds in _BUSY_PAUSES_SECONDS:
        try:
            return await _open_process(spec, program, folder, stdout, stderr)
        except OSError as error:
            if error.errno != errno.ETXTBSY:
                raise
        await trio.sleep(pause_seconds)
    return await _open_process(spec, program, folder, stdout, stderr)


async def _open_process(
    spec: spi.ProcessSpec, program: str, folder: Path, stdout: int, stderr: int
) -> trio.Process:
    # Neither preexec_fn nor user: each would turn vfork into a fork ten times as slow.
    return await trio.lowlevel.open_process(
        spec.argv,
        executable=program,
        cwd=folder,
        env=spec.environment,
        stdin=subprocess.PIPE if spec.stdout is None else subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


@contextmanager
def _open_output(path: Path | None) -> Iterator[int]:
    """A descriptor that appends to the file `path`, or the wish for a pipe."""
    if path is None:
        yield subprocess.PIPE
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise spi.Unavailable(f"{path} cannot be opened: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _watched(process: trio.Process) -> LocalProcess:
    try:
        return LocalProcess(process, os.pidfd_open(process.pid))
    except OSError as error:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        raise spi.Unavailable(f"{process.pid} cannot be watched: {error.strerror}") from error
