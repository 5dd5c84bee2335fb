"""Folders that belong to another user for as long as a process of that user runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stoker import spi


@contextmanager
def handed_over(folders: Sequence[Path], user: spi.ProcessUser) -> Iterator[None]:
    """Give folders, and those below them, to `user`, and back to their owners.

    Only the folders: what is in the files stays the server's. Nothing happens where they are the
    user's already, nor for root, who needs no such thing. Blocks. Raises OSError.
    """
    owner = folders[0].stat()
    if user.uid in (0, owner.st_uid):
        yield
        return
    _give(folders, user)
    try:
        yield
    finally:
        _give(folders, spi.ProcessUser(owner.st_uid, owner.st_gid))


def _give(folders: Sequence[Path], user: spi.ProcessUser) -> None:
    for folder in folders:
        # By descriptors: no link that a process has made is followed.
        for _, _, _, descriptor in os.fwalk(folder, follow_symlinks=False):
            os.fchown(descriptor, *user)
