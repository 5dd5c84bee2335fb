"""What the server and the launcher say to each other, each message one packet of a socket.

Both ends are the same interpreter and of one installation, so the encoding needs no versions. A
message that is too long for a packet travels as an unnamed file.
"""

from __future__ import annotations

import _socket
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# Requests: a tuple of one of these, the number of the process, and what else it needs.
CONFIGURE = "configure"
"""Once and first; the number is 0. Followed by a user (uid, gid) or None, and a cgroup or None."""
START = "start"
"""Followed by the fields of Start. Descriptors: none, or those of stdin and stdout."""
TERMINATE = "terminate"
END = "end"

# Answers: the same. A packet holds a list of them.
STARTED = "started"
"""Followed by the process id; when it began, in nanoseconds of the monotonic clock; and where its
memory can be measured: one of the three below, and what it is to be asked of. It may come late,
together with EXITED: a process that ends at once is told of once."""
GROUP_MEMORY = "group memory"
"""Followed by the version and the folder of a control group that counts memory."""
GROUP_MEMBERS = "group members"
"""Followed by the folder of a control group that does not, but knows all processes."""
DESCENDANTS = "descendants"
"""Followed by the number of a process of which all of them came."""
NOT_STARTED = "not started"
"""Followed by a kind and a text; for AT_FAULT the program, the reason and an exit code. Nothing
is left, and nothing more is said about this number."""
EXITED = "exited"
"""Followed by code, signal or None, breach, (user seconds, system seconds, peak bytes), and
whether nothing else is left of the process: then nothing more is said about this number."""
ENDED = "ended"
"""Nothing is left; nothing more is said about this number."""
LOST = "lost"
"""The process ended by something that was done to the launcher's own processes. Nothing is left."""

AT_FAULT = "program"
UNMET = "precondition"
UNAVAILABLE = "unavailable"

_LONGEST_PACKET = 64 * 1024
_MOST_DESCRIPTORS = 8
_DESCRIPTOR_BYTES = 4


class Start:
    """What is to be started. All text is as the system takes it."""

    __slots__ = (
        "argv",
        "cpus",
        "environment",
        "memory_bytes",
        "processes",
        "root",
        "stderr",
        "stdout",
        "working_directory",
    )

    def __init__(  # noqa: PLR0917  # in the order of `fields`
        self,
        argv: list[bytes],
        environment: dict[bytes, bytes],
        root: bytes,
        working_directory: bytes,
        stdout: bytes | None,
        stderr: bytes,
        cpus: float | None,
        memory_bytes: int | None,
        processes: int | None,
    ) -> None:
        self.argv = argv
        self.environment = environment
        self.root = root
        self.working_directory = working_directory
        self.stdout = stdout
        self.stderr = stderr
        self.cpus = cpus
        self.memory_bytes = memory_bytes
        self.processes = processes

    def fields(self) -> tuple[object, ...]:
        """For a message; `Start(*fields)` is the same again."""
        return (
            self.argv,
            self.environment,
            self.root,
            self.working_directory,
            self.stdout,
            self.stderr,
            self.cpus,
            self.memory_bytes,
            self.processes,
        )

    @property
    def folder(self) -> bytes:
        """Where the process begins."""
        return os.path.join(self.root, self.working_directory)


def pack(message: tuple[Any, ...]) -> tuple[bytes, list[int]]:
    """The packet of a message, and descriptors to send behind the message's own.

    The descriptors are the caller's to close. Raises OSError if there can be none.
    """
    data = marshal.dumps(message)
    if len(data) <= _LONGEST_PACKET:
        return data, []
    descriptor = os.memfd_create("stoker-request", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:  # a descriptor
            file.write(data)
    except BaseException:
        os.close(descriptor)
        raise
    return b"\0", [descriptor]


def unpack(packet: bytes, descriptors: list[int]) -> tuple[Any, ...]:
    """The message of a packet. The file that held it, if any, is taken from `descriptors`."""
    if packet != b"\0":
        return marshal.loads(packet)  # type: ignore[no-any-return]  # noqa: S302  # of our own
    descriptor = descriptors.pop()
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb") as file:  # noqa: PTH123
        return marshal.load(file)  # type: ignore[no-any-return]  # noqa: S302


def send(socket: _socket.socket, packet: bytes, descriptors: Sequence[int]) -> None:
    """Send a packet, or nothing of it. Raises BlockingIOError, or OSError for a lost end."""
    if not descriptors:
        socket.send(packet, _socket.MSG_NOSIGNAL)
        return
    data = b"".join(number.to_bytes(_DESCRIPTOR_BYTES, sys.byteorder) for number in descriptors)
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)]
    socket.sendmsg([packet], rights, _socket.MSG_NOSIGNAL)


def receive(socket: _socket.socket) -> tuple[bytes, list[int]]:
    """The next packet and its descriptors, nothing at the end. Raises BlockingIOError."""
    room = _socket.CMSG_SPACE(_MOST_DESCRIPTORS * _DESCRIPTOR_BYTES)
    packet, rights, _, _ = socket.recvmsg(
        2 * _LONGEST_PACKET, room, _socket.MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT
    )
    return packet, [number for _, _, data in rights for number in _numbers(data)]


def _numbers(data: bytes) -> list[int]:
    starts = range(0, len(data) - _DESCRIPTOR_BYTES + 1, _DESCRIPTOR_BYTES)
    return [
        int.from_bytes(data[start : start + _DESCRIPTOR_BYTES], sys.byteorder) for start in starts
    ]
