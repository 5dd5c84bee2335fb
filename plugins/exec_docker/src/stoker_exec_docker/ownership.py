"""Whose a container is, so that what a killed server left can be told from what others use."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Final

from stoker_exec_docker.engine import Engine, Facts, Refused

OWNER: Final = "build.stoker.owner"
"""The label that names a table of a configuration on a machine."""
HOLDER: Final = "build.stoker.holder"
"""The label that names a life of a server."""


def owner_of(folder: Path, table: str) -> str:
    """The same for every life of a server, and for no other server."""
    text = "\0".join((platform.node(), str(folder.resolve()), table))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def this_holder() -> str:
    """This process, told from all others that had or will have its number."""
    pid = os.getpid()
    return f"{_pid_namespace()}-{pid}-{_start_time(pid)}"


def holder_is_alive(holder: str) -> bool:
    """Whether a server lives still. What is not so named, or lives elsewhere, counts as alive."""
    numbers = holder.split("-")
    if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
        return True
    namespace, pid, started = map(int, numbers)
    return namespace != _pid_namespace() or _start_time(pid) == started


def labels(owner: str) -> dict[str, str]:
    """The labels of what is made now."""
    return {OWNER: owner, HOLDER: this_holder()}


async def sweep(engine: Engine, owner: str) -> int:
    """Remove the containers that earlier lives of this server left. Returns how many.

    Raises as the calls of `Engine` do.
    """
    left = [found for found in await engine.containers(f"{OWNER}={owner}") if _is_left(found)]
    for container in left:
        try:
            await engine.remove(container["Id"])
        except Refused:
            # One that withstands keeps nobody from working.
            continue
    return len(left)


def _is_left(container: Facts) -> bool:
    return not holder_is_alive(str(container["Labels"].get(HOLDER, "")))


def _pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _start_time(pid: int) -> int:
    """In ticks since the machine was booted; -1 if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    return int(text.rpartition(")")[2].split()[19])
