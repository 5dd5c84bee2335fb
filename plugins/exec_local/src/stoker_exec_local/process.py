"""A process of this machine, from its start until nothing is left of it."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Any

import trio

from stoker import spi
from stoker_exec_local.launcher import messages
from stoker_exec_local.launching import Launcher
from stoker_exec_local.measuring import memory_in_use

KILL_BOUND_SECONDS = 10.0
"""For how long the end is waited for. Only a process stuck inside of the kernel outlives it."""

_STDIN_BYTES = 256 * 1024
"""What may be written to a process that is not reading; the default is a quarter of that."""


class LocalProcess(spi.Process):
    """A process asked for by `begin`. `end` must be awaited after that, whatever happens."""

    def __init__(self, launcher: Launcher, number: int) -> None:
        self.name = "process"
        self._launcher = launcher
        self._number = number
        self._pipes: list[trio.lowlevel.FdStream] = []
        self._started = trio.Event()
        self._exited = trio.Event()
        self._ended = trio.Event()
        self._exit: spi.Exit | None = None
        self._failure: spi.StokerError | None = None
        self._memory_source: tuple[Any, ...] = ()

    def begin(self, start: messages.Start) -> None:
        """Ask the launcher for it. Raises Unavailable, and then there is nothing to end."""
        if start.stdout is not None:
            self._launcher.start(self._number, start, [], self._hear)
            return
        try:
            theirs = self._open_pipes()
        except OSError as error:
            raise spi.Unavailable(f"no pipes can be opened now: {error.strerror}") from error
        try:
            self._launcher.start(self._number, start, theirs, self._hear)
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def _open_pipes(self) -> list[int]:
        stdin, to_stdin = os.pipe2(os.O_CLOEXEC)
        try:
            from_stdout, stdout = os.pipe2(os.O_CLOEXEC)
        except OSError:
            os.close(stdin)
            os.close(to_stdin)
            raise
        # A request to a persistent worker that lists a thousand files then goes in one write. The
        # kernel may refuse, where a user has very many of that size.
        with suppress(OSError):
            fcntl.fcntl(to_stdin, fcntl.F_SETPIPE_SZ, _STDIN_BYTES)
        self.stdin, self.stdout = map(trio.lowlevel.FdStream, (to_stdin, from_stdout))
        self._pipes = [self.stdin, self.stdout]
        return [stdin, stdout]

    async def wait_started(self) -> None:
        """Wait until it runs. Raises what `ExecutionStrategy.start` raises."""
        await _passed(self._started)
        if self._failure is not None:
            raise self._failure

    async def wait(self) -> spi.Exit:
        """See :class:`stoker.spi.Process`. Raises Unavailable if the launcher was lost."""
        await _passed(self._exited)
        if self._exit is None:
            raise self._failure or spi.Unavailable(f"the end of {self.name} was not seen")
        return self._exit

    def terminate(self) -> None:
        """See :class:`stoker.spi.Process`."""
        if not self._ended.is_set():
            self._launcher.terminate(self._number)

    async def measure_memory(self) -> int | None:
        """See :class:`stoker.spi.Process`. Of a process that has ended nobody can tell."""
        if not self._started.is_set() or self._exited.is_set():
            return None
        source = self._memory_source
        # To read of many processes takes milliseconds.
        memory_bytes = await trio.to_thread.run_sync(memory_in_use, source)
        # Its group may serve another process by now.
        return None if self._exited.is_set() else memory_bytes

    async def end(self) -> None:
        """Kill the tree, reap the process, close its pipes. Shielded from cancellation.

        Raises Unavailable if something withstands for `KILL_BOUND_SECONDS`.
        """
        for pipe in self._pipes:
            pipe.close()
        if self._ended.is_set():
            return
        self._launcher.end(self._number)
        with trio.CancelScope(shield=True), trio.move_on_after(KILL_BOUND_SECONDS):
            await self._ended.wait()
        if not self._ended.is_set():
            raise spi.Unavailable(f"{self.name} or a child of it cannot be killed")

    def _hear(self, kind: str, facts: tuple[Any, ...]) -> None:
        if kind == messages.STARTED:
            pid, self.started_ns, self._memory_source = facts
            self.name = f"process {pid}"
            self._started.set()
        elif kind == messages.EXITED:
            self._hear_exit(*facts)
        else:
            self._hear_end(kind, facts)

    def _hear_exit(
        self,
        code: int,
        number: int | None,
        breach: str,
        usage: tuple[float, float, int],
        is_gone: bool,
    ) -> None:
        self._exit = spi.Exit(code, number, breach, spi.ResourceUsage(*usage))
        self.has_exited = True
        self._exited.set()
        if is_gone:
            self._ended.set()

    def _hear_end(self, kind: str, facts: tuple[Any, ...]) -> None:
        if kind == messages.NOT_STARTED:
            self._failure = _refusal(*facts)
        elif kind == messages.LOST:
            self._failure = spi.Unavailable(f"the launcher of {self.name} was killed, and it too")
        self._started.set()
        self._exited.set()
        self._ended.set()


async def _passed(event: trio.Event) -> None:
    """As `trio.Event.wait`, without a turn of the loop for one that is set already: most processes
    are short, and their end is heard together with their start."""
    if event.is_set():
        await trio.lowlevel.checkpoint_if_cancelled()
    else:
        await event.wait()


def _refusal(kind: str, *facts: Any) -> spi.StokerError:
    if kind == messages.AT_FAULT:
        program, reason, exit_code = facts
        return spi.ProgramNotStarted(program, reason, exit_code=exit_code)
    error = spi.FailedPrecondition if kind == messages.UNMET else spi.Unavailable
    return error(facts[0])
