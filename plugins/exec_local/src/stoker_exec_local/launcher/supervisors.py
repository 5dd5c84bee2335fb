"""Without control groups: a process beside each command, the parent of all that comes of it.

Such a supervisor is a copy of the launcher that executes nothing. The system makes it the parent
of every descendant whose own parent ended, whatever sessions and groups they opened, so that it
can find them all, kill them all, and know that none is left.
"""

from __future__ import annotations

import _socket
import os

from stoker_exec_local.launcher import messages, system
from stoker_exec_local.launcher.descendants import kill_descendants
from stoker_exec_local.launcher.watch import Loop, Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_PAUSE_MS = 5


class Supervisors(Loop):
    """Hands each request to the supervisor of its process, who answers the server itself."""

    def __init__(
        self, inbox: _socket.socket, outbox: _socket.socket, user: tuple[int, int] | None
    ) -> None:
        super().__init__(inbox, outbox)
        self._user = user
        self._sockets: dict[int, _socket.socket] = {}
        self._numbers: dict[int, int] = {}
        """Of the supervisors that live, by process id."""
        self._lost: list[int] = []
        """Numbers whose supervisor was killed, and whose processes may still be there."""

    def _on_packet(self, packet: bytes, descriptors: list[int]) -> None:
        kind, number, *fields = messages.unpack(packet, descriptors)
        if kind == messages.START:
            self._start(number, messages.Start(*fields), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        elif number in self._sockets:
            try:
                messages.send(self._sockets[number], packet, [])
            except OSError:
                return  # its end is about to be noticed

    def _start(self, number: int, start: messages.Start, pipes: list[int]) -> None:
        try:
            ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            pid = os.fork()
        except OSError as error:
            reason = f"no process can be started now: {error.strerror}"
            self._answer(messages.NOT_STARTED, number, messages.UNAVAILABLE, reason)
            return
        if not pid:
            # The sockets of the others, or these would not see the launcher's end.
            for other in (*self._sockets.values(), ours):
                other.close()
            self._supervise(theirs, number, start, pipes)
        theirs.close()
        self._sockets[number] = ours
        self._numbers[pid] = number

    def _supervise(
        self, inbox: _socket.socket, number: int, start: messages.Start, pipes: list[int]
    ) -> NoReturn:
        try:
            system.adopt_orphans()
            watch = Watch(inbox, self._outbox, self._user, None)
            watch.start(number, start, pipes)
            for descriptor in pipes:
                os.close(descriptor)
            watch.run_until_done()
            os._exit(0)
        finally:
            os._exit(1)

    def _has_work(self) -> bool:
        return bool(self._numbers or self._lost)

    def _pause_ms(self) -> int | None:
        return _PAUSE_MS if self._lost else None

    def _on_inbox_end(self) -> None:
        for socket in self._sockets.values():
            socket.close()
        self._sockets.clear()

    def _on_readable(self, descriptor: int) -> None:
        raise NotImplementedError(descriptor)

    def _on_exit(self, pid: int, status: int, usage: Any) -> None:
        del usage
        number = self._numbers.pop(pid, None)
        if number is None:
            return
        if number in self._sockets:
            self._sockets.pop(number).close()
        if status:
            self._lost.append(number)

    def _advance(self) -> None:
        # What was below a killed supervisor is now below the launcher.
        if self._lost and not kill_descendants(os.getpid(), except_of=frozenset(self._numbers)):
            for number in self._lost:
                self._answer(messages.LOST, number)
            self._lost.clear()
