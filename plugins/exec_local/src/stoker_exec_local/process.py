"""A process of this machine, from its start until nothing is left of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import trio

from stoker import spi
from stoker_exec_local.tree import ProcessTree

KILL_BOUND_SECONDS = 10.0
"""For how long SIGKILL is tried. Only a process stuck inside of the kernel outlives it."""


class LocalProcess(spi.Process):
    """A process that leads a session of its own. `end` must be awaited, whatever happens."""

    def __init__(self, process: trio.Process, pidfd: int) -> None:
        self.name = f"process {process.pid}"
        self._tree = ProcessTree(process.pid)
        self.stdin = _Stdin(process.stdin, self._tree.note) if process.stdin else None
        self.stdout = process.stdout
        self._process = process
        self._pidfd = pidfd
        self._exit: spi.Exit | None = None
        self._exit_lock = trio.Lock()
        self._reaped = False

    async def wait(self) -> spi.Exit:
        """See :class:`stoker.spi.Process`."""
        async with self._exit_lock:
            if self._exit is None:
                self._exit = await self._wait_for_exit()
        return self._exit

    async def _wait_for_exit(self) -> spi.Exit:
        # Readiness is a hint: while a child of another thread still holds a closed descriptor,
        # epoll may report it under a number that is this process's by now.
        while (exit_ := _read_exit(self._process.pid)) is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        return exit_

    def terminate(self) -> None:
        """See :class:`stoker.spi.Process`."""
        if not self._reaped:
            self._tree.send(signal.SIGTERM)

    async def end(self) -> None:
        """Kill the tree, reap the process, close its pipes. Shielded from cancellation.

        Raises Unavailable if something withstands for `KILL_BOUND_SECONDS`.
        """
        with trio.CancelScope(shield=True):
            try:
                with trio.fail_after(KILL_BOUND_SECONDS):
                    await self._kill_and_reap()
            except trio.TooSlowError as error:
                raise spi.Unavailable(f"{self.name} or a child of it cannot be killed") from error
            finally:
                await self._close()

    async def _kill_and_reap(self) -> None:
        await self._tree.kill()
        await self.wait()
        self._reaped = True
        await self._process.wait()

    async def _close(self) -> None:
        trio.lowlevel.notify_closing(self._pidfd)
        os.close(self._pidfd)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                await trio.aclose_forcefully(stream)


class _Stdin(trio.abc.SendStream):
    """A pipe to a process, whose end is what many processes end by."""

    def __init__(self, pipe: trio.abc.SendStream, on_closing: Callable[[], None]) -> None:
        self._pipe = pipe
        self._on_closing = on_closing

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._pipe.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._pipe.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        try:
            self._on_closing()
        finally:
            await self._pipe.aclose()


def _read_exit(pid: int) -> spi.Exit | None:
    """How the child `pid` ended (RUN-15), None while it has not.

    The child is not reaped: until its tree is dead, its number must stay taken.
    """
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if status is None:
        return None
    if status.si_code == os.CLD_EXITED:
        return spi.Exit(status.si_status & 0xFF)
    return spi.Exit(128 + status.si_status, status.si_status)
