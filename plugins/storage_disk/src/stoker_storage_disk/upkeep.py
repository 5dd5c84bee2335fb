"""What goes on beside the requests: filling the index from the files, noting uses, evicting."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog
import trio

from stoker.spi import ConfigurationError, StokerError, Unavailable
from stoker_storage_disk.bounded import BoundedFolder
from stoker_storage_disk.folder import (
    INCOMING,
    PARTIAL,
    Folder,
    disk_bytes,
    open_folder,
    storage_errors,
)
from stoker_storage_disk.index import Index, IndexedFile, now_ms
from stoker_storage_disk.room import COPY_SUFFIX, Bounds, NotCountedYet
from stoker_storage_disk.threads import Threads

_log = structlog.get_logger(__name__)

# How long a use may wait before it is noted, that is, how much of the order of uses a crash costs.
_FLUSH_SECONDS = 1.0
_NAME = re.compile(rf"([0-9a-f]{{2}})/(\1[0-9a-f]+)-([0-9]+)({re.escape(COPY_SUFFIX)})?")
_ROWS = 1_000

Answer = TypeVar("Answer")


class FoundFile(NamedTuple):
    """A file that has the name of a blob or of a result."""

    name: str
    size_in_name: int
    is_copy: bool

    @property
    def original(self) -> str:
        """The name of the file that this one is a copy of, or its own."""
        return self.name.removesuffix(COPY_SUFFIX)


def found_files(folder: Folder) -> Iterator[list[FoundFile]]:
    """All files that the folder holds, those of one folder inside of it at a time. Blocks.

    A file that comes or goes meanwhile may be told or not. Raises Unavailable.
    """
    for top, _, names in os.walk(folder.path, onerror=_raise):
        inside = os.path.relpath(top, folder.path)
        if inside.partition("/")[0] in (".", INCOMING, PARTIAL):
            continue
        parent = inside.rpartition("/")[2]
        matches = (_NAME.fullmatch(f"{parent}/{name}") for name in names)
        yield [
            FoundFile(f"{inside}/{match[0][3:]}", int(match[3]), bool(match[4]))
            for match in matches
            if match
        ]


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        with storage_errors(str(error.filename)):
            raise error


@dataclass(frozen=True, slots=True)
class Content:
    """What sort of files a folder holds."""

    size_is_in_name: bool
    """Whether a file has the size that its name says: then counting needs no look at it."""


class Upkeep:
    """Looks after `files` as long as `run` runs. One task runs it."""

    def __init__(self, files: BoundedFolder, threads: Threads, content: Content) -> None:
        self.files = files
        self.threads = threads
        self._content = content
        self._token = trio.lowlevel.current_trio_token()
        self._bytes_known = False
        self._complete = False
        self._filling_failure: StokerError | None = None
        self._filling_changed = trio.Event()
        self._wanted = trio.Event()
        self._is_wanted = False
        self.chores: list[Callable[[], None]] = []
        """Done about once a second, in a thread."""
        files.ledger.on_alarm = self._want
        files.index.on_replaced = self._index_replaced
        if files.index.was_complete:
            files.count()
            self._bytes_known = self._complete = True

    async def write(self, work: Callable[[], Answer]) -> Answer:
        """Do, in a thread, work that needs room. It may be begun a second time.

        As long as it is unknown how much the folder holds, and it has a bound, this waits.
        Raises Unavailable when that cannot be found out.
        """
        if self.files.bounds.max_bytes is not None:
            await self._wait(lambda: self._bytes_known)
        try:
            return await self.threads.write(work)
        except NotCountedYet:
            await self.wait_complete()
            return await self.threads.write(work)

    async def wait_complete(self) -> None:
        """Wait until every file is in the index. Raises Unavailable when that does not succeed."""
        await self._wait(lambda: self._complete)

    async def _wait(self, is_reached: Callable[[], bool]) -> None:
        while not is_reached():
            # Tried again before long, but those who wait have clients that wait.
            if self._filling_failure is not None:
                raise Unavailable(str(self._filling_failure)) from self._filling_failure
            await self._filling_changed.wait()

    def _note_filling(self, failure: StokerError | None = None) -> None:
        self._filling_failure = failure
        self._filling_changed.set()
        self._filling_changed = trio.Event()

    async def run(self) -> None:
        """Look after the folder until cancelled. Trouble is logged, and tried again."""
        while True:
            try:
                await self._round()
            except StokerError as error:
                _log.warning("upkeep failed", path=self.files.folder.path, reason=str(error))
            with trio.move_on_after(_FLUSH_SECONDS):
                await self._wanted.wait()
                # What raised the alarm is many a time followed by more.
                await trio.lowlevel.checkpoint()

    async def _round(self) -> None:
        self._wanted, self._is_wanted = trio.Event(), False
        if not self.files.is_counted:
            try:
                await self._fill_index()
            except StokerError as error:
                self._note_filling(error)
                raise
        # In steps, so that the server need not wait for all of them when it is to stop.
        while await self.threads.write(self.files.evict):
            pass
        await self.threads.write(self._work)

    def _work(self) -> None:
        for chore in self.chores:
            chore()
        if self.files.ledger.is_due:
            self.files.flush()
        # The clock may be set back at any time.
        self.files.index.correct_future()
        self.files.index.checkpoint()

    def _want(self) -> None:
        # Called by many threads; one message is enough.
        if not self._is_wanted:
            self._is_wanted = True
            self._token.run_sync_soon(self._wake)

    def _wake(self) -> None:
        # Not given to other threads as it is: the event of now may be another one by then.
        self._wanted.set()

    def _index_replaced(self) -> None:
        # The count of bytes is in memory and goes on being right.
        self.files.is_counted = False
        self._token.run_sync_soon(self._begin_again)

    def _begin_again(self) -> None:
        self._complete = False
        self._wake()

    # --- filling the index

    async def _fill_index(self) -> None:
        if not self._bytes_known:
            await self._count_bytes()
        files = 0
        while not self.files.is_counted:
            generation = self.files.index.generation
            files = await self._each_folder(self.note_found)
            await self._drop_absent()
            await self.threads.write(self.files.count, generation)
        self._complete = True
        self._note_filling()
        if files:
            _log.info("index filled from the files", path=self.files.folder.path, files=files)

    async def _count_bytes(self) -> None:
        total = 0

        def count(found: list[FoundFile]) -> None:
            nonlocal total
            total += sum(self._bytes_of(file) for file in found)

        await self._each_folder(count)
        self.files.ledger.store(total)
        self._bytes_known = True
        self._note_filling()

    def _bytes_of(self, file: FoundFile) -> int:
        if self._content.size_is_in_name:
            return disk_bytes(file.size_in_name)
        found = self._stat(file)
        return 0 if found is None else disk_bytes(found.st_size)

    def _stat(self, file: FoundFile) -> os.stat_result | None:
        try:
            return self.files.folder.stat(file.name)
        except Unavailable as error:
            # It cannot be served, nor evicted: nobody has to wait because of it.
            _log.warning("file not counted", path=self.files.folder.path, reason=str(error))
            return None

    async def _each_folder(self, work: Callable[[list[FoundFile]], None]) -> int:
        """How many files there were."""
        folders = found_files(self.files.folder)
        files = 0

        def step() -> bool:
            nonlocal files
            found = next(folders, None)
            if found:
                work(found)
                files += len(found)
            return found is not None

        while await self.threads.write(step):
            pass
        return files

    def note_found(self, found: list[FoundFile]) -> None:
        """Make sure that the index knows these files, all of one folder. Raises Unavailable."""
        copies = {file.original for file in found if file.is_copy}
        rows = [self._row(file, copies) for file in found if not file.is_copy]
        self.files.note_found([row for row in rows if row is not None])
        for orphan in copies - {file.name for file in found}:
            self.files.remove_copy(orphan)

    def _row(self, file: FoundFile, copies: set[str]) -> IndexedFile | None:
        found = self._stat(file)
        if found is None:
            return None
        if self._content.size_is_in_name and found.st_size != file.size_in_name:
            reason = f"it has {found.st_size} bytes, not {file.size_in_name}"
            self.files.remove_damaged(file.name, found, reason)
            return None
        kind = int(file.name in copies)
        # A file from the future, by a clock that was wrong, would never be the longest unused.
        used_ms = min(int(max(found.st_atime, found.st_mtime) * 1000), now_ms())
        return IndexedFile(file.name, disk_bytes(found.st_size) * (1 + kind), used_ms, kind)

    async def _drop_absent(self) -> None:
        after = ""
        while names := await self.threads.write(self.files.index.names, after, _ROWS):
            await self.threads.write(self.files.forget_absent, names)
            after = names[-1]


@asynccontextmanager
async def open_bounded_folder(
    path: Path, *, fsync: bool, bounds: Bounds, content: Content
) -> AsyncIterator[Upkeep]:
    """Open the folder at `path` with its index, and look after it.

    Returns at once, however many files there are. Raises ConfigurationError.
    """
    threads = Threads()
    async with open_folder(path, fsync=fsync) as folder:
        index = await _open_index(folder, threads)
        files = BoundedFolder(folder, index, bounds)
        try:
            await threads.write(index.correct_future)
            upkeep = Upkeep(files, threads, content)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(upkeep.run)
                yield upkeep
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await threads.write(_close, files)


async def _open_index(folder: Folder, threads: Threads) -> Index:
    try:
        return await threads.write(Index, folder.path)
    except StokerError as error:
        raise ConfigurationError([f"folder {folder.path} cannot be used: {error}"]) from error


def _close(files: BoundedFolder) -> None:
    try:
        files.flush()
    except StokerError as error:
        _log.warning("uses not noted", path=files.folder.path, reason=str(error))
    files.index.close()
