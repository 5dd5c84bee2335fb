"""What the scheduler has promised, on disk: operations outlive a server that is killed (SCH-07).

The scheduler tells of each change by a plain call, between awaits; a task of its own writes what
has gathered. So an operation that is accepted and ends within the time of a batch costs one row,
and one that is forgotten within it none.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog
import trio
from google.protobuf.message import DecodeError

from stoker.database import Change, Database, Row, open_database
from stoker.errors import StokerError, StorageFull, Unavailable
from stoker.scheduler import journal_rows as rows
from stoker.scheduler.in_hand import InHand, open_in_hand
from stoker.scheduler.journal_rows import Kept, Request
from stoker.scheduler.losses import Bounds, Loss, Losses, key_of

if TYPE_CHECKING:
    from stoker.action import LoadedAction
    from stoker.scheduler.operation import Operation
    from stoker.scheduler.settings import SchedulerSettings

Gathered = TypeVar("Gathered")

log = structlog.get_logger(__name__)

FILE = "journal.sqlite"
IN_HAND_FILE = "in-hand"

RETRY_SECONDS = 5.0
"""How long after trouble with its file the journal is begun anew."""


@dataclass(eq=False, slots=True)
class _Entry:
    operation: Operation
    request: Request
    done: trio.Event
    """Set once it is written, or cannot be."""
    ended_nanoseconds: int = 0
    written: bool = False
    """Whether the file has a row of it, or is about to."""

    def row(self) -> Row:
        return (*rows.accepted_row(self.operation, self.request), *self.end())

    def end(self) -> Row:
        if not self.ended_nanoseconds:
            return (None, None, None)
        return rows.ended_row(self.operation, self.ended_nanoseconds)


class Journal:
    """What has to outlive the server. One that was not opened by `open_journal` keeps nothing.

    While its file cannot be written, all goes on without; once it can be, all that is known then
    is written anew.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.losses = Losses(bounds)
        """Which actions were lost, by this server and those before it."""
        self._entries: dict[str, _Entry] = {}
        self._begin_batch()
        self._in_hand: InHand | None = None
        self._keeping = False
        self.in_trouble = False
        """Whether operations do not outlive the server at this time."""
        self._wake = trio.Event()
        self._closing = trio.Event()

    # --- told by the scheduler, between awaits

    def accepted(self, operation: Operation, request: Request) -> None:
        """`operation` was accepted."""
        if self._keeping:
            entry = self._entries[operation.name] = _Entry(operation, request, self._done)
            self._gather(self._new, entry)

    def ended(self, operation: Operation) -> None:
        """`operation` has its outcome. Does nothing for one that was never told of."""
        if entry := self._entries.get(operation.name):
            entry.ended_nanoseconds = time.time_ns()
            if entry.written:
                self._gather(self._ends, entry)

    def forgotten(self, name: str) -> None:
        """The operation of this name need not be known any more."""
        if (entry := self._entries.pop(name, None)) and entry.written:
            self._gather(self._gone, entry.operation.number)

    def lost(self, action: LoadedAction, executor: str, began_nanoseconds: int) -> None:
        """`executor`, which had `action`, is lost."""
        key, oldest = key_of(action), self._oldest_loss()
        loss = Loss(began_nanoseconds, time.time_ns(), executor, with_server=False)
        self.losses.note(key, loss)
        self._gather(self._changes, Change(rows.ADD_LOSS, [(key, *loss)]))
        # There may never be another word of those that nobody asks for again.
        self.losses.forget_before(oldest, but=key)
        self._gather(self._changes, Change(rows.FORGET_LOSSES, [(oldest, key)]))

    def survived(self, action: LoadedAction) -> None:
        """`action` ran, and ended by itself: what was lost with it had another reason."""
        if self.losses and self.losses.clear(key := key_of(action)):
            self._gather(self._changes, Change(rows.CLEAR_LOSSES, [(key,)]))

    @contextmanager
    def in_hand(self, action: LoadedAction, executor: str) -> Iterator[None]:
        """`executor` has `action` within this context: a kill meanwhile counts as its loss."""
        if self._in_hand is None:
            yield
            return
        place = self._in_hand.take(key_of(action), executor)
        try:
            yield
        finally:
            # It is gone where the journal itself has failed.
            if self._in_hand is not None:
                self._in_hand.let_go(place)

    # --- for those who wait

    async def wait_recorded(self, operation: Operation) -> None:
        """Wait until `operation` outlives the server, or the journal is in trouble.

        Calls may overlap; cancellation leaves nothing behind.
        """
        if entry := self._entries.get(operation.name):
            await entry.done.wait()

    # --- the file

    def _gather(self, changes: list[Gathered], change: Gathered) -> None:
        # All is written anew after trouble, so nothing need be gathered for that.
        if self._keeping and not self.in_trouble:
            changes.append(change)
            self._wake.set()

    def _begin_batch(self) -> None:
        self._new: list[_Entry] = []
        self._ends: list[_Entry] = []
        self._gone: list[int] = []
        self._changes: list[Change] = []
        self._done = trio.Event()

    def take_batch(self) -> list[Change]:
        """The changes that have gathered, to be made together.

        What happens from now on belongs to the next batch.
        """
        new = [entry for entry in self._new if self._entries.get(entry.operation.name) is entry]
        changes = [
            Change(rows.ADD, [entry.row() for entry in new]),
            Change(rows.END, [(*entry.end(), entry.operation.number) for entry in self._ends]),
            Change(rows.FORGET, [(number,) for number in self._gone]),
            *self._changes,
        ]
        for entry in new:
            entry.written = True
        self._begin_batch()
        return [change for change in changes if change.rows]

    def _take_all(self) -> list[Change]:
        """All that is known, in place of whatever the file has."""
        self._begin_batch()
        for entry in self._entries.values():
            entry.written = True
        return [
            Change(rows.FORGET_ALL, [()]),
            Change(rows.ADD, [entry.row() for entry in self._entries.values()]),
            Change(rows.FORGET_ALL_LOSSES, [()]),
            Change(rows.ADD_LOSS, [(key, *loss) for key, loss in self.losses]),
        ]

    async def keep(
        self,
        folder: Path,
        batch_seconds: float,
        *,
        task_status: trio.TaskStatus[list[Kept]],
    ) -> None:
        """Write to the file until `close`; begins with what the file has."""
        path = folder / FILE
        with ExitStack() as stack:
            async with _opened(path) as database:
                # Once the database is open, whose lock tells another server.
                self._in_hand = stack.enter_context(open_in_hand(folder / IN_HAND_FILE))
                stack.callback(setattr, self, "_in_hand", None)
                kept = await self._take_up(database, self._in_hand)
                self._keeping = True
                task_status.started(kept)
                await self._write_on(database, path, batch_seconds)
            while not self._closing.is_set():
                await self._try_anew(path, batch_seconds)

    async def _try_anew(self, path: Path, batch_seconds: float) -> None:
        with trio.move_on_after(RETRY_SECONDS):
            await self._closing.wait()
        try:
            async with _opened(path) as database:
                await self._begin_anew(database)
                await self._write_on(database, path, batch_seconds)
        except (StorageFull, Unavailable) as error:
            log.debug("the journal is still in trouble", reason=str(error))

    def close(self) -> None:
        """Have `keep` write what has gathered, and end."""
        self._closing.set()
        self._wake.set()

    async def _write_on(self, database: Database, path: Path, batch_seconds: float) -> None:
        """Write batch after batch; returns when told to close, or when the file is in trouble."""
        file = _file_number(path)
        while not self.in_trouble:
            await self._wake.wait()
            if not self._closing.is_set():
                await trio.sleep(batch_seconds)
            self._wake = trio.Event()
            done = self._done
            changes = self.take_batch()
            try:
                await _write(database, path, file, changes)
            except (StorageFull, Unavailable) as error:
                self._suspend()
                log.error("operations do not outlive the server now", reason=str(error))  # noqa: TRY400 # full disks are no bugs
            done.set()
            # What happened during the last write still wants another one.
            if self._closing.is_set() and not self._wake.is_set():
                return

    def _suspend(self) -> None:
        """Until the file is written anew nobody waits for it, and nothing is gathered."""
        self.in_trouble = True
        self._done.set()
        self._begin_batch()
        self._done.set()

    async def _begin_anew(self, database: Database) -> None:
        changes = self._take_all()
        # From here on each change is one of a batch again, which comes after all that was taken.
        self.in_trouble = False
        try:
            await database.change(changes)
        except (StorageFull, Unavailable):
            self._suspend()
            raise
        log.info("operations outlive the server again", operations=len(self._entries))

    async def _take_up(self, database: Database, in_hand: InHand) -> list[Kept]:
        """What the server before this one left, after its death is counted."""
        left = [(entry.key, *entry.loss) for entry in in_hand.left]
        forgetting = Change(rows.FORGET_LOSSES, [(self._oldest_loss(), b"")])
        await database.change([Change(rows.ADD_LOSS, left), forgetting])
        in_hand.clear()
        kept, bad = _read_all(await database.read(rows.READ), rows.kept)
        losses, bad_losses = _read_all(await database.read(rows.READ_LOSSES), rows.kept_loss)
        # Nobody would ever forget them.
        await database.change(
            [Change(rows.FORGET, bad), Change(rows.CLEAR_LOSSES, bad_losses)],
        )
        for key, loss in losses:
            self.losses.note(key, loss)
        for each in kept:
            self._adopt(each)
        return kept

    def _oldest_loss(self) -> int:
        """Actions that were last lost before this time of day are suspects no more."""
        return time.time_ns() - self.losses.bounds.quarantine_nanoseconds

    def _adopt(self, kept: Kept) -> None:
        done = trio.Event()
        done.set()
        operation, request, ended = kept
        self._entries[operation.name] = _Entry(operation, request, done, ended, written=True)


def _opened(path: Path) -> AbstractAsyncContextManager[Database]:
    return open_database(path, schema=rows.SCHEMA, version=rows.VERSION)


def _file_number(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


async def _write(
    database: Database, path: Path, file: int | None, changes: Sequence[Change]
) -> None:
    # SQLite goes on with a file that was taken away, which nobody would find again.
    if _file_number(path) != file:
        raise Unavailable(f"{path} was taken away")
    if changes:
        await database.change(changes)


def _read_all(
    found: Iterable[Row], read: Callable[[Row], Gathered]
) -> tuple[list[Gathered], list[Row]]:
    """What `found` tells, and the keys of rows that are damaged."""
    readable, damaged = [], []
    for row in found:
        try:
            readable.append(read(row))
        except (ValueError, StokerError, DecodeError) as error:
            log.warning("a row of the journal is unreadable", row=row[0], reason=str(error))
            damaged.append(row[:1])
    return readable, damaged


def is_journal(folder: Path) -> bool:
    """Whether there is a journal in `folder`."""
    return (folder / FILE).exists()


@asynccontextmanager
async def open_journal(
    folder: Path, settings: SchedulerSettings
) -> AsyncIterator[tuple[Journal, list[Kept]]]:
    """The journal in `folder`, and the operations that a server before this one left there.

    Raises Unavailable while another server has it open, and Unavailable or StorageFull where it
    cannot be opened at all. A damaged file is set aside, and a new one begun. Cancellation loses
    the last batch at most, as a kill does.
    """
    journal = Journal(settings.bounds)
    async with trio.open_nursery() as nursery:
        kept = await nursery.start(journal.keep, folder, settings.journal_batch_seconds)
        try:
            yield journal, kept
        finally:
            journal.close()
