"""Deleting what an action left behind, whatever it is.

These functions block; call them in a thread. They never follow a symbolic link, open folders that
forbid it, and need neither a deep stack nor long paths for a deep tree. They raise OSError, for
instance when something living adds files faster than they go, once all is gone that can go.
"""

# ruff: noqa: PTH101, PTH106, PTH108
# Strings and descriptors: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import os
import stat
import uuid
from contextlib import suppress

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# Each level down holds a descriptor open. What lies deeper is moved up and comes to its turn.
_DEPTH = 32


def remove_tree(path: str) -> None:
    """Delete `path` and all below it. It is no error if it is gone."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            empty_folder(path)
            os.rmdir(path)
        else:
            os.unlink(path)


def empty_folder(path: str) -> None:
    """Delete all that is in the folder `path`, and keep the folder itself."""
    os.chmod(path, 0o700)
    descriptor = os.open(path, _FOLDER)
    try:
        removal = _Removal(descriptor)
        while removal.empty(descriptor, 0):
            removal.errors.clear()
    finally:
        os.close(descriptor)
    if removal.errors:
        raise removal.errors[0]


class _Removal:
    """The emptying of the open folder `top`."""

    def __init__(self, top: int) -> None:
        self._top = top
        self.errors: list[OSError] = []
        """What withstood. The first says most: the folders above it could not but stay."""

    def empty(self, folder: int, depth: int) -> bool:
        """Empty `folder`. Returns whether something was moved to the top for the next round."""
        with os.scandir(folder) as entries:
            names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        moved = False
        for name, is_folder in names:
            try:
                if is_folder:
                    moved |= self._remove_folder(name, folder, depth)
                else:
                    os.unlink(name, dir_fd=folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                self.errors.append(error)
        return moved

    def _remove_folder(self, name: str, parent: int, depth: int) -> bool:
        os.chmod(name, 0o700, dir_fd=parent)
        if depth == _DEPTH:
            os.rename(name, f".{uuid.uuid4().hex}", src_dir_fd=parent, dst_dir_fd=self._top)
            return True
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
        try:
            moved = self.empty(descriptor, depth + 1)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=parent)
        return moved
