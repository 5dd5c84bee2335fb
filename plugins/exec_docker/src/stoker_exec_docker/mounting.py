"""Mounting folders into containers that already run, and what that leaves behind.

Every kept container has a *slot*: a folder on a shared mount of ours, which it sees where the
actions of an executor lie. What is mounted below a slot out here appears in its container, and
in no other. Only root can do that. All of this blocks for moments.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from stoker_exec_docker.ownership import holder_is_alive, this_holder

_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_BIND: Final = 4096
_MS_PRIVATE: Final = 1 << 18
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    kind_bytes = kind.encode() if kind is not None else None
    if _libc.mount(os.fsencode(source), os.fsencode(target), kind_bytes, flags, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _unmount(target: str) -> None:
    """Take a mount away, for those too that still use it. Raises OSError."""
    if _libc.umount2(os.fsencode(target), _MNT_DETACH) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


class SharedFolder:
    """A mount of ours whose changes others see: the place of all slots of one server."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._numbers = itertools.count(1)

    def new_slot(self) -> Slot:
        """An empty slot. Raises OSError."""
        path = self.path / str(next(self._numbers))
        path.mkdir(mode=0o755)
        return Slot(path)

    def remove(self) -> None:
        """Take it away with all that is below it. Raises OSError."""
        _take_away(self.path)


class Slot:
    """What one kept container sees at one place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mounted: list[Path] = []

    def show(self, folder: Path, name: str) -> None:
        """Let `folder` appear as `name`, relative to the slot. Raises OSError."""
        place = self.path / name
        place.mkdir(parents=True, exist_ok=True)
        _mount(str(folder), str(place), None, _MS_BIND)
        self._mounted.append(place)

    def hide_all(self) -> None:
        """Let the slot be empty again. Raises OSError."""
        while self._mounted:
            _unmount(str(self._mounted[-1]))
            self._remove_empty(self._mounted.pop())

    def remove(self) -> None:
        """Take it away. Raises OSError."""
        self.hide_all()
        self.path.rmdir()

    def _remove_empty(self, place: Path) -> None:
        while place != self.path:
            try:
                place.rmdir()
            except OSError:
                return  # something else is shown below it
            place = place.parent


def open_shared_folder(top: Path, owner: str) -> SharedFolder:
    """A new shared mount below `top`, for `owner` in this life of the server.

    Raises OSError where that is not allowed.
    """
    top.mkdir(mode=0o711, parents=True, exist_ok=True)
    # Mounts are told by their paths without links.
    path = top.resolve() / f"{this_holder()}.{owner}"
    _take_away(path)
    path.mkdir()
    try:
        _mount("stoker", str(path), "tmpfs", _MS_NOSUID | _MS_NODEV)
        # Private first: the folder above may pass its own mounts on, and would get these.
        _mount("none", str(path), None, _MS_PRIVATE)
        _mount("none", str(path), None, _MS_SHARED)
    except OSError:
        _take_away(path)
        raise
    return SharedFolder(path)


def sweep_shared_folders(top: Path) -> None:
    """Take away what servers left that are gone."""
    for path in top.resolve().iterdir() if top.is_dir() else ():
        if not holder_is_alive(path.name.partition(".")[0]):
            with suppress(OSError):
                _take_away(path)


def _take_away(path: Path) -> None:
    """Unmount all at and below `path`, and remove it. Never looks into what is mounted there."""
    for point in reversed(_mount_points(path)):
        _unmount(point)
    with suppress(FileNotFoundError):
        path.rmdir()


def _mount_points(path: Path) -> list[str]:
    """Those at and below `path`, in the order of mounting."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = _unescaped(line.split(" ")[4])
        if Path(point).is_relative_to(path):
            points.append(point)
    return points


def _unescaped(text: str) -> str:
    for code in ("040", "011", "012"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text.replace("\\134", "\\")
