"""A small SQLite file of the server's own, off the main thread.

For what must outlive the process and is asked for rarely: queues and records, not blobs. Whoever
writes gathers changes and hands them over together: a transaction costs about as much as a hundred
rows of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog
import trio

from stoker.errors import StorageFull, Unavailable

_log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")
Value = str | bytes | int | float | None
Row = tuple[Value, ...]


class Change(NamedTuple):
    """One statement, run for each of `rows`."""

    statement: str
    rows: Sequence[Sequence[Value]]


class Database:
    """An open file. Calls may overlap; each is a transaction of its own, one after the other.

    Every call raises StorageFull where the disk is full, and Unavailable where the file cannot be
    read or written. A cancelled call is done wholly: cancellation waits for the thread.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._turn = trio.Lock()

    async def change(self, changes: Iterable[Change]) -> None:
        """Make all `changes`, or none. Once this returns they outlive the process, but not the
        machine: a loss of power may take the last moments, and leaves the file whole."""
        await self._in_thread(partial(self._change, tuple(changes)))

    async def read(self, query: str, *parameters: Value) -> list[Row]:
        """The rows that `query` finds, which sees every change that has returned."""
        return await self._in_thread(partial(self._read, query, parameters))

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        async with self._turn:
            try:
                return await trio.to_thread.run_sync(work)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise _translated(error, self._path) from error

    def _change(self, changes: Sequence[Change]) -> None:
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            for statement, rows in changes:
                self._connection.executemany(statement, rows)

    def _read(self, query: str, parameters: Sequence[Value]) -> list[Row]:
        return self._connection.execute(query, parameters).fetchall()


@asynccontextmanager
async def open_database(
    path: Path, *, schema: Sequence[str], version: int
) -> AsyncIterator[Database]:
    """The database in the file `path`, made by the statements of `schema` where there is none.

    A file of another `version`, or one that is damaged, is set aside under a name that tells so,
    and a new one begun: what is kept here saves work, and must never keep a server from starting.
    Raises StorageFull or Unavailable, also while another process has the file open.
    """
    try:
        connection = await trio.to_thread.run_sync(partial(_open, path, tuple(schema), version))
    except (sqlite3.Error, OSError) as error:
        raise _translated(error, path) from error
    with closing(connection):
        yield Database(connection, path)


def _open(path: Path, schema: Sequence[str], version: int) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _connect(path, schema, version)
    except _NotOurs as error:
        aside = path.with_name(f"{path.name}.{error.why}")
        _log.warning("database set aside", path=str(path), aside=str(aside), reason=error.why)
        path.replace(aside)
        # They belong to that file alone, and would spoil the new one.
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
    return _connect(path, schema, version)


class _NotOurs(Exception):
    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


def _connect(path: Path, schema: Sequence[str], version: int) -> sqlite3.Connection:
    # Others on the machine have no business with what clients do. SQLite's own files follow suit.
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
    # One text that a bad disk has spoiled must not hide all the others.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    try:
        # Before anything else: it makes the first statement take the lock that tells another
        # server on the same folder, and does without a shared index, which a kill could tear.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        # The system has the pages, whatever becomes of the process.
        connection.execute("PRAGMA synchronous = OFF")
        _make(connection, schema, version)
    except UnicodeDecodeError as error:
        # SQLite quotes what it found in the file when it tells that it is damaged.
        connection.close()
        raise _NotOurs("damaged") from error
    except sqlite3.DatabaseError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise _NotOurs("damaged") from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _make(connection: sqlite3.Connection, schema: Sequence[str], version: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    ((found,),) = connection.execute("PRAGMA user_version")
    if found not in (0, version):
        raise _NotOurs(f"version-{found}")
    if not found and not _layout(connection):
        for statement in schema:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("COMMIT")
    with closing(sqlite3.connect(":memory:")) as model:
        for statement in schema:
            model.execute(statement)
        if _layout(connection) != _layout(model):
            raise _NotOurs("damaged")
    ((verdict,),) = connection.execute("PRAGMA quick_check(1)")
    if verdict != "ok":
        raise _NotOurs("damaged")


def _layout(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    """The names of all tables, indices and whatever else, and the statements that make them."""
    found = connection.execute("SELECT name, sql FROM sqlite_schema")
    return {(name, " ".join((sql or "").split())) for name, sql in found}


def _translated(error: Exception, path: Path) -> StorageFull | Unavailable:
    # Its lowest byte tells the kind, and the others the place where it came up.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"the disk of {path} is full")
    if code == sqlite3.SQLITE_BUSY:
        return Unavailable(
            f"{path} is in use by another process: give each server a state_directory of its own"
        )
    return Unavailable(f"{path} cannot be used: {error}")
