"""What an action has to itself beside its input root: a temporary folder and its streams.

These functions block. `PrivateFiles.is_untouched` takes no more than a few looks, which cost less
than a trip to a thread; call the others in a thread.
"""

# ruff: noqa: PTH101, PTH102, PTH112, PTH114, PTH119, PTH208
# Strings: this is done for every action, and making Paths would take half of the time.

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import stat

from stoker.execution.attributes import has_attributes
from stoker.execution.process import ActionFolders
from stoker.execution.removal import empty_folder, remove_tree
from stoker.spi import ProcessUser

PASSABLE = 0o711
"""The mode of folders that processes of another user go through to their own."""

# A fifo in place of a file would block for ever without O_NONBLOCK.
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

_Facts = tuple[int, ...]


class PrivateFiles:
    """The folder that an input root lies in, and what lies beside it. One task uses it at a time.

    They serve one action after the other: what one has used is emptied or made anew.
    """

    def __init__(self, folders: ActionFolders, user: ProcessUser | None) -> None:
        """Use `folders`, of which nothing exists. Processes run as `user`, if not as the server."""
        self._top = os.fspath(folders.top)
        self._root = os.fspath(folders.root)
        self._temporary = os.fspath(folders.temporary)
        self._user = user
        self._streams = (os.fspath(folders.stdout), os.fspath(folders.stderr))
        self._facts: dict[str, _Facts] = {}
        self._names = {
            os.path.basename(path) for path in (self._root, self._temporary, *self._streams)
        }

    def make(self) -> None:
        """Make everything, and an empty folder for the input root. Raises OSError."""
        os.mkdir(self._top)
        os.chmod(self._top, PASSABLE)
        os.mkdir(self._root)
        self._make_temporary()
        for stream in self._streams:
            self._make_stream(stream)

    def is_untouched(self) -> bool:
        """Whether all is as it was made, as far as a few looks tell: False means that more have
        to be taken."""
        try:
            return (
                stat.S_IMODE(os.lstat(self._top).st_mode) == PASSABLE
                and self._has_only_its_own()
                and self._is_same(self._temporary, os.lstat(self._temporary))
                and not _first_names(self._temporary, 1)
                and not has_attributes(self._temporary)
                and all(map(self._is_unused, self._streams))
            )
        except OSError:
            return False

    def identity(self, path: str) -> tuple[int, int]:
        """The device and number of the stream at `path`, as it was made."""
        return self._facts[path][:2]  # type: ignore[return-value]  # two of its numbers

    def tidy(self) -> None:
        """Bring everything to what `make` has made, but for the root. Raises OSError."""
        for name in os.listdir(self._top):
            path = os.path.join(self._top, name)
            if path in self._streams:
                self._renew_stream(path)
            elif path not in (self._root, self._temporary):
                remove_tree(path)
        self._renew_temporary()
        for stream in self._streams:
            if not os.path.lexists(stream):
                self._make_stream(stream)
        os.chmod(self._top, PASSABLE)

    # --- the temporary folder

    def _make_temporary(self) -> None:
        os.mkdir(self._temporary, 0o700)
        self._give(self._temporary)
        self._facts[self._temporary] = _facts(os.lstat(self._temporary))

    def _renew_temporary(self) -> None:
        if os.path.isdir(self._temporary) and not os.path.islink(self._temporary):
            empty_folder(self._temporary)
            if self._is_same(self._temporary, os.lstat(self._temporary)) and not has_attributes(
                self._temporary
            ):
                return
        remove_tree(self._temporary)
        self._make_temporary()

    # --- the streams

    def _make_stream(self, path: str) -> None:
        # Made here, so that one that is absent at the end can only have been removed.
        descriptor = os.open(path, _MAKE, 0o600)
        try:
            # A process may open by name what it has as a descriptor.
            self._give(path)
            self._facts[path] = _facts(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _renew_stream(self, path: str) -> None:
        if not self._is_unused(path):
            remove_tree(path)
            self._make_stream(path)

    def _is_unused(self, path: str) -> bool:
        """Whether nothing was written to a stream, and nobody can write to it, or read it, by
        what he holds of it."""
        try:
            descriptor = os.open(path, _LOOK)
        except OSError:
            return False
        try:
            status = os.fstat(descriptor)
            if status.st_size or status.st_nlink != 1 or not self._is_same(path, status):
                return False
            # The signal of a broken lease, SIGIO, would end the server; this one does nothing.
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
            # Refused while anybody else has the file open; a process of another action might.
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            # That, or a file system without leases: nothing is known then.
            return False
        finally:
            os.close(descriptor)
        return True

    # --- both

    def _has_only_its_own(self) -> bool:
        return _first_names(self._top, len(self._names) + 1) == self._names

    def _is_same(self, path: str, status: os.stat_result) -> bool:
        return _facts(status) == self._facts.get(path)

    def _give(self, path: str) -> None:
        if self._user is not None:
            os.chown(path, *self._user, follow_symlinks=False)


def _first_names(folder: str, count: int) -> set[str]:
    """Some of the names in a folder, which may have any number of them."""
    with os.scandir(folder) as entries:
        return {entry.name for entry in itertools.islice(entries, count)}


def _facts(status: os.stat_result) -> _Facts:
    """What tells a file from one that an action has put in its place, or made its own."""
    return (status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_gid)
