"""Deleting what an action left behind, whatever it is.

These functions block; call them in a thread. They never follow a symbolic link, open folders that
forbid it, and need neither a deep stack nor long paths for a deep tree. They raise OSError, for
instance when something living adds files faster than they go, once all is gone that can go.
"""

# ruff: noqa: PTH106, PTH108
# Strings and descriptors: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import os
import stat
import uuid
from contextlib import suppress

from stoker.execution.open_folders import OpenFolders, open_folder

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


def remove_entry(name: str, parent: int) -> None:
    """Delete `name` in the open folder `parent`, and all below it. No error if it is gone."""
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            os.unlink(name, dir_fd=parent)
            return
        _empty(open_folder(name, parent))
        os.rmdir(name, dir_fd=parent)


def remove_path(top: str, path: str) -> None:
    """Delete what is at `path` below the folder `top`, and all below it. No error if it is gone.

    What lies behind a symbolic link is left alone.
    """
    *above, name = path.split("/")
    with OpenFolders(top) as folders:
        for depth, folder in enumerate(above, 1):
            folders.enter(depth, folder)
        # A link is no directory to whoever does not follow it.
        with suppress(FileNotFoundError, NotADirectoryError):
            remove_entry(name, folders.descriptor)


def empty_folder(path: str) -> None:
    """Delete all that is in the folder `path`, and keep the folder itself."""
    _empty(open_folder(path))


def _empty(descriptor: int) -> None:
    """Empty an open folder, and close it."""
    try:
        os.fchmod(descriptor, 0o700)
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
        descriptor = open_folder(name, parent)
        try:
            os.fchmod(descriptor, 0o700)
            if depth == _DEPTH:
                os.rename(name, f".{uuid.uuid4().hex}", src_dir_fd=parent, dst_dir_fd=self._top)
                return True
            moved = self.empty(descriptor, depth + 1)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=parent)
        return moved
