"""The launcher itself: ends with its server, and takes all processes with it."""

from __future__ import annotations

import _socket
import gc
import os
import signal
import time

from stoker_exec_local.launcher import messages, system
from stoker_exec_local.launcher.group import Estate, Hierarchy
from stoker_exec_local.launcher.supervisors import Supervisors
from stoker_exec_local.launcher.watch import Watch

_PAUSE_SECONDS = 0.01


def serve(descriptor: int) -> None:
    """Serve the socket of that number until its other end is closed."""
    socket = _socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    # A terminal or a service manager means the server, which will tell.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    packet, _ = _first_packet(socket)
    if not packet:
        return
    _, _, user, estate = messages.unpack(packet, [])
    system.adopt_orphans()
    # What exists now is never looked at again, so that forks do not copy it.
    gc.freeze()
    gc.disable()
    # Whatever the server's own is: it shows in the permissions of outputs.
    os.umask(0o022)
    if estate is None:
        Supervisors(socket, socket, user).run()
    else:
        _serve_with_groups(socket, user, _estate(*estate))


def _serve_with_groups(
    socket: _socket.socket, user: tuple[int, int] | None, estate: Estate
) -> None:
    if user is None:
        estate.try_homes()
    Watch(socket, socket, user, estate).run()
    while not estate.remove():
        time.sleep(_PAUSE_SECONDS)


def _estate(hierarchies: list[tuple[object, ...]], max_memory_bytes: int | None) -> Estate:
    return Estate([Hierarchy(*fields) for fields in hierarchies], max_memory_bytes)  # type: ignore[arg-type]  # as they were packed


def _first_packet(socket: _socket.socket) -> tuple[bytes, list[int]]:
    while True:
        try:
            return messages.receive(socket)
        except BlockingIOError:
            time.sleep(_PAUSE_SECONDS)
        except OSError:
            return b"", []
