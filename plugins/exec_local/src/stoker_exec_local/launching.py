"""The server's side of the launcher: one task that hears it, and calls that never wait to tell it.

When the launcher ends, by whatever it was hit, all its processes end with it: supervisors kill
what they watch, and control groups are emptied here. The next start makes a new one.
"""

from __future__ import annotations

import errno
import marshal
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from stoker import spi
from stoker_exec_local.estate import dissolve
from stoker_exec_local.launcher import entry, messages
from stoker_exec_local.launcher.group import Estate

_PACKET_BYTES = 1024 * 1024
_END_WITHIN_SECONDS = 15.0

Hear = Callable[[str, tuple[Any, ...]], None]
"""Told each answer about one process: its kind and its facts. LOST comes if no other does."""


class Launcher:
    """One life of the launcher program. `run` must be running; nothing else of it waits."""

    def __init__(self, process: trio.Process, ours: socket.socket, estate: Estate | None) -> None:
        self.pid = process.pid
        self.is_lost = False
        self.ended = trio.Event()
        """Nothing is left of the launcher nor of any process."""
        self._process = process
        self._socket = ours
        self._estate = estate
        self._hearers: dict[int, Hear] = {}
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._has_unsent = trio.Event()

    def start(self, number: int, start: messages.Start, pipes: list[int], hear: Hear) -> None:
        """Ask for a process. `hear` is told of it until one answer was the last.

        The descriptors stay the caller's. Raises Unavailable if there are too many open.
        """
        self._hearers[number] = hear
        try:
            self._post((messages.START, number, *start.fields()), pipes)
        except BaseException:
            del self._hearers[number]
            raise

    def terminate(self, number: int) -> None:
        """Ask all that came of a process to end."""
        if number in self._hearers:
            self._post((messages.TERMINATE, number), [])

    def end(self, number: int) -> None:
        """Have all that came of a process killed."""
        if number in self._hearers:
            self._post((messages.END, number), [])

    def close(self) -> None:
        """Have the launcher kill everything, and end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _post(self, message: tuple[object, ...], descriptors: list[int]) -> None:
        try:
            packet, files = messages.pack(message)
        except OSError as error:
            raise spi.Unavailable(f"no process can be started now: {error.strerror}") from error
        try:
            self._send_or_keep(packet, [*descriptors, *files])
        finally:
            for descriptor in files:
                os.close(descriptor)

    def _send_or_keep(self, packet: bytes, descriptors: list[int]) -> None:
        if not self._unsent:
            with suppress(BlockingIOError):
                return self._send(packet, descriptors)
        self._unsent.append((packet, [os.dup(descriptor) for descriptor in descriptors]))
        self._has_unsent.set()
        return None

    def _send(self, packet: bytes, descriptors: list[int]) -> None:
        try:
            messages.send(self._socket, packet, descriptors)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS):
                raise BlockingIOError from error
            # The launcher is gone: `run` hears that too, and tells everyone.

    async def run(self) -> None:
        """Hear the launcher until it is gone, and clean up after it. Shielded when cancelled."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_unsent)
                await self._hear_all()
                nursery.cancel_scope.cancel()
            await self._clean_up()

    async def _hear_all(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = self._socket.recv(_PACKET_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            for kind, number, *facts in marshal.loads(data):  # noqa: S302  # of our own program
                self._hear(kind, number, tuple(facts))

    def _hear(self, kind: str, number: int, facts: tuple[Any, ...]) -> None:
        is_last = kind in _LAST or (kind == messages.EXITED and facts[-1])
        hear = self._hearers.pop(number, None) if is_last else self._hearers.get(number)
        if hear is not None:
            hear(kind, facts)

    async def _send_unsent(self) -> None:
        while True:
            await self._has_unsent.wait()
            while self._unsent:
                packet, descriptors = self._unsent[0]
                try:
                    self._send(packet, descriptors)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._socket)
                    continue
                self._forget_unsent()
            self._has_unsent = trio.Event()

    def _forget_unsent(self) -> None:
        for descriptor in self._unsent.popleft()[1]:
            os.close(descriptor)

    async def _clean_up(self) -> None:
        self.is_lost = True
        with trio.move_on_after(_END_WITHIN_SECONDS):
            await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._estate is not None:
            await trio.to_thread.run_sync(dissolve, self._estate)
        while self._unsent:
            self._forget_unsent()
        self._socket.close()
        hearers, self._hearers = self._hearers, {}
        for hear in hearers.values():
            hear(messages.LOST, ())
        self.ended.set()


_LAST = (messages.NOT_STARTED, messages.ENDED, messages.LOST)


async def open_launcher(user: spi.ProcessUser | None, estate: Estate | None) -> Launcher:
    """Start the program. Raises Unavailable.

    Cancellation leaves nothing. Otherwise it goes on until `Launcher.close` or this process ends.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    try:
        with theirs:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-I", "-S", "-E", entry.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=Path("/"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
    except OSError as error:
        ours.close()
        reason = f"the launcher of processes cannot be started: {error.strerror}"
        raise spi.Unavailable(reason) from error
    fields = _fields(estate) if estate is not None else None
    packet, _ = messages.pack((messages.CONFIGURE, 0, tuple(user) if user else None, fields))
    messages.send(ours, packet, [])
    return Launcher(process, ours, estate)


def _fields(estate: Estate) -> tuple[object, ...]:
    return [hierarchy.fields() for hierarchy in estate.hierarchies], estate.max_memory_bytes
