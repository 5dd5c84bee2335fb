"""What is started in place of an enclosed program. Pure.

Outermost is unshare, which the strategy starts with an empty environment: a variable such as
LD_PRELOAD must not reach a program outside of the enclosure. It waits with SIGTERM blocked, as
the first process of a namespace of process numbers in which bubblewrap is number one. A process
with that number hears no signal that it does not handle, so that a SIGTERM to the whole tree ends
neither, and reaches the command, whose parent is number one of a second such namespace. SIGKILL
of any of the three ends all that is within. The parent death signals that see to that are between
processes of one thread each; between the server and unshare there is none, as such a signal comes
when the thread ends that has started the process.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from stoker import spi
from stoker_sandbox_bubblewrap.settings import Network
from stoker_sandbox_bubblewrap.view import View

READY = "ready"
"""A folder that comes into being in the private folder when the enclosure is complete."""
COMMAND_FILE = "command"
ENV = "/usr/bin/env"
RUN_COMMAND_FILE = ("/bin/sh", "/run/stoker/command")

# Bubblewrap refuses more than 9,000 arguments, its own and the command's together; the kernel
# takes 2 MiB in all by default.
_MAX_ARGUMENTS = 8_000
_MAX_ARGUMENT_BYTES = 512 * 1024

_OF_THE_KERNEL = (
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/acpi",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/mtrr",
    "/proc/scsi",
)

_MOUNT_OVERLAY = (
    'cd -- "$1" && "$2" -n -t overlay overlay '
    "-o lowerdir=lower,upperdir=upper,workdir=work,userxattr,volatile merged "
    '&& shift 2 && exec "$@"'
)


class Tools(NamedTuple):
    """Absolute paths of the programs outside."""

    bwrap: str
    unshare: str
    mount: str
    sh: str


class Enclosure(NamedTuple):
    """All that is to be known of one process."""

    spec: spi.ProcessSpec
    program: str
    view: View
    network: Network
    overlay: bool
    private: str
    user: spi.ProcessUser
    namespaces: bool
    tmpfs_bytes: int | None


def inner_command(enclosure: Enclosure) -> tuple[str, ...]:
    """The command with exactly its environment; bubblewrap adds a PWD to what it is given."""
    spec = enclosure.spec
    environment = [f"{name}={value}" for name, value in spec.environment.items()]
    # To env, a name with an equals sign would be a variable. The shell adds a PWD, alas.
    by_shell = ["/bin/sh", "-c", 'exec "$0" "$@"'] if "=" in enclosure.program else []
    return (ENV, "-i", "--", *environment, *by_shell, enclosure.program, *spec.argv[1:])


def fits(command: Sequence[str]) -> bool:
    """Whether bubblewrap takes `command` as arguments, rather than from a file."""
    if len(command) > _MAX_ARGUMENTS:
        return False
    return sum(len(os.fsencode(word)) + 9 for word in command) <= _MAX_ARGUMENT_BYTES


def command_file(command: Sequence[str]) -> bytes:
    """A shell script that runs `command`."""
    return os.fsencode("exec " + " ".join(map(shlex.quote, command)) + "\n")


def command_line(tools: Tools, enclosure: Enclosure, command: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments that start `command` enclosed, which may be `RUN_COMMAND_FILE`."""
    return (
        *_namespaces(tools, enclosure),
        tools.bwrap,
        *_isolation(enclosure),
        *_proc(),
        "--dev",
        "/dev",
        *_tmpfs("/dev/shm", enclosure.tmpfs_bytes),  # noqa: S108  # a fresh one, not the machine's
        *_private_folder(enclosure, from_file=command == RUN_COMMAND_FILE),
        *_tmpfs("/tmp", enclosure.tmpfs_bytes),  # noqa: S108  # likewise
        # After /tmp, in which some of it may lie.
        *enclosure.view.arguments,
        *_folders(enclosure),
        "--remount-ro",
        "/",
        "--chdir",
        str(enclosure.spec.root / enclosure.spec.working_directory),
        "--",
        *command,
    )


def _namespaces(tools: Tools, enclosure: Enclosure) -> list[str]:
    unshare = [tools.unshare, "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if not enclosure.overlay:
        return [*unshare, "--"]
    # The mount is known to this namespace alone, and gone with its last process.
    script = [tools.sh, "-c", _MOUNT_OVERLAY, "sh", enclosure.private, tools.mount]
    return [*unshare, "--mount", "--", *script]


def _isolation(enclosure: Enclosure) -> list[str]:
    user = enclosure.user
    return [
        *("--unshare-user", "--uid", str(user.uid), "--gid", str(user.gid)),
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *(() if enclosure.namespaces else ("--disable-userns",)),
        *(("--unshare-net",) if enclosure.network == "off" else ()),
        *("--die-with-parent", "--cap-drop", "ALL", "--hostname", "localhost"),
    ]


def _proc() -> list[str]:
    # Files of user 0 there ask for no capability: whoever writes core_pattern has the machine.
    # Bubblewrap covers them only if their folder can be written, which says nothing of them.
    covers = [word for path in _OF_THE_KERNEL for word in ("--ro-bind-try", path, path)]
    return ["--proc", "/proc", *covers]


def _tmpfs(path: str, size_bytes: int | None) -> list[str]:
    size = [] if size_bytes is None else ["--size", str(size_bytes)]
    return [*size, "--perms", "1777", "--tmpfs", path]


def _private_folder(enclosure: Enclosure, *, from_file: bool) -> list[str]:
    # Another mount covers /tmp at once: nothing of the private folder can be reached from inside.
    ready = ["--bind", enclosure.private, "/tmp", "--dir", f"/tmp/{READY}"]  # noqa: S108
    if not from_file:
        return ready
    return [*ready, "--ro-bind", os.path.join(enclosure.private, COMMAND_FILE), RUN_COMMAND_FILE[1]]


def _folders(enclosure: Enclosure) -> list[str]:
    root, temporary = str(enclosure.spec.root), str(enclosure.spec.temporary_directory)
    source = os.path.join(enclosure.private, "merged") if enclosure.overlay else root
    bind_root, bind_temporary = ["--bind", source, root], ["--bind", temporary, temporary]
    if enclosure.spec.temporary_directory.is_relative_to(enclosure.spec.root):
        # It is there with the root. A mount could be led astray by a link among the inputs.
        return bind_root
    # The outer one first, where the root lies in the other.
    return bind_temporary + bind_root
