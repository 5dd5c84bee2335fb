"""What a process may have left in a container, beside its own folders. Blocks for moments."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from stoker_exec_docker.inside import Inside

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OWN_FOLDER: Final = _FOLDER | os.O_NOFOLLOW

_DEEPEST: Final = 64
"""How many folders within each other are emptied. Each takes a descriptor, and a container with
more is sooner removed."""

_CLONE_NEWIPC: Final = 0x08000000

_libc = ctypes.CDLL(None, use_errno=True)


def open_to_all(inside: Inside, folders: Iterable[str]) -> None:
    """Let everybody make files in folders of a container that are in memory, as in /tmp.

    Where only the container's root could allow that, and we are not, they stay as they are.
    """
    for folder in folders:
        with suppress(OSError):
            descriptor = inside.open(folder, _FOLDER)
            try:
                if not os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
                    os.fchmod(descriptor, 0o1777)
            finally:
                os.close(descriptor)


def wipe(inside: Inside, folders: Iterable[str]) -> bool:
    """Empty folders of a container. Returns whether all are.

    No link in them is followed, and no other mount entered. Call it when nothing runs there any
    more.
    """
    return all(_wipe_folder(inside, folder) for folder in folders)


def _wipe_folder(inside: Inside, path: str) -> bool:
    try:
        descriptor = inside.open(path, _FOLDER)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        # One that is read-only, as all but those in memory are, has nothing new in it.
        if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
            return True
        device = os.fstat(descriptor).st_dev
        _empty(descriptor, device, _DEEPEST)
        return _holds_only_mounts(descriptor, device, _DEEPEST)
    finally:
        os.close(descriptor)


def _empty(descriptor: int, device: int, depth: int) -> None:
    """Remove all below a folder, but for mounts, the way to them, and what is too deep."""
    for name in os.listdir(descriptor) if depth else ():
        try:
            os.unlink(name, dir_fd=descriptor)  # relative to a descriptor
        except OSError:
            _empty_folder(name, descriptor, device, depth)


def _empty_folder(name: str, parent: int, device: int, depth: int) -> None:
    with suppress(OSError):
        descriptor = os.open(name, _OWN_FOLDER, dir_fd=parent)
        try:
            if os.fstat(descriptor).st_dev != device:
                return
            _empty(descriptor, device, depth - 1)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=parent)  # relative to a descriptor


def _holds_only_mounts(descriptor: int, device: int, depth: int) -> bool:
    if not depth:
        return False
    for name in os.listdir(descriptor):
        try:
            below = os.open(name, _OWN_FOLDER, dir_fd=descriptor)
        except OSError:
            return False
        try:
            if os.fstat(below).st_dev != device:
                continue
            if not (_names(below) and _holds_only_mounts(below, device, depth - 1)):
                return False
        finally:
            os.close(below)
    return True


def _names(descriptor: int) -> list[str]:
    return os.listdir(descriptor)


def is_without_ipc(inside: Inside) -> bool:
    """Whether a container has no System V memory, queues or semaphores. False in case of doubt."""
    answers: list[bool] = []

    def look() -> None:
        # For this thread alone, which then ends.
        descriptor = inside.open_namespace("ipc")
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
