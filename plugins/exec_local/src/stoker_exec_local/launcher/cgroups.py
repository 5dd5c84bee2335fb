"""Control groups as folders: their members, their end, their files. Versions 1 and 2 alike.

Nothing here waits. `path` is the folder of one group in one hierarchy.
"""

# ruff: noqa: PTH106

from __future__ import annotations

import errno
import os
import signal

_BUSY = (errno.EBUSY, errno.ENOTEMPTY)


def write(path: str, name: str, value: str) -> None:
    """Write one of a group's files. Raises OSError."""
    descriptor = os.open(f"{path}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def try_write(path: str, name: str, value: str) -> bool:
    """Write one of a group's files, where there is such a one that may be written."""
    try:
        write(path, name, value)
    except OSError:
        return False
    return True


def read(path: str, name: str) -> str:
    """One of a group's files, empty where there is no such one."""
    try:
        descriptor = os.open(f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        # More than any file that is read here; the lists of members are read in pieces.
        return _read_whole(descriptor).decode()
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _read_whole(descriptor: int) -> bytes:
    pieces = []
    while piece := os.read(descriptor, 65536):
        pieces.append(piece)
    return b"".join(pieces)


def read_number(path: str, name: str) -> int | None:
    """The number that one of a group's files is, None where it is absent or says ``max``."""
    text = read(path, name).strip()
    return int(text) if text.isdigit() else None


def read_entry(path: str, name: str, key: str) -> int:
    """One number of a file that has a key and a number on each line, else 0."""
    for line in read(path, name).splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == key:
            return int(words[1])
    return 0


def children(path: str) -> list[str]:
    """The groups directly below `path`."""
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def members(path: str) -> list[int]:
    """The processes in the group and in those below."""
    # 0 stands for a process of another process namespace, which has no number in ours.
    found = [int(word) for word in read(path, "cgroup.procs").split() if word != "0"]
    for child in children(path):
        found += members(child)
    return found


def send(path: str, number: int) -> None:
    """Send a signal to all processes in the group and in those below."""
    for pid in members(path):
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def kill(path: str) -> None:
    """Kill all processes in the group and in those below; to be repeated until it is removed."""
    # Version 2 does it in one step that no fork escapes.
    if try_write(path, "cgroup.kill", "1"):
        return
    # Those of version 1 that count processes can at least forbid further ones.
    try_write(path, "pids.max", "0")
    send(path, signal.SIGKILL)


def remove(path: str) -> bool:
    """Remove the group. Returns whether it is gone; it is not while processes are in it."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in _BUSY:
            raise
    else:
        return True
    return _remove_with_children(path)


def _remove_with_children(path: str) -> bool:
    below = children(path)
    left = [child for child in below if not remove(child)]
    if left or not below:
        return False
    try:
        os.rmdir(path)
    except OSError:
        return False
    return True
