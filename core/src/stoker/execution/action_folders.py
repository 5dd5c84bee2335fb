"""The folders of the actions that run on one executor."""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import structlog
import trio

from stoker.errors import ConfigurationError
from stoker.execution.disk import disk_errors, on_disk
from stoker.execution.process import ActionFolders
from stoker.execution.removal import remove_tree

_log = structlog.get_logger(__name__)

REMOVAL_SECONDS = 60.0
"""How long an action waits for its folder to be gone. After that the removal goes on unattended:
no later action gets the same folder."""

_LIFE = "life-"
_FORMER_NAMES = frozenset({"actions", "workers"})
"""What servers had before there was a folder for each life."""

_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 600.0


@asynccontextmanager
async def open_workplace(folder: Path) -> AsyncIterator[Workplace]:
    """A workplace in `folder`, which it has to itself.

    It works in a new folder there, whose name has never been used: what an earlier server left,
    were it a process that still writes, meets nothing of this one. The earlier folders are deleted
    meanwhile, and again and again where something withstands; nobody waits for that.
    Raises ConfigurationError if another executor, of whatever process, uses `folder`, Unavailable
    if the disk fails.
    """
    with lock_folder(folder):
        left = await on_disk("looking for what was left:", partial(_left_over, folder))
        life = await on_disk("making a folder:", partial(_begin_life, folder))
        async with trio.open_nursery() as nursery:
            for path in left:
                nursery.start_soon(_remove_in_time, path)
            yield Workplace(life, nursery)
            nursery.cancel_scope.cancel()
        await on_disk("leaving a folder:", partial(_end_life, life))


class Workplace:
    """Where an executor lays out its actions: a folder that no other executor uses."""

    def __init__(self, life: Path, nursery: trio.Nursery) -> None:
        """Use the folder `life`; what withstands its removal is removed in `nursery`."""
        self.workers = life / "workers"
        """For the persistent workers."""
        self._nursery = nursery
        self._actions = life / "actions"
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def open_folders(self) -> AsyncIterator[ActionFolders]:
        """New folders for one action. Leaving, by whatever way, removes them."""
        folders = ActionFolders(self._actions / str(next(self._numbers)))
        try:
            await on_disk("making a folder:", partial(_make, folders))
            yield folders
        finally:
            await self._remove(folders.top)

    async def _remove(self, folder: Path) -> None:
        with trio.move_on_after(REMOVAL_SECONDS, shield=True) as scope:
            try:
                await trio.to_thread.run_sync(remove_tree, str(folder), abandon_on_cancel=True)
            except OSError:
                # It is tried again at once, and told if that fails too.
                self._nursery.start_soon(_remove_in_time, folder)
        if scope.cancelled_caught:
            _log.warning("folder of an action still being removed", folder=str(folder))


def _left_over(folder: Path) -> Sequence[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.name in _FORMER_NAMES or path.name.startswith(_LIFE)
    ]


def _begin_life(folder: Path) -> Path:
    # Private: inputs are nobody's business, whatever permissions they have themselves. Resolved,
    # as the path of an input root is compared with those that outputs resolve to.
    life = Path(tempfile.mkdtemp(prefix=_LIFE, dir=os.path.realpath(folder)))
    (life / "actions").mkdir()
    (life / "workers").mkdir()
    return life


def _end_life(life: Path) -> None:
    """What is still there has withstood, and is left to the next life."""
    for path in (life / "actions", life / "workers", life):
        with suppress(OSError):
            path.rmdir()


async def _remove_in_time(path: Path) -> None:
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        try:
            await trio.to_thread.run_sync(remove_tree, str(path), abandon_on_cancel=True)
        except OSError as error:
            _log.warning(
                "folder not removed, trying again",
                folder=str(path),
                reason=str(error),
                pause_seconds=pause_seconds,
            )
        else:
            return
        await trio.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)


def _make(folders: ActionFolders) -> None:
    folders.top.mkdir()
    folders.root.mkdir()
    folders.temporary.mkdir()
    # Made here, so that one that is absent at the end can only have been removed.
    for stream in (folders.stdout, folders.stderr):
        os.close(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Claim `folder` for this process, however it ends.

    Raises ConfigurationError if it is claimed already: what the other one has would be taken for
    what an earlier one left.
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
