"""What a process may have left in a container, beside its own folders. Blocks for moments."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CLONE_NEWIPC: Final = 0x08000000

_libc = ctypes.CDLL(None, use_errno=True)


def open_to_all(pid: int, folders: Iterable[str]) -> None:
    """Let everybody make files in folders of a container that are in memory, as in /tmp.

    Where only the container's root could allow that, and we are not, they stay as they are.
    """
    for folder in folders:
        with suppress(OSError):
            descriptor = os.open(f"/proc/{pid}/root{folder}", _FOLDER)
            try:
                if not os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
                    os.fchmod(descriptor, 0o1777)
            finally:
                os.close(descriptor)


def wipe(pid: int, folders: Iterable[str]) -> bool:
    """Empty folders of a container, as its process `pid` sees them. Returns whether all are.

    No link is followed, and no other mount entered. Call it when nothing runs there any more.
    """
    return all(_wipe_folder(f"/proc/{pid}/root{folder}") for folder in folders)


def _wipe_folder(path: str) -> bool:
    try:
        descriptor = os.open(path, _FOLDER)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # a link: what it leads to is not known to be the container's
    try:
        # One that is read-only, as all but those in memory are, has nothing new in it.
        if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
            return True
        _empty(descriptor, os.fstat(descriptor).st_dev)
        return _holds_only_mounts(descriptor, os.fstat(descriptor).st_dev)
    finally:
        os.close(descriptor)


def _empty(descriptor: int, device: int) -> None:
    """Remove all below a folder, but for mounts and the way to them."""
    for name in os.listdir(descriptor):
        try:
            os.unlink(name, dir_fd=descriptor)  # relative to a descriptor
        except OSError:
            _empty_folder(name, descriptor, device)


def _empty_folder(name: str, parent: int, device: int) -> None:
    with suppress(OSError):
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
        try:
            if os.fstat(descriptor).st_dev != device:
                return
            _empty(descriptor, device)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=parent)  # relative to a descriptor


def _holds_only_mounts(descriptor: int, device: int) -> bool:
    for name in os.listdir(descriptor):
        try:
            below = os.open(name, _FOLDER, dir_fd=descriptor)
        except OSError:
            return False
        try:
            is_mount = os.fstat(below).st_dev != device
            if not is_mount and not (_names(below) and _holds_only_mounts(below, device)):
                return False
        finally:
            os.close(below)
    return True


def _names(descriptor: int) -> list[str]:
    return os.listdir(descriptor)


def is_without_ipc(pid: int) -> bool:
    """Whether a container has no System V memory, queues or semaphores. False in case of doubt."""
    answers: list[bool] = []

    def look() -> None:
        # For this thread alone, which then ends.
        descriptor = os.open(f"/proc/{pid}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(descriptor, _CLONE_NEWIPC) == 0:
                answers.append(all(map(_is_only_a_heading, ("shm", "msg", "sem"))))
        finally:
            os.close(descriptor)

    def look_quietly() -> None:
        with suppress(OSError):
            look()

    thread = threading.Thread(target=look_quietly, name="stoker-docker-ipc")
    thread.start()
    thread.join()
    return answers == [True]


def _is_only_a_heading(kind: str) -> bool:
    return len(Path(f"/proc/sysvipc/{kind}").read_text().splitlines()) == 1
