"""The folders of the actions that run on one executor."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import structlog
import trio

from stoker.errors import ConfigurationError
from stoker.execution.disk import disk_errors, on_disk
from stoker.execution.process import ActionFolders
from stoker.execution.removal import empty_folder, remove_tree

_log = structlog.get_logger(__name__)

REMOVAL_SECONDS = 60.0
"""How long an action waits for its folder to be gone. After that the removal goes on unattended:
no later action gets the same folder."""


class Workplace:
    """Where an executor lays out its actions: a folder that no other executor uses meanwhile."""

    def __init__(self, folder: Path) -> None:
        # Resolved, as the path of an input root is compared with those that outputs resolve to.
        self._actions = Path(os.path.realpath(folder)) / "actions"
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def open_folders(self) -> AsyncIterator[ActionFolders]:
        """New folders for one action. Leaving, by whatever way, removes them."""
        folders = ActionFolders(self._actions / str(next(self._numbers)))
        try:
            await on_disk("making a folder:", partial(_make, folders))
            yield folders
        finally:
            await _remove(folders.top)

    async def sweep(self) -> None:
        """Delete what actions left when an earlier server was killed. To be called first."""
        await on_disk("sweeping:", self._sweep)

    def _sweep(self) -> None:
        # Private: inputs are nobody's business, whatever permissions they have themselves.
        self._actions.mkdir(mode=0o700, parents=True, exist_ok=True)
        empty_folder(os.fspath(self._actions))


def _make(folders: ActionFolders) -> None:
    folders.top.mkdir()
    folders.root.mkdir()
    folders.temporary.mkdir()


async def _remove(folder: Path) -> None:
    with trio.move_on_after(REMOVAL_SECONDS, shield=True) as scope:
        try:
            await trio.to_thread.run_sync(remove_tree, str(folder), abandon_on_cancel=True)
        except OSError as error:
            _log.warning("folder of an action not removed", folder=str(folder), reason=str(error))
    if scope.cancelled_caught:
        _log.warning("folder of an action still being removed", folder=str(folder))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Claim `folder` for this process, however it ends.

    Raises ConfigurationError if it is claimed already: sweeping would delete the other's actions.
    """
    with disk_errors("opening a folder:"):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("wb")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError([f"folder {folder} is used by another executor"]) from error
        yield
