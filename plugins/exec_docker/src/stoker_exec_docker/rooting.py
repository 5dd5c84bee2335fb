"""The input root as the ``/`` of a container, for clients whose input root is a whole system.

An engine begins each command at the topmost of what is mounted at the root of the container's mount
namespace. So the input root is mounted over it from out here, with the container's own /proc, /dev
and /sys moved into it. Needs root, and Linux 5.12. All of this blocks for moments.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from stoker import spi
from stoker_exec_docker.inside import Inside

TEMPORARY: Final = "/tmp"  # noqa: S108  # it is this process's own folder that is mounted there
"""Where the temporary directory of a process is seen."""

_OF_THE_CONTAINER: Final = ("proc", "dev", "sys")
_POINTS: Final = (*_OF_THE_CONTAINER, TEMPORARY.strip("/"))

# The same on all machines.
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_MOUNT_SETATTR: Final = 442

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_CLONE: Final = 1
_FROM_EMPTY_PATH: Final = 4
_NO_SETUID_NO_DEVICES: Final = 0x2 | 0x4
_PRIVATE: Final = 1 << 18
_CLONE_FS: Final = 0x200
_CLONE_NEWNS: Final = 0x20000

_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    """struct mount_attr, see mount_setattr(2)."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


@contextmanager
def rooted(inside: Inside, root: Path, temporary_directory: Path) -> Iterator[None]:
    """Have what a container begins from now on see `root` as ``/``.

    Afterwards the folders are gone that had to be made in it for that. Nothing else is: the
    container serves nobody else. Raises FailedPrecondition for an input root that has something
    else in their place, and OSError.
    """
    with ExitStack() as exits:
        for name in _POINTS:
            exits.enter_context(_point(root / name))
        _mount_in_thread(inside, root, temporary_directory)
        yield


def as_rooted(spec: spi.ProcessSpec) -> spi.ProcessSpec:
    """The same process by the names that things have where its input root is ``/``."""
    outside = str(spec.temporary_directory)
    environment = {
        name: TEMPORARY if value == outside else value for name, value in spec.environment.items()
    }
    return replace(
        spec, root=Path("/"), temporary_directory=Path(TEMPORARY), environment=environment
    )


@contextmanager
def _point(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir()
    except FileExistsError:
        if folder.is_symlink() or not folder.is_dir():
            raise spi.FailedPrecondition(
                f"the input root cannot be /: its {folder.name} is no directory"
            ) from None
        yield
        return
    try:
        yield
    finally:
        # If somebody has put something there, it stays.
        with suppress(OSError):
            folder.rmdir()


def _mount_in_thread(inside: Inside, root: Path, temporary_directory: Path) -> None:
    """Only a thread of its own may be in a mount namespace of its own."""
    errors: list[OSError] = []

    def mount() -> None:
        try:
            with ExitStack() as exits:
                _mount(exits, inside, root, temporary_directory)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=mount, name="stoker-docker-root")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _mount(exits: ExitStack, inside: Inside, root: Path, temporary_directory: Path) -> None:
    def clone(path: str, flags: int = 0) -> int:
        descriptor = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _CLONE | flags | os.O_CLOEXEC)
        exits.callback(os.close, descriptor)
        return descriptor

    own = {".": clone(str(root)), TEMPORARY.strip("/"): clone(str(temporary_directory))}
    for descriptor in own.values():
        # Private: what is mounted there is for the container, and not for the machine.
        attributes = _Attributes(_NO_SETUID_NO_DEVICES, 0, _PRIVATE, 0)
        size = ctypes.sizeof(attributes)
        _call(_MOUNT_SETATTR, descriptor, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size)
    namespace = inside.open_namespace("mnt")
    exits.callback(os.close, namespace)
    _check(_libc.unshare(_CLONE_FS))
    _check(_libc.setns(namespace, _CLONE_NEWNS))
    theirs = {name: clone(f"/{name}", _AT_RECURSIVE) for name in _OF_THE_CONTAINER}
    top = own.pop(".")
    _call(_MOVE_MOUNT, top, b"", _AT_FDCWD, b"/", _FROM_EMPTY_PATH)
    for name, descriptor in (theirs | own).items():
        _call(_MOVE_MOUNT, descriptor, b"", top, name.encode(), _FROM_EMPTY_PATH)


def _call(number: int, *arguments: object) -> int:
    return _check(_libc.syscall(number, *arguments))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
