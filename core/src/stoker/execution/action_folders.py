"""The folders of the actions that run on one executor."""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import structlog
import trio

from stoker.errors import ConfigurationError, StokerError
from stoker.execution.disk import disk_errors, on_disk
from stoker.execution.input_root import InputRoot
from stoker.execution.private_files import PASSABLE, PrivateFiles
from stoker.execution.process import ActionFolders
from stoker.execution.removal import remove_tree
from stoker.execution.root_pool import RootPool
from stoker.execution.settings import ExecutionSettings
from stoker.log_streams.run_output import LiveFile
from stoker.spi import ProcessUser
from stoker.storage.input_tree import InputDirectory, InputTree

_log = structlog.get_logger(__name__)

REMOVAL_SECONDS = 60.0
"""How long an action waits for its folder to be gone. After that the removal goes on unattended:
no later action gets the same folder."""

_LIFE = "life-"
_FORMER_NAMES = frozenset({"actions", "workers"})
"""What servers had before there was a folder for each life."""

_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 600.0


_REMOVALS_AT_ONCE = 2
_MOST_REMOVALS_WAITING = 16
"""Beyond these, who discards a root waits until it is gone."""

_CLOSING_SECONDS = 10.0
"""After how long, in the end, no further kept root is removed: the rest is left to the next
life."""


@asynccontextmanager
async def open_workplace(
    folder: Path,
    *,
    open_root: Callable[[Path], InputRoot],
    settings: ExecutionSettings | None = None,
    user: ProcessUser | None = None,
) -> AsyncIterator[Workplace]:
    """A workplace in `folder`, which it has to itself.

    It works in a new folder there, whose name has never been used: what an earlier server left,
    were it a process that still writes, meets nothing of this one. The earlier folders are deleted
    meanwhile, and again and again where something withstands; nobody waits for that.
    Raises ConfigurationError if another executor, of whatever process, uses `folder`, Unavailable
    if the disk fails.
    """
    with lock_folder(folder):
        left = await on_disk("looking for what was left:", partial(_left_over, folder))
        life = await on_disk("making a folder:", partial(_begin_life, folder, user))
        async with trio.open_nursery() as nursery:
            for path in left:
                nursery.start_soon(remove_in_time, path)
            workplace = Workplace(life, nursery, open_root=open_root, settings=settings, user=user)
            try:
                yield workplace
            finally:
                with trio.move_on_after(_CLOSING_SECONDS, shield=True):
                    await workplace.discard_idle()
            nursery.cancel_scope.cancel()
        await on_disk("leaving a folder:", partial(_end_life, life))


class ActionPlace:
    """A root to lay out an action in, with the folders beside it. One action has it at a time."""

    def __init__(self, folders: ActionFolders, root: InputRoot, user: ProcessUser | None) -> None:
        self.folders = folders
        self.root = root
        self._files = PrivateFiles(folders, user)

    @property
    def directory(self) -> InputDirectory | None:
        """What its root holds."""
        return self.root.directory

    def live_files(self) -> tuple[LiveFile, LiveFile]:
        """Stdout and stderr, to be read while they are written."""
        out, err = os.fspath(self.folders.stdout), os.fspath(self.folders.stderr)
        return (
            LiveFile(out, *self._files.identity(out)),
            LiveFile(err, *self._files.identity(err)),
        )

    def cost(self, tree: InputTree) -> int:
        """About how many entries must be made or removed to lay out `tree`."""
        return self.root.cost(tree)

    def make(self) -> None:
        """Make its folders and files, of which there are none. Blocks. Raises OSError."""
        self._files.make()

    def is_clean(self) -> bool:
        """Whether a few looks tell that no action has left anything: then it is as `clean` would
        leave it."""
        return self._files.is_untouched() and self.root.skip_cleaning()

    def clean(self) -> None:
        """Undo what an action did. Blocks. Raises OSError or StokerError; then it is in doubt."""
        self.root.clean_now()
        self._files.tidy()


class Workplace:
    """Where an executor lays out its actions: a folder that no other executor uses."""

    def __init__(
        self,
        life: Path,
        nursery: trio.Nursery,
        *,
        open_root: Callable[[Path], InputRoot],
        settings: ExecutionSettings | None = None,
        user: ProcessUser | None = None,
    ) -> None:
        """Use the folder `life`; what withstands its removal is removed in `nursery`."""
        self.workers = life / "workers"
        """For the persistent workers."""
        settings = settings or ExecutionSettings()
        self._nursery = nursery
        self._open_root = open_root
        self._user = user
        self._actions = life / "actions"
        self._numbers = itertools.count(1)
        self._leaving: set[Path] = set()
        self._removals = trio.CapacityLimiter(_REMOVALS_AT_ONCE)
        self._pool: RootPool[ActionPlace] = RootPool(
            max_roots=settings.kept_roots,
            max_entries=settings.kept_root_entries,
            max_bytes=settings.kept_root_bytes,
        )

    @property
    def kept_folders(self) -> Sequence[Path]:
        """The folders of the roots that are kept for later actions."""
        return [place.folders.top for place in self._pool.idle]

    @property
    def leaving_folders(self) -> Collection[Path]:
        """Folders that nobody needs, and that are being removed."""
        return frozenset(self._leaving)

    @asynccontextmanager
    async def open_place(self, tree: InputTree) -> AsyncIterator[ActionPlace]:
        """A place for one action with the inputs `tree`, which are still to be laid out.

        It may have served earlier actions, of which nothing is left but inputs. Leaving, by
        whatever way, cleans it and keeps it for later ones, or removes it (RUN-25).
        """
        place = self._pool.take(tree)
        is_new = place is None
        if place is None:
            place = self._new_place()
        try:
            if is_new:
                await on_disk("making a folder:", place.make)
            yield place
        finally:
            await self._give_back(place)

    def _new_place(self) -> ActionPlace:
        folders = ActionFolders(self._actions / str(next(self._numbers)))
        return ActionPlace(folders, self._open_root(folders.root), self._user)

    async def discard_idle(self) -> bool:
        """Remove all roots that no action uses. Returns whether there was any.

        After cancellation, some are kept as before.
        """
        found = False
        while (place := self._pool.take_oldest()) is not None:
            found = True
            await self._remove(place.folders.top)
            await trio.lowlevel.checkpoint_if_cancelled()
        return found

    async def _give_back(self, place: ActionPlace) -> None:
        if not await self._is_clean(place):
            await self._remove(place.folders.top)
            return
        for leaving in self._pool.give_back(place):
            await self._discard(leaving.folders.top)

    async def _is_clean(self, place: ActionPlace) -> bool:
        if not place.root.is_known or not self._pool.is_open:
            return False
        if place.is_clean():
            # Most actions leave nothing but outputs, and many not even these.
            return True
        clean = False
        # Others get the place: who was cancelled tidies up all the same.
        with trio.move_on_after(REMOVAL_SECONDS, shield=True):
            try:
                await on_disk("tidying up:", place.clean)
                clean = True
            except StokerError as error:
                _log.info("input root not kept", folder=place.folders.top, reason=str(error))
        return clean

    async def _discard(self, folder: Path) -> None:
        """Remove a folder that nobody waits for, unless there are too many of them."""
        if len(self._leaving) < _MOST_REMOVALS_WAITING:
            self._leaving.add(folder)
            self._nursery.start_soon(self._remove_later, folder)
        else:
            await self._remove(folder)

    async def _remove_later(self, folder: Path) -> None:
        try:
            await trio.to_thread.run_sync(remove_tree, str(folder), limiter=self._removals)
        except OSError:
            await remove_in_time(folder)
        finally:
            self._leaving.discard(folder)

    async def _remove(self, folder: Path) -> None:
        with trio.move_on_after(REMOVAL_SECONDS, shield=True) as scope:
            try:
                await trio.to_thread.run_sync(remove_tree, str(folder), abandon_on_cancel=True)
            except OSError:
                # It is tried again at once, and told if that fails too.
                self._nursery.start_soon(remove_in_time, folder)
        if scope.cancelled_caught:
            _log.warning("folder of an action still being removed", folder=str(folder))


def _left_over(folder: Path) -> Sequence[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.name in _FORMER_NAMES or path.name.startswith(_LIFE)
    ]


def _begin_life(folder: Path, user: ProcessUser | None) -> Path:
    # Private: inputs are nobody's business, whatever permissions they have themselves. Resolved,
    # as the path of an input root is compared with those that outputs resolve to.
    life = Path(tempfile.mkdtemp(prefix=_LIFE, dir=os.path.realpath(folder)))
    for path in (life / "actions", life / "workers"):
        path.mkdir()
        path.chmod(PASSABLE)
    if user is not None:
        # Processes of that user go through to their folders, and nobody else does.
        folder.chmod(PASSABLE)
        os.chown(life, -1, user.gid)
        life.chmod(0o710)
    return life


def _end_life(life: Path) -> None:
    """What is still there has withstood, and is left to the next life."""
    for path in (life / "actions", life / "workers", life):
        with suppress(OSError):
            path.rmdir()


async def remove_in_time(path: Path) -> None:
    """Remove a folder, and try again until that goes well. Failures are logged."""
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
