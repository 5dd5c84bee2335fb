"""The records: one row for each run that has ended, in a file of their own.

Nothing is written where actions run: a run is put on a list, and a task of its own writes what has
gathered. The disk is never waited for, and its failure costs records, nothing else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog
import trio
from google.protobuf.message import DecodeError

from stoker.action import RunRecord
from stoker.database import Change, Database, Row, Value, open_database
from stoker.errors import InvalidRequest, StorageFull, Unavailable
from stoker.history.kept_run import COLUMNS, KeptRun, row_of
from stoker.history.settings import HistorySettings

_log = structlog.get_logger(__name__)

MAX_WAITING = 20_000
"""How many runs may wait to be written; the oldest are let go of when the disk does not follow."""

_GATHER_SECONDS = 1.0
_BATCH = 500
_CLOSING_SECONDS = 5.0
_DECADES_DAYS = 40_000.0
"""More nanoseconds than these have a database cannot count."""
_VERSION = 1
_SCHEMA = (
    """CREATE TABLE runs (
        id INTEGER PRIMARY KEY, instance TEXT NOT NULL, digest_function INTEGER NOT NULL,
        hash TEXT NOT NULL, size_bytes INTEGER NOT NULL, mnemonic TEXT NOT NULL,
        target TEXT NOT NULL, output TEXT NOT NULL, program TEXT NOT NULL,
        ended_ns INTEGER NOT NULL, action BLOB NOT NULL, metadata BLOB NOT NULL,
        facts BLOB NOT NULL
    )""",
    "CREATE INDEX runs_by_action ON runs (instance, hash)",
    "CREATE INDEX runs_by_output ON runs (instance, mnemonic, output)",
    "CREATE INDEX runs_by_target ON runs (instance, target)",
    "CREATE TABLE operations (run INTEGER, name TEXT, principal TEXT)",
    "CREATE INDEX operations_by_run ON operations (run)",
    "CREATE INDEX operations_by_name ON operations (name)",
)


class History:
    """The runs that have ended. Calls may overlap.

    Questions raise Unavailable where the records cannot be read, or are not kept.
    """

    def __init__(
        self, database: Database | None, settings: HistorySettings, why_not: str = "", last: int = 0
    ) -> None:
        self._database = database
        self._settings = settings
        self._why_not = why_not
        self._waiting: deque[RunRecord] = deque(maxlen=MAX_WAITING)
        self._news = trio.Event()
        self._turn = trio.Lock()
        self._last = last
        self._in_trouble = False

    @property
    def is_kept(self) -> bool:
        """Whether there are records."""
        return self._database is not None

    @property
    def waiting(self) -> int:
        """How many runs wait to be written."""
        return len(self._waiting)

    def note(self, record: RunRecord) -> None:
        """`record` is to be written, soon."""
        if not self._waiting:
            self._news.set()
        self._waiting.append(record)

    # --- questions

    async def find_operation(self, instance: str, name: str, principal: str) -> KeptRun | None:
        """The run that an operation of this client has shared."""
        shared = "SELECT run FROM operations WHERE name = ? AND principal = ?"
        runs = await self._find(f"instance = ? AND id IN ({shared})", instance, name, principal)
        return next(iter(runs), None)

    async def find_action(self, instance: str, prefix: str, limit: int = 20) -> list[KeptRun]:
        """The runs of actions whose hash begins with `prefix`, in lower case; newest first."""
        return await self._find(
            "instance = ? AND hash >= ? AND hash < ?", instance, prefix, f"{prefix}g", limit=limit
        )

    async def hashes(self, instance: str, prefix: str) -> list[str]:
        """The hashes, up to ten, that begin with `prefix`, in order."""
        rows = await self._read(
            "SELECT DISTINCT hash FROM runs WHERE instance = ? AND hash >= ? AND hash < ?"
            " ORDER BY hash LIMIT 10",
            instance,
            prefix,
            f"{prefix}g",
        )
        return [str(row[0]) for row in rows]

    async def operations(self, run: KeptRun, principal: str) -> list[str]:
        """The names of the operations of this client that shared `run`."""
        rows = await self._read(
            "SELECT name FROM operations WHERE run = ? AND principal = ?", run.number, principal
        )
        return [str(row[0]) for row in rows]

    async def earlier(self, run: KeptRun, alike: Iterable[str], limit: int) -> list[KeptRun]:
        """The newest runs before `run` of other actions of its instance, one of each action, that
        have the columns `alike` in common with it."""
        names = tuple(alike)
        conditions = "".join(f" AND {name} = ?" for name in names)
        values = tuple(getattr(run, name) for name in names)
        newest = "id IN (SELECT max(id) FROM runs WHERE instance = ? AND id < ? AND hash != ?"
        return await self._find(
            f"{newest}{conditions} GROUP BY hash)",
            run.instance,
            run.number or 2**62,
            run.digest.hash,
            *values,
            limit=limit,
        )

    async def _find(self, condition: str, *values: Value, limit: int = 1) -> list[KeptRun]:
        query = f"SELECT {COLUMNS} FROM runs WHERE {condition} ORDER BY id DESC LIMIT {limit}"  # noqa: S608 -- of texts of ours only
        return [*_readable(await self._read(query, *values))]

    async def _read(self, query: str, *values: Value) -> list[Row]:
        if self._database is None:
            raise Unavailable(self._why_not)
        # What ended a moment ago is what people ask about.
        await self.write()
        try:
            return await self._database.read(query, *values)
        except (StorageFull, Unavailable) as error:
            _log.warning("records cannot be read", reason=str(error))
            # Whoever asks is not told where the file lies.
            raise Unavailable("the records cannot be read: the server's log says why") from error

    # --- writing

    async def keep_writing(self) -> None:
        """Write what is noted, a while after it was, until cancelled."""
        while True:
            await self._news.wait()
            await trio.sleep(_GATHER_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write what has been noted so far. What cannot be written is let go of."""
        async with self._turn:
            while self._waiting:
                self._news = trio.Event()
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                # Whoever asked may go meanwhile, and must not take along what others have noted.
                with trio.CancelScope(shield=True):
                    await self._write(batch)
                await trio.lowlevel.checkpoint_if_cancelled()

    async def _write(self, batch: list[RunRecord]) -> None:
        if self._database is None:
            return
        first, self._last = self._last + 1, self._last + len(batch)
        try:
            changes = await trio.to_thread.run_sync(_changes, batch, first)
            await self._database.change((*changes, *self._trimming()))
        except (StorageFull, Unavailable) as error:
            if not self._in_trouble:
                _log.warning("runs are not recorded", reason=str(error))
            self._in_trouble = True
        except Exception:  # noqa: BLE001 - logged whole
            # Records are for those who ask later: a bug in them must not stop those who work.
            _log.exception("runs are not recorded, by a bug")
        else:
            self._in_trouble = False

    def _trimming(self) -> list[Change]:
        """What keeps the records within their bounds."""
        age_days = min(self._settings.max_age_days, _DECADES_DAYS)
        oldest_ns = time.time_ns() - int(age_days * 86400e9)
        # By number throughout: rows come in that order, so that this finds its place at once.
        last_gone = (
            "SELECT max(?, coalesce((SELECT max(id) FROM (SELECT id, ended_ns FROM runs"
            " ORDER BY id LIMIT 1000) WHERE ended_ns < ?), 0))"
        )
        bounds = [(self._last - self._settings.max_runs, oldest_ns)]
        return [
            Change(f"DELETE FROM operations WHERE run <= ({last_gone})", bounds),  # noqa: S608
            Change(f"DELETE FROM runs WHERE id <= ({last_gone})", bounds),  # noqa: S608
        ]


def _readable(rows: Iterable[Row]) -> Iterator[KeptRun]:
    for row in rows:
        try:
            yield KeptRun.from_row(row)
        except (ValueError, DecodeError, InvalidRequest) as error:
            _log.warning("the record of a run is unreadable", run=row[0], reason=str(error))


def _changes(batch: list[RunRecord], first: int) -> list[Change]:
    numbered = list(enumerate(batch, first))
    marks = ", ".join("?" for _ in COLUMNS.split(","))
    return [
        Change(
            f"INSERT INTO runs ({COLUMNS}) VALUES ({marks})",  # noqa: S608 -- of texts of ours only
            [row_of(record, number) for number, record in numbered],
        ),
        Change(
            "INSERT INTO operations (run, name, principal) VALUES (?, ?, ?)",
            [(number, *sharer) for number, record in numbered for sharer in record.sharers],
        ),
    ]


@asynccontextmanager
async def open_history(path: Path, settings: HistorySettings) -> AsyncIterator[History]:
    """The records in the file `path`. Where it cannot be opened there are none, and a line in the
    log says why."""
    if not settings.enabled:
        yield History(
            None,
            settings,
            "no runs are recorded: [history] enabled is false, or the server has no executors",
        )
        return
    async with AsyncExitStack() as stack:
        try:
            database = await stack.enter_async_context(
                open_database(path, schema=_SCHEMA, version=_VERSION)
            )
            [[last]] = await database.read("SELECT coalesce(max(id), 0) FROM runs")
        except (StorageFull, Unavailable) as error:
            _log.warning("runs are not recorded", reason=str(error))
            yield History(None, settings, "no runs are recorded: the server's log says why")
            return
        assert isinstance(last, int)
        history = History(database, settings, last=last)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(history.keep_writing)
            try:
                yield history
            finally:
                nursery.cancel_scope.cancel()
                with trio.move_on_after(_CLOSING_SECONDS) as closing:
                    closing.shield = True
                    await history.write()
