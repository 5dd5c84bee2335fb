"""The records of runs: bounds, restarts, and disks that fail."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import pytest
import structlog
import trio

from stoker.action import (
    CacheAnswer,
    CacheVerdict,
    LoadedAction,
    Outcome,
    RunRecord,
    Sharer,
    load_action,
)
from stoker.digest import SHA256
from stoker.errors import TimedOut, Unavailable
from stoker.history import records
from stoker.history.kept_run import KeptRun
from stoker.history.records import History, open_history
from stoker.history.settings import HistorySettings
from stoker.protos import remote_execution_pb2 as reapi


def opened(folder: Path, **settings: object) -> AbstractAsyncContextManager[History]:
    return open_history(folder / "history.sqlite", HistorySettings(**settings))  # type: ignore[arg-type] # by name


def action(name: str, instance: str = "", mnemonic: str = "Javac") -> LoadedAction:
    command = reapi.Command(arguments=[name], output_paths=["out"])
    message = reapi.Action(
        command_digest=SHA256.digest(command.SerializeToString()).to_proto(),
        input_root_digest=SHA256.empty.to_proto(),
    )
    metadata = reapi.RequestMetadata(action_mnemonic=mnemonic, target_id="//a")
    digest = SHA256.digest(message.SerializeToString())
    return load_action(digest, message, command, namespace=instance, metadata=metadata)


def ended(name: str, ended_ns: int = 2**62, instance: str = "") -> RunRecord:
    return RunRecord(
        action(name, instance),
        Outcome(result=reapi.ActionResult(exit_code=7), error=TimedOut(5, "local"), message="m"),
        (Sharer(f"operations/{name}", "me"), Sharer(f"operations/{name}2", "you")),
        CacheAnswer(CacheVerdict.INCOMPLETE, "all of it"),
        "no slot is free",
        ("local", "other"),
        1_000,
        ended_ns,
    )


async def kept(history: History, *names: str) -> list[str]:
    """Those of `names` whose runs are there."""
    return [n for n in names if await history.find_action("", action(n).digest.hash)]


async def test_what_was_noted_is_found_by_every_name(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        history.note(ended("a"))
        history.note(ended("a", instance="other"))
        hash_ = action("a").digest.hash
        [run] = await history.find_action("", hash_[:8])
        assert run == await history.find_operation("", "operations/a2", "you")
        assert await history.find_operation("", "operations/a2", "me") is None
        assert await history.hashes("", hash_[:10]) == [hash_]
        assert await history.operations(run, "me") == ["operations/a"]
    facts = run.facts
    assert (run.mnemonic, run.target, run.output, run.program) == ("Javac", "//a", "out", "a")
    assert (facts.cache, facts.cache_detail) == ("incomplete", "all of it")
    assert (facts.wait, facts.executors, facts.queued_ns) == (
        "no slot is free",
        ("local", "other"),
        1_000,
    )
    assert (facts.exit_code, facts.error, facts.message) == (7, "TimedOut", "m")
    assert not run.was_cached()


async def test_others_on_the_machine_cannot_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.sqlite"
    async with open_history(path, HistorySettings()):
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


async def test_a_folder_that_cannot_be_made_costs_the_records_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with open_history(tmp_path / "file" / "history.sqlite", HistorySettings()) as history:
        assert not history.is_kept


async def test_what_was_noted_last_is_written_when_it_closes(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        history.note(ended("a"))
    async with opened(tmp_path) as history:
        assert await kept(history, "a") == ["a"]
        history.note(ended("b"))
        runs = [*await history.find_action("", action("a").digest.hash)]
        [later] = await history.find_action("", action("b").digest.hash)
        assert later.number > runs[0].number


async def test_it_is_written_without_being_asked(tmp_path: Path, autojump_clock: object) -> None:
    async with opened(tmp_path) as history:
        history.note(ended("a"))
        while history.waiting:
            await trio.sleep(0.1)
        assert await kept(history, "a") == ["a"]


async def test_the_oldest_go_beyond_the_count(tmp_path: Path) -> None:
    names = [f"{n}" for n in range(10)]
    async with opened(tmp_path, max_runs=3) as history:
        for name in names[:6]:
            history.note(ended(name))
        await history.write()
        for name in names[6:]:
            history.note(ended(name))
        assert await kept(history, *names) == names[-3:]
        assert await history.find_operation("", "operations/6", "me") is None


async def test_old_ones_go(tmp_path: Path) -> None:
    async with opened(tmp_path, max_age_days=1.0) as history:
        history.note(ended("old", ended_ns=1))
        history.note(ended("new"))
        assert await kept(history, "old", "new") == ["new"]


async def test_they_may_be_kept_for_good(tmp_path: Path) -> None:
    async with opened(tmp_path, max_age_days=1e300) as history:
        history.note(ended("old", ended_ns=1))
        assert await kept(history, "old") == ["old"]


async def test_a_disk_that_does_not_follow_costs_records_and_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_WAITING", 3)
    async with opened(tmp_path) as history:
        for name in "abcde":
            history.note(ended(name))
        assert await kept(history, *"abcde") == ["c", "d", "e"]


async def test_damage_is_set_aside_and_serving_goes_on(tmp_path: Path) -> None:
    (tmp_path / "history.sqlite").write_bytes(b"no database" * 1000)
    async with opened(tmp_path) as history:
        history.note(ended("a"))
        assert await kept(history, "a") == ["a"]
    assert (tmp_path / "history.sqlite.damaged").exists()


async def test_a_file_that_another_server_has_costs_the_records_only(tmp_path: Path) -> None:
    async with opened(tmp_path):
        script = (
            "import sys, trio\n"
            "from pathlib import Path\n"
            "from stoker.history.records import open_history\n"
            "from stoker.history.settings import HistorySettings\n"
            "async def main():\n"
            "    async with open_history(Path(sys.argv[1]), HistorySettings()) as history:\n"
            "        print(history.is_kept)\n"
            "trio.run(main)\n"
        )
        words = [sys.executable, "-c", script, str(tmp_path / "history.sqlite")]
        done = await trio.run_process(words, capture_stdout=True, stderr=subprocess.STDOUT)
    assert b"in use by another process" in done.stdout
    assert done.stdout.endswith(b"False\n")


async def test_a_disk_that_is_full_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as history:
        history.note(ended("a"))
        await history.write()
        # As large as it may get: SQLite says the same as for a full disk.
        assert history._database is not None
        await history._database.read("PRAGMA max_page_count = 1")
        with structlog.testing.capture_logs() as logs:
            for number in range(300):
                history.note(ended(f"{number}" * 300))
                if number % 100 == 99:
                    await history.write()
        assert [line["event"] for line in logs] == ["runs are not recorded"]
        assert "full" in logs[0]["reason"]
        assert await kept(history, "a") == ["a"]


async def test_without_records_questions_are_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, enabled=False) as history:
        assert not history.is_kept
        with pytest.raises(Unavailable, match="enabled is false"):
            await history.find_action("", "abc")
    assert not list(tmp_path.iterdir())


async def test_earlier_runs_are_one_of_each_action_newest_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        for name in ("a", "b", "a", "c", "d"):
            history.note(ended(name))
        [run] = await history.find_action("", action("c").digest.hash)
        found = await history.earlier(run, ("target", "mnemonic"), 5)
        assert [earlier.program for earlier in found] == ["a", "b"]
        assert [earlier.program for earlier in await history.earlier(run, ("target",), 1)] == ["a"]
        assert await history.earlier(run, ("program",), 5) == []


@pytest.mark.parametrize(
    "spoilt",
    [
        "facts = x'00'",
        "facts = '{}'",
        """facts = CAST('{"exit_code": 99999999999}' AS BLOB)""",
        "metadata = x'ffff'",
        "digest_function = 77",
        "hash = hash || 'x'",
        "size_bytes = 'many'",
        "mnemonic = 3.5, ended_ns = x'41'",
    ],
)
async def test_a_damaged_record_costs_itself_only(tmp_path: Path, spoilt: str) -> None:
    async with opened(tmp_path) as history:
        history.note(ended("damaged"))
        history.note(ended("sound"))
    with closing(sqlite3.connect(tmp_path / "history.sqlite")) as database:
        database.execute(f"UPDATE runs SET {spoilt} WHERE id = 1")
        database.commit()
    async with opened(tmp_path) as history:
        assert await history.find_action("", "", 10) == [await newest(history, "sound")]
        assert await history.find_operation("", "operations/damaged", "me") is None


async def newest(history: History, name: str) -> KeptRun:
    [run] = await history.find_action("", action(name).digest.hash, 1)
    return run


@pytest.mark.parametrize("moments", range(8))
async def test_who_asks_and_goes_takes_no_records_along(tmp_path: Path, moments: int) -> None:
    async with opened(tmp_path) as history:
        names = [f"{n}" for n in range(5)]
        for name in names:
            history.note(ended(name))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(history.hashes, "", "0")
            for _ in range(moments):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert await kept(history, *names) == names


async def test_where_the_file_lies_is_for_the_log_to_say(tmp_path: Path) -> None:  # SEC-06
    async with opened(tmp_path) as history:
        # More than it has in memory.
        names = [f"{n}" * 5000 for n in range(100, 700)]
        for name in names:
            history.note(ended(name))
        await history.write()
        for file in tmp_path.glob("history.sqlite*"):
            file.write_bytes(b"no database")
        with pytest.raises(Unavailable) as caught:
            await kept(history, *names)
    assert str(tmp_path) not in str(caught.value)
