"""The folder of a persistent worker, and what each of its requests has of it."""

from __future__ import annotations

import abc
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog
import trio

from stoker.errors import StokerError
from stoker.execution.action_folders import remove_in_time
from stoker.execution.disk import on_disk
from stoker.execution.input_root import InputRoot, RootReplaced
from stoker.execution.open_folders import OpenFolders
from stoker.execution.removal import remove_entry, remove_tree
from stoker.execution.run import Run
from stoker.spi import ProcessUser
from stoker.workers.failure import WorkerFailed

_log = structlog.get_logger(__name__)

_TEMPORARY = ("tmp", "tmp")

TIDYING = "tidying up a worker's folder:"


class Served(Protocol):
    """What a folder must know of the worker that works there."""

    @property
    def name(self) -> str:
        """For messages."""

    async def recover(self) -> bool:
        """Wait until nothing that was given up is open. Returns whether it can go on."""


@dataclass(slots=True, eq=False)
class RequestFolder:
    """What one request has of a worker's folder."""

    root: InputRoot
    """Where its inputs are, and where its outputs are to be."""
    sandbox_dir: str = ""
    """What the request says of that; empty where it is the worker's own root."""
    is_open: bool = False
    """Whether the worker has the request and has not answered it: set by whoever sends it."""


class _Lock:
    """As :class:`trio.Lock`, but to take it while it is free costs no turn of trio's loop."""

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class WorkerFolder(abc.ABC):
    """A worker's folder: ``root`` for inputs, and ``tmp`` with its HOME and TMPDIR.

    Requests may overlap. The inode of the folder that the process works in never changes.
    """

    def __init__(
        self,
        top: Path,
        *,
        nursery: trio.Nursery,
        open_root: Callable[[Path], InputRoot],
        user: ProcessUser | None,
        cancellable: bool,
    ) -> None:
        """Use `top`, which has both. Tidying up goes on in `nursery`, which outlives it."""
        self.root = open_root(top / "root")
        """Where the process has its root."""
        self._top = top
        self._nursery = nursery
        self._open_root = open_root
        self._cancellable = cancellable
        self._temporary = TemporaryFolder(top, user)
        self._lock = _Lock()  # on the root and the temporary folder
        self._working_place: tuple[int, int] | None = None
        self._spoilt = ""

    @abc.abstractmethod
    def open_request(self, run: Run, worker: Served) -> AbstractAsyncContextManager[RequestFolder]:
        """A folder with all inputs of `run`, and nothing else but what the mode allows.

        On leaving, what the request has made goes, in the background: nobody has to wait for that
        but a request that comes before it is done. Where the worker has left it unanswered, it
        goes once that has recovered. Raises WorkerFailed where the folder is of no more use, and
        what `InputRoot.lay_out` raises.
        """

    async def remove(self) -> None:
        """Delete everything. Raises Unavailable where something withstands: it is tried again and
        again then, for as long as the executor is there.

        The process has ended, and no request has the folder. Cancellation waits for the end.
        """
        self._spoil("was removed")
        removal = partial(remove_tree, os.fspath(self._top))
        async with self._lock:
            try:
                await on_disk("removing a worker's folder:", removal)
            except StokerError:
                self._nursery.start_soon(remove_in_time, self._top)
                raise

    def _check_sound(self, worker: Served) -> None:
        if self._spoilt:
            raise WorkerFailed(worker.name, self._spoilt, answered=False)

    def _spoil(self, reason: str) -> None:
        """It is of no more use to the worker."""
        self._spoilt = self._spoilt or reason

    def _check_working_place(self, run: Run) -> None:
        """The process is where it began: a folder in the place of that one is another."""
        folder = self.root.folder / run.action.command.working_directory
        try:
            status = folder.lstat()
        except OSError as error:
            raise RootReplaced(f"the folder that it works in is gone: {error.strerror}") from error
        place = status.st_dev, status.st_ino
        if self._working_place not in (None, place):
            raise RootReplaced("the folder that it works in was replaced by another one")
        self._working_place = place

    @contextmanager
    def _losses(self, worker: Served) -> Iterator[None]:
        try:
            yield
        except RootReplaced as error:
            # By an earlier request: this one is to have a worker that has its folder.
            self._spoil(f"has lost its folder: {error}")
            self._check_sound(worker)

    def _in_background(self, work: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._carry_out, work)

    async def _carry_out(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except StokerError as error:
            self._spoil(f"has a folder that could not be tidied up: {error}")
        except Exception as error:  # noqa: BLE001  # one worker's folder must not end the server
            _log.error("worker's folder not tidied up", folder=str(self._top), exc_info=error)
            self._spoil("has a folder that could not be tidied up")

    def _after_recovery(self, worker: Served, then: Callable[[], Awaitable[None]]) -> None:
        """Do `then` once what the worker was asked and has not answered has come to an end."""
        reason = "was given up a request that may still be at work in its folder"
        if not self._cancellable:
            self._spoil(reason)
            return

        async def wait() -> None:
            if await worker.recover():
                await then()
            else:
                self._spoil(reason)

        self._in_background(wait)


class TemporaryFolder:
    """The TMPDIR of a worker, ``tmp/tmp`` in its folder, which is wiped between requests.

    Its inode stays. These functions block.
    """

    def __init__(self, top: Path, user: ProcessUser | None) -> None:
        self._top = os.fspath(top)
        self._path = os.path.join(self._top, *_TEMPORARY)
        self._user = user

    def is_empty(self) -> bool:
        """Whether a look tells that there is nothing in it."""
        try:
            with os.scandir(self._path) as entries:
                return next(entries, None) is None
        except OSError:
            return False

    def wipe(self) -> None:
        """Empty it, or make it anew where it is gone. Raises OSError."""
        with OpenFolders(self._top) as folders:
            # Folder by folder: the worker may have put a link in the place of one.
            for depth, name in enumerate(_TEMPORARY, 1):
                folders.enter(depth, name)
            try:
                descriptor = folders.descriptor
            except (FileNotFoundError, NotADirectoryError):
                folders.enter(1, _TEMPORARY[0])
                self._make(folders.descriptor)
                return
            for name in os.listdir(descriptor):  # noqa: PTH208  # of a descriptor
                remove_entry(name, descriptor)
            os.fchmod(descriptor, 0o700)

    def _make(self, parent: int) -> None:
        name = _TEMPORARY[-1]
        remove_entry(name, parent)
        os.mkdir(name, 0o700, dir_fd=parent)
        if self._user is not None:
            os.chown(name, *self._user, dir_fd=parent, follow_symlinks=False)
