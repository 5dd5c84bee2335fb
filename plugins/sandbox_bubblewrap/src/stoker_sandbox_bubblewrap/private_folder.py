"""The folder that an enclosure keeps to itself, beside the root. Call in a thread."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from stoker import spi
from stoker_sandbox_bubblewrap import overlay


def make_private_folder(root: Path, user: spi.ProcessUser) -> str:
    """A fresh folder on the file system of `root`, which is `user`'s alone."""
    private = tempfile.mkdtemp(prefix="sandbox-", dir=root.parent)
    try:
        overlay.give(private, user)
    except OSError:
        os.rmdir(private)  # noqa: PTH106  # a string
        raise
    return private


def remove_private_folder(private: str) -> None:
    """Remove `private` with all that a process may have left there, however deep or closed.

    Each folder is first moved to the top, so that no path becomes too long. Raises OSError.
    """
    pending, moved = [private], 0
    while pending:
        folder = pending.pop()
        os.chmod(folder, 0o700)  # noqa: PTH101  # hot
        below = _remove_files(folder)
        for path in below:
            moved += 1
            pending.append(_move_up(path, os.path.join(private, f"removed-{moved}")))
        if folder == private:
            continue
        os.rmdir(folder)  # noqa: PTH106  # hot
    os.rmdir(private)  # noqa: PTH106  # hot


def _remove_files(folder: str) -> list[str]:
    """Remove all but the folders in `folder`, and return their paths."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                os.unlink(entry.path)  # noqa: PTH108  # hot
    return folders


def _move_up(path: str, target: str) -> str:
    with suppress(OSError):
        # Moving a folder changes its "..", for which it must be writable.
        os.chmod(path, 0o700)  # noqa: PTH101  # hot
    os.rename(path, target)  # noqa: PTH104  # hot
    return target
