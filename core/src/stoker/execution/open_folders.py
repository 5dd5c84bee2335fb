"""Open folders on the way down from the top of a root. These functions block.

Each is opened in the one above it, and none through a symbolic link: a process that lives
meanwhile cannot have anything done elsewhere.
"""

# Strings and descriptors: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import os
from types import TracebackType

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_folder(name: str, parent: int | None = None) -> int:
    """A descriptor of a folder that may have any mode. Raises OSError for anything else."""
    try:
        return os.open(name, FOLDER, dir_fd=parent)
    except PermissionError:
        _permit(name, parent)
        return os.open(name, FOLDER, dir_fd=parent)


def _permit(name: str, parent: int | None) -> None:
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        # By the descriptor, and so not of what somebody has put in the folder's place.
        os.chmod(f"/proc/self/fd/{place}", 0o700)  # noqa: PTH101  # no pathlib here
    finally:
        os.close(place)


class OpenFolders:
    """The folders from `top` down to the one that was entered last."""

    def __init__(self, top: str) -> None:
        self._names = [top]
        self._descriptors: list[int] = []

    def __enter__(self) -> OpenFolders:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all. They are opened again where they are asked for."""
        self._close(0)

    def enter(self, depth: int, name: str) -> None:
        """Go to `name` in the folder entered last at `depth` - 1; 0 is the top itself."""
        if depth:
            self._close(depth)
            self._names[depth:] = [name]
        else:
            self._close(1)
            del self._names[1:]

    @property
    def path(self) -> str:
        """Of the folder entered last."""
        return "/".join(self._names)

    @property
    def descriptor(self) -> int:
        """Of the folder entered last."""
        while len(self._descriptors) < len(self._names):
            parent = self._descriptors[-1] if self._descriptors else None
            self._descriptors.append(open_folder(self._names[len(self._descriptors)], parent))
        return self._descriptors[-1]

    def _close(self, depth: int) -> None:
        while len(self._descriptors) > depth:
            os.close(self._descriptors.pop())
