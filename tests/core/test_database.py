"""The server's own SQLite files."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from stoker.database import Change, Database, open_database
from stoker.errors import Unavailable

SCHEMA = ["CREATE TABLE words (word TEXT PRIMARY KEY, number INTEGER)"]
ADD = "INSERT INTO words VALUES (?, ?)"


async def words(database: Database) -> list[object]:
    return [word for (word,) in await database.read("SELECT word FROM words ORDER BY word")]


async def test_what_was_changed_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "words.sqlite"
    async with open_database(path, schema=SCHEMA, version=1) as database:
        await database.change([Change(ADD, [("a", 1), ("b", 2)]), Change(ADD, [("c", 3)])])
    async with open_database(path, schema=SCHEMA, version=1) as database:
        assert await words(database) == ["a", "b", "c"]
        assert await database.read("SELECT word FROM words WHERE number = ?", 2) == [("b",)]


async def test_changes_are_made_together_or_not_at_all(tmp_path: Path) -> None:
    async with open_database(tmp_path / "w", schema=SCHEMA, version=1) as database:
        with pytest.raises(Unavailable, match="UNIQUE"):
            await database.change([Change(ADD, [("a", 1)]), Change(ADD, [("b", 2), ("a", 3)])])
        assert await words(database) == []
        await database.change([Change(ADD, [("a", 1)])])
        assert await words(database) == ["a"]


async def test_what_was_changed_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, signal, trio
from pathlib import Path
from stoker.database import Change, open_database

async def main():
    async with open_database(Path("w"), schema={SCHEMA!r}, version=1) as database:
        await database.change([Change({ADD!r}, [("kept", 1)])])
        os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert killed.returncode == -9
    async with open_database(tmp_path / "w", schema=SCHEMA, version=1) as database:
        assert await words(database) == ["kept"]


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"no database at all" * 100, "damaged"), (None, "version-1")],
    ids=["garbage", "another version"],
)
async def test_a_file_that_cannot_be_used_is_set_aside(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "w"
    if content is None:
        async with open_database(path, schema=SCHEMA, version=1) as database:
            await database.change([Change(ADD, [("a", 1)])])
    else:
        path.write_bytes(content)
    async with open_database(path, schema=SCHEMA, version=2) as database:
        assert await words(database) == []
        await database.change([Change(ADD, [("new", 1)])])
    assert (tmp_path / f"w.{why}").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        "DROP TABLE words",
        "DROP TABLE words; CREATE TABLE words (word TEXT PRIMARY KEY)",
        "PRAGMA user_version = 0; ALTER TABLE words DROP COLUMN number",
        "CREATE TRIGGER no BEFORE INSERT ON words BEGIN SELECT raise(ABORT, 'no'); END",
        "PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = CAST(x'fd' || sql AS TEXT)",
    ],
)
async def test_a_file_with_other_tables_is_set_aside(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "w"
    async with open_database(path, schema=SCHEMA, version=1):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(spoil)
    async with open_database(path, schema=SCHEMA, version=1) as database:
        await database.change([Change(ADD, [("new", 1)])])
    assert (tmp_path / "w.damaged").exists()


async def test_a_second_server_on_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w"
    async with open_database(path, schema=SCHEMA, version=1):
        with pytest.raises(Unavailable, match="another process: give each server"):
            async with open_database(path, schema=SCHEMA, version=1):
                pytest.fail("opened twice")


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot be used"):
        async with open_database(tmp_path / "file" / "w", schema=SCHEMA, version=1):
            pytest.fail("opened")
