"""What is in a folder, how much it takes and when it was last used: a table in SQLite.

The index is a memory of the folder, never the truth about it: files decide what exists. It may be
lost at any time, and then begins anew, empty, for somebody to fill it from the files.
"""

# ruff: noqa: PTH108, PTH110, PTH116, PTH123 - strings, as in all of this package.

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

import structlog

from stoker.spi import StokerError, StorageFull, Unavailable
from stoker_storage_disk.folder import storage_errors

_log = structlog.get_logger(__name__)

_FORMAT = 1
_APPLICATION = 0x53544B52  # "STKR": tells this index from any other SQLite file
# Enough for the hot part of an index of millions of files; it is all that the index keeps in RAM.
_CACHE_KIB = 8 * 1024
_CHECKPOINT_BYTES = 4 * 1024 * 1024
# Above this size of the log, writers have to wait for a moment: under a load that never pauses it
# would otherwise never be moved to its end, and so never begin anew.
_LONGEST_LOG_BYTES = 16 * 1024 * 1024
# What is left of the log's file when it begins anew.
_KEPT_LOG_BYTES = 2 * 1024 * 1024

# How many names are read at once, during which others wait for the index.
_NAMES_AT_ONCE = 1_000

_CLEAN = "clean"

_SCHEMA = """
CREATE TABLE files (
    name TEXT PRIMARY KEY,
    size_bytes INTEGER NOT NULL,
    used_ms INTEGER NOT NULL,
    kind INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX by_use ON files (used_ms);
CREATE TABLE facts (opened_by TEXT NOT NULL, complete INTEGER NOT NULL, total INTEGER NOT NULL);
INSERT INTO facts VALUES ('', 0, 0);
CREATE TRIGGER file_added AFTER INSERT ON files
    BEGIN UPDATE facts SET total = total + NEW.size_bytes; END;
CREATE TRIGGER file_removed AFTER DELETE ON files
    BEGIN UPDATE facts SET total = total - OLD.size_bytes; END;
CREATE TRIGGER file_resized AFTER UPDATE OF size_bytes ON files
    BEGIN UPDATE facts SET total = total + NEW.size_bytes - OLD.size_bytes; END;
"""

# One statement for a whole batch: sqlite3 gives the interpreter lock away at every step, and would
# have to win it back for every file.
_ADD = """
INSERT INTO files SELECT key, value, ?2, 0 FROM json_each(?1) WHERE true
ON CONFLICT (name) DO UPDATE SET
    size_bytes = max(size_bytes, excluded.size_bytes * (1 + kind)), used_ms = excluded.used_ms
"""
_RESIZE = "UPDATE files SET size_bytes = ?2 WHERE name = ?1"
_ADD_COPY = """
INSERT INTO files VALUES (?1, 2 * ?2, ?3, 1)
ON CONFLICT (name) DO UPDATE SET size_bytes = size_bytes + ?2, kind = 1 WHERE kind = 0
"""
_DROP_COPY = "UPDATE files SET size_bytes = size_bytes / 2, kind = 0 WHERE name = ?1 AND kind = 1"
_ADD_FOUND = """
INSERT OR IGNORE INTO files
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?1)
"""
_REMOVE = "DELETE FROM files WHERE name IN (SELECT value FROM json_each(?1))"
_TOUCH = """
UPDATE files SET used_ms = used.value FROM json_each(?1) AS used
WHERE name = used.key AND used_ms < used.value - ?2
"""
_OLDEST = """
SELECT name, size_bytes, used_ms, kind FROM files
WHERE (used_ms, name) > (?1, ?2) AND used_ms <= ?3 ORDER BY used_ms, name LIMIT ?4
"""
_NAMES = "SELECT name FROM files WHERE name > ?1 ORDER BY name LIMIT ?2"
_PRESENT = "SELECT name FROM files WHERE name IN (SELECT value FROM json_each(?1))"
_NO_FUTURE = "UPDATE files SET used_ms = ?1 WHERE used_ms > ?1"

_DAMAGED = frozenset(
    {
        sqlite3.SQLITE_ERROR,  # a table is missing: it was somebody else's file
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_SCHEMA,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
    }
)
# The file was cut short, or taken away, under an open index.
_DAMAGED_EXACTLY = frozenset(
    {sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_READONLY_DBMOVED, None}
)


class IndexedFile(NamedTuple):
    """One row: a file, and what belongs to it."""

    name: str
    """Relative to the folder."""
    size_bytes: int
    """What it takes on the disk, its executable copy included."""
    used_ms: int
    """When it was last used, in milliseconds since 1970."""
    kind: int
    """1 if there is an executable copy beside it, else 0."""


class Index:
    """The index of the folder at `path`. All methods block and are safe in threads.

    They raise StorageFull or Unavailable. A damaged index is replaced by an empty one, and
    `on_replaced` called, whichever method finds out.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.join(path, "index.sqlite")
        self.lock = threading.RLock()
        """Hold it to make one step of a change here and in memory."""
        self.total_bytes = 0
        """The sum of all sizes."""
        self.on_replaced: Callable[[], None] = lambda: None
        self.generation = 0
        """How many times it was replaced by an empty one since it was opened."""
        try:
            self._connection, self.was_complete = self._open_and_look()
        except sqlite3.DatabaseError as error:
            if not _means_damage(error):
                raise _translated(error, self._path) from error
            _log.warning("damaged index dropped", path=self._path, reason=str(error))
            self._begin_anew()
            self.was_complete = False
        self._write("UPDATE facts SET opened_by = ?1", _boot())

    def _open_and_look(self) -> tuple[sqlite3.Connection, bool]:
        connection = _open(self._path)
        try:
            return connection, self._look(connection)
        except BaseException:
            connection.close()
            raise

    def _look(self, connection: sqlite3.Connection) -> bool:
        """Whether the index can be believed to know every file of the folder."""
        ((opened_by, complete, total),) = connection.execute("SELECT * FROM facts")
        self.total_bytes = int(total)
        # After a mere crash of the process all that it had committed is here; after one of the
        # machine, the last commits may be lost, while the files they told of are not.
        return bool(complete) and opened_by in (_CLEAN, _boot())

    def close(self) -> None:
        """Close it, marked as left in good order."""
        with self.lock:
            with suppress(StokerError):
                self._write("UPDATE facts SET opened_by = ?1", _CLEAN)
            with suppress(sqlite3.DatabaseError):
                self._connection.close()

    def mark_complete(self, *, complete: bool) -> None:
        """Note whether every file of the folder is in the index."""
        self._write("UPDATE facts SET complete = ?1", complete)

    def add(self, sizes: Mapping[str, int]) -> int:
        """Note files as used now. Returns the change of the total.

        One that is known with a larger size keeps that: until the new file has replaced it, the
        old one is there. `resize` says otherwise.
        """
        return self._change(_ADD, json.dumps(sizes), now_ms())

    def resize(self, name: str, size_bytes: int) -> int:
        """Correct a size. Returns the change of the total."""
        return self._change(_RESIZE, name, size_bytes)

    def add_copy(self, name: str, size_bytes: int) -> int:
        """Note that a file has an executable copy. Returns the change of the total."""
        return self._change(_ADD_COPY, name, size_bytes, now_ms())

    def drop_copy(self, name: str) -> int:
        """Note that the executable copy of a file is gone. Returns the change of the total."""
        return self._change(_DROP_COPY, name)

    def add_found(self, files: Sequence[IndexedFile]) -> int:
        """Note files that were found, but for those known already. Returns the total's change."""
        return self._change(_ADD_FOUND, json.dumps(files))

    def remove(self, names: Collection[str]) -> int:
        """Forget files, known or not. Returns the change of the total."""
        return self._change(_REMOVE, json.dumps([*names]))

    def touch(self, used_ms: Mapping[str, int], grain_ms: int) -> None:
        """Note when files were used, unless that is at most `grain_ms` later than is known."""
        self._write(_TOUCH, json.dumps(used_ms), grain_ms)

    def oldest(self, after: tuple[int, str], until_ms: int, limit: int) -> list[IndexedFile]:
        """Files last used at or before `until_ms`, the longest unused first, behind `after`."""
        return [IndexedFile(*row) for row in self._read(_OLDEST, *after, until_ms, limit)]

    def names(self, after: str, limit: int) -> list[str]:
        """Names in order, behind `after`."""
        return [name for (name,) in self._read(_NAMES, after, limit)]

    def all_names(self) -> Iterator[str]:
        """Names in order, some at a time: those that come meanwhile may be among them or not."""
        after = ""
        while names := self.names(after, _NAMES_AT_ONCE):
            yield from names
            after = names[-1]

    def count(self) -> int:
        """How many files it knows."""
        ((count,),) = self._read("SELECT count(*) FROM files")
        return int(count)

    def present(self, names: Collection[str]) -> list[str]:
        """Those of `names` that the index knows."""
        return [name for (name,) in self._read(_PRESENT, json.dumps([*names]))]

    def correct_future(self) -> None:
        """Call files that seem used in the future, after the clock was set back, used now."""
        self._write(_NO_FUTURE, now_ms())

    def checkpoint(self) -> None:
        """Move what was committed from the log to the table, if it is much.

        On a connection of its own, so that no writer waits for the disk meanwhile, unless the
        log has become very long.
        """
        log = f"{self._path}-wal"
        try:
            if os.stat(log).st_size < _CHECKPOINT_BYTES:
                return
            with closing(_connect(self._path)) as connection:
                _move_log(connection)
                if os.stat(log).st_size >= _LONGEST_LOG_BYTES:
                    with self.lock:
                        _move_log(connection)
        except (OSError, sqlite3.DatabaseError) as error:
            # The next writer meets the same trouble and tells it to somebody.
            _log.warning("index not checkpointed", path=self._path, reason=str(error))

    def _change(self, sql: str, *arguments: object) -> int:
        with self.lock:
            before, generation = self.total_bytes, self.generation
            self._write(sql, *arguments)
            ((self.total_bytes,),) = self._read("SELECT total FROM facts")
            return self.total_bytes - (before if generation == self.generation else 0)

    def _write(self, sql: str, *arguments: object) -> None:
        self._read(sql, *arguments)

    def _read(self, sql: str, *arguments: object) -> list[Any]:
        with self.lock:
            try:
                return self._execute(sql, arguments)
            except sqlite3.DatabaseError as error:
                self._replace(error)
            try:
                return self._execute(sql, arguments)
            except sqlite3.DatabaseError as error:
                raise _translated(error, self._path) from error

    def _execute(self, sql: str, arguments: Sequence[object]) -> list[Any]:
        try:
            return self._connection.execute(sql, arguments).fetchall()
        except sqlite3.DatabaseError as error:
            if _means_damage(error):
                raise
            raise _translated(error, self._path) from error

    def _replace(self, error: sqlite3.DatabaseError) -> None:
        _log.warning("damaged index replaced", path=self._path, reason=str(error))
        with suppress(sqlite3.DatabaseError):
            self._connection.close()
        self._begin_anew()
        self.generation += 1
        self.on_replaced()

    def _begin_anew(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            # The disk that has damaged it may have become read-only by that.
            with storage_errors(self._path + suffix), suppress(FileNotFoundError):
                os.unlink(self._path + suffix)
        self.total_bytes = 0
        try:
            self._connection = _open(self._path)
            self._connection.execute("UPDATE facts SET opened_by = ?1", [_boot()])
        except sqlite3.DatabaseError as error:
            raise _translated(error, self._path) from error


def now_ms() -> int:
    """The time of the index: milliseconds since 1970, which means the same after a restart."""
    return time.time_ns() // 1_000_000


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        # The first statement is what finds out that a file is no database.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _move_log(connection: sqlite3.Connection) -> None:
    """Move what is in the log to the table. When that is all of it, the next write begins anew."""
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _open(path: str) -> sqlite3.Connection:
    is_new = not os.path.exists(path)
    connection = _connect(path)
    try:
        _prepare(connection, is_new=is_new)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, *, is_new: bool) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    # See `checkpoint`.
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {_KEPT_LOG_BYTES}")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    if is_new:
        marks = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_FORMAT}"
        connection.executescript(f"BEGIN; {_SCHEMA}; {marks}; COMMIT")
    found = [
        connection.execute(f"PRAGMA {mark}").fetchone()[0]
        for mark in ("application_id", "user_version")
    ]
    if found != [_APPLICATION, _FORMAT]:
        raise sqlite3.DatabaseError("it is not an index of this version")


def _means_damage(error: sqlite3.DatabaseError) -> bool:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code in _DAMAGED_EXACTLY or (code is not None and code & 0xFF in _DAMAGED)


def _translated(error: sqlite3.DatabaseError, path: str) -> StokerError:
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StorageFull(f"no room to write {path}: {error}")
    return Unavailable(f"{path}: {error}")


def _boot() -> str:
    """What tells one run of this machine from the next; nothing that two could share."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown boot"
