"""What outlives a server: operations in the journal. # SCH-07, OPS-13"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from stoker import errors
from stoker.action import Inlined, LoadedAction, Outcome
from stoker.database import Change, open_database
from stoker.digest import BLAKE3, SHA256
from stoker.errors import StokerError, Unavailable
from stoker.frontend.status import to_status
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler import journal as journal_module
from stoker.scheduler import journal_rows as rows
from stoker.scheduler.journal import FILE, Journal, open_journal
from stoker.scheduler.journal_rows import (
    ADD_LOSS,
    SCHEMA,
    VERSION,
    Kept,
    Request,
    decode_outcome,
    encode_outcome,
)
from stoker.scheduler.losses import key_of
from stoker.scheduler.operation import Operation
from stoker.scheduler.queue import Stage
from stoker.scheduler.records import Records
from stoker.scheduler.settings import SchedulerSettings

SETTINGS = SchedulerSettings(journal_batch_seconds=0.0)
BY_HAND = SchedulerSettings(journal_batch_seconds=1.0)


def make_action(name: str) -> LoadedAction:
    return LoadedAction(
        namespace="team/a",
        digest=BLAKE3.digest(name.encode()),
        action=reapi.Action(),
        command=reapi.Command(arguments=["true"]),
        input_root=SHA256.empty,
        platform={},
        timeout_seconds=None,
        principal="somebody",
        metadata=reapi.RequestMetadata(action_mnemonic="Javac", target_id=f"//{name}"),
        mnemonic="Javac",
        target=f"//{name}",
    )


def accept(journal: Journal, records: Records, name: str, priority: int = 3) -> Operation:
    action = make_action(name)
    operation = records.add(action, Inlined(stdout=True, files=frozenset({"b", "a"})))
    operation.queued_nanoseconds = time.time_ns()
    journal.accepted(operation, Request(priority, skip_cache_lookup=True, metadata=action.metadata))
    return operation


def end(journal: Journal, operation: Operation, text: str = "done") -> None:
    operation.stage = Stage.COMPLETED
    operation.run = reapi.ExecutedActionMetadata(worker="one")
    operation.outcome = Outcome(result=reapi.ActionResult(stdout_raw=text.encode()), message=text)
    journal.ended(operation)


def make_records() -> Records:
    return Records(retention_seconds=900, max_retained_bytes=2**30)


def facts(operation: Operation) -> tuple[object, ...]:
    """All that clients can be told of it."""
    return (
        operation.name,
        operation.number,
        operation.namespace,
        operation.principal,
        operation.action_digest,
        operation.mnemonic,
        operation.target,
        operation.inlined,
        operation.stage,
        operation.outcome,
        operation.metadata,
    )


async def left_in(folder: Path) -> list[Kept]:
    async with open_journal(folder, SETTINGS) as (_, kept):
        return kept


async def test_an_operation_is_the_same_to_the_next_server(tmp_path: Path) -> None:
    records = make_records()
    async with open_journal(tmp_path, SETTINGS) as (journal, kept):
        assert kept == []
        ended, waits = accept(journal, records, "a"), accept(journal, records, "b", priority=-4)
        await journal.wait_recorded(ended)
        end(journal, ended)
    first, second = await left_in(tmp_path)
    assert facts(first.operation) == facts(ended)
    assert facts(second.operation) == facts(waits)
    assert (first.ended_nanoseconds > 0, second.ended_nanoseconds) == (True, 0)
    assert second.request.priority == -4
    assert second.request.skip_cache_lookup
    assert second.request.metadata == make_action("b").metadata


async def test_what_was_recorded_needs_no_orderly_end(tmp_path: Path) -> None:
    async with open_journal(tmp_path, SETTINGS) as (journal, _):
        operation = accept(journal, make_records(), "a")
        await journal.wait_recorded(operation)
        # As the next server would find it, had this one been killed now.
        async with trio.open_nursery() as nursery:
            copy = tmp_path / "copy"
            copy.mkdir()
            for file in tmp_path.glob("*.sqlite*"):
                (copy / file.name).write_bytes(file.read_bytes())
            nursery.cancel_scope.cancel()
    (kept,) = await left_in(copy)
    assert facts(kept.operation) == facts(operation)


async def test_what_happens_during_the_last_write_is_written_too(tmp_path: Path) -> None:
    records, threads = make_records(), trio.to_thread.current_default_thread_limiter()
    async with trio.open_nursery() as nursery, open_journal(tmp_path, SETTINGS) as (journal, _):
        before = accept(journal, records, "before")
        await journal.wait_recorded(before)
        accept(journal, records, "last")
        total, threads.total_tokens = threads.total_tokens, 1
        await threads.acquire_on_behalf_of(journal)

        async def go_on() -> None:
            await trio.testing.wait_all_tasks_blocked()  # the last batch is on its way
            end(journal, before)
            threads.release_on_behalf_of(journal)
            threads.total_tokens = total

        nursery.start_soon(go_on)
    first, _ = await left_in(tmp_path)
    assert first.operation.outcome == before.outcome


async def test_what_is_forgotten_stays_so(tmp_path: Path) -> None:
    records = make_records()
    async with open_journal(tmp_path, SETTINGS) as (journal, _):
        recorded, new = accept(journal, records, "a"), accept(journal, records, "b")
        await journal.wait_recorded(recorded)
        later = accept(journal, records, "c")
        for operation in (recorded, new, later):
            journal.forgotten(operation.name)
    assert await left_in(tmp_path) == []


async def test_losses_outlive_the_server_until_the_action_ends(tmp_path: Path) -> None:  # SCH-10
    one, two = make_action("one"), make_action("two")
    async with open_journal(tmp_path, SETTINGS) as (journal, _):
        for action in (one, two):
            for began in range(3):
                journal.lost(action, "a", time.time_ns() + began)
    async with open_journal(tmp_path, SETTINGS) as (journal, _):
        with pytest.raises(errors.Quarantined, match="on a, lost after"):
            journal.losses.check(one)
        journal.survived(one)
    async with open_journal(tmp_path, SETTINGS) as (journal, _):
        journal.losses.check(one)
        with pytest.raises(errors.Quarantined):
            journal.losses.check(two)


async def test_what_was_in_hand_when_the_server_was_killed_counts(tmp_path: Path) -> None:
    action = make_action("one")
    bounds = SchedulerSettings(max_server_losses=2)
    for _ in range(2):
        async with open_journal(tmp_path, bounds) as (journal, _):
            journal.losses.check(action)
            with journal.in_hand(action, "a"):
                killed = (tmp_path / "in-hand").read_bytes()
        (tmp_path / "in-hand").write_bytes(killed)
    async with open_journal(tmp_path, bounds) as (journal, _):
        with pytest.raises(errors.Quarantined, match="on a, the server was killed"):
            journal.losses.check(action)


async def test_a_kill_counts_once(tmp_path: Path) -> None:
    action = make_action("one")
    bounds = SchedulerSettings(max_server_losses=1)
    async with open_journal(tmp_path, bounds) as (journal, _):
        with journal.in_hand(action, "a"):
            killed = (tmp_path / "in-hand").read_bytes()
    (tmp_path / "in-hand").write_bytes(killed)
    async with open_journal(tmp_path, bounds) as (journal, _):
        with pytest.raises(errors.Quarantined):
            journal.losses.check(action)
        journal.survived(action)
    async with open_journal(tmp_path, bounds) as (journal, _):
        journal.losses.check(action)


# --- any prefix of batches

Steps = st.lists(st.tuples(st.sampled_from("aaaeeffb"), st.integers(0, 30)), max_size=40)


@given(steps=Steps)
@settings(max_examples=40, deadline=None)
def test_any_prefix_of_batches_is_a_state_that_was(steps: list[tuple[str, int]]) -> None:
    with TemporaryDirectory() as folder:
        trio.run(_try_prefixes, Path(folder), steps)


async def _try_prefixes(folder: Path, steps: list[tuple[str, int]]) -> None:
    records = make_records()
    model: dict[str, Operation] = {}
    batches: list[tuple[list[Change], list[tuple[object, ...]]]] = []
    async with open_journal(folder / "one", BY_HAND) as (journal, _):
        for kind, number in [*steps, ("b", 0)]:
            chosen = [*model.values()][number % len(model)] if model else None
            if kind == "a":
                operation = accept(journal, records, str(number))
                model[operation.name] = operation
            elif kind == "e" and chosen and chosen.outcome is None:
                end(journal, chosen, str(number))
            elif kind == "f" and chosen:
                del model[chosen.name]
                journal.forgotten(chosen.name)
            elif kind == "b":
                batches.append((journal.take_batch(), [facts(op) for op in model.values()]))
    other = folder / "other"
    for changes, expected in batches:
        async with open_database(other / FILE, schema=SCHEMA, version=VERSION) as database:
            await database.change(changes)
        assert [facts(kept.operation) for kept in await left_in(other)] == expected


# --- trouble


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def recovered(journal: Journal, records: Records) -> Operation:
    """An operation that was recorded after all trouble."""
    with trio.fail_after(20):
        while journal.in_trouble:
            await trio.sleep(0.01)
    operation = accept(journal, records, "after")
    await journal.wait_recorded(operation)
    assert not journal.in_trouble
    return operation


async def test_a_full_disk_stops_nothing_and_all_is_written_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.01)
    # Logs go to a file, too.
    with capture_logs() as logs:
        await _fill_the_disk(tmp_path)
    assert [log["log_level"] for log in logs if log["log_level"] != "debug"] == ["error", "info"]


async def _fill_the_disk(tmp_path: Path) -> None:
    records = make_records()
    async with open_journal(tmp_path, SETTINGS) as (journal, _):
        before = accept(journal, records, "before")
        gone = accept(journal, records, "gone")
        await journal.wait_recorded(before)
        with full_disk():
            during = accept(journal, records, "during")
            await journal.wait_recorded(during)
            assert journal.in_trouble
            end(journal, before)
            journal.forgotten(gone.name)
            later = accept(journal, records, "later")
            await journal.wait_recorded(later)
        after = await recovered(journal, records)
    kept = [facts(each.operation) for each in await left_in(tmp_path)]
    assert kept == [facts(op) for op in (before, during, later, after)]


async def test_a_file_that_is_taken_away_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.01)
    records = make_records()
    async with open_journal(tmp_path, SETTINGS) as (journal, _):
        before = accept(journal, records, "before")
        await journal.wait_recorded(before)
        for file in tmp_path.glob("*.sqlite*"):
            file.unlink()
        during = accept(journal, records, "during")
        await journal.wait_recorded(during)
        after = await recovered(journal, records)
    kept = [each.operation.name for each in await left_in(tmp_path)]
    assert kept == [before.name, during.name, after.name]


async def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database " * 1000)
    assert await left_in(tmp_path) == []
    assert (tmp_path / f"{FILE}.damaged").exists()


async def test_a_damaged_row_costs_itself_only(tmp_path: Path) -> None:
    records = make_records()
    async with open_journal(tmp_path, SETTINGS) as (journal, _):
        accept(journal, records, "a")
        accept(journal, records, "b")
        sound = accept(journal, records, "c")
    spoilt = "UPDATE operations SET function = {} WHERE number = (SELECT min(number) {})"
    later = "FROM operations WHERE function != 'crc'"
    async with open_database(tmp_path / FILE, schema=SCHEMA, version=VERSION) as database:
        await database.change(
            [
                Change(spoilt.format("'crc'", "FROM operations"), [()]),
                Change(spoilt.format("CAST(x'ff41' AS TEXT)", later), [()]),
                Change(ADD_LOSS, [(b"key", "when?", 2**62, "local", 1)]),
            ]
        )
        await database.change(
            [
                Change(
                    rows.ADD_LOSS, [(b"sound", 1, time.time_ns(), "a", 0), (b"bad", 1, "x", "a", 0)]
                )
            ]
        )
    assert [each.operation.name for each in await left_in(tmp_path)] == [sound.name]
    # Nor is it met again by each server after this one.
    async with open_database(tmp_path / FILE, schema=SCHEMA, version=VERSION) as database:
        assert [row[0] for row in await database.read(rows.READ)] == [sound.number]
        assert [row[0] for row in await database.read(rows.READ_LOSSES)] == [b"sound"]


async def test_what_cannot_be_opened_is_told_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "in-hand").mkdir()
    with pytest.RaisesGroup(pytest.RaisesExc(Unavailable, match="in-hand")):
        await left_in(tmp_path)


async def test_nobody_else_on_the_machine_reads_the_names(tmp_path: Path) -> None:  # OPS-02
    async with open_journal(tmp_path / "new", SETTINGS) as (journal, _):
        await journal.wait_recorded(accept(journal, make_records(), "a"))
        modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "new").iterdir()}
    assert len(modes) == 3
    assert set(modes.values()) == {0o600}


async def test_losses_are_forgotten_in_time(tmp_path: Path) -> None:  # SCH-10
    settings = SchedulerSettings(quarantine_seconds=1e300)
    async with open_journal(tmp_path, settings) as (journal, _):
        journal.lost(make_action("old"), "one", time.time_ns())
        assert len([*journal.losses]) == 1
    settings = SchedulerSettings(quarantine_seconds=0.0)
    async with open_journal(tmp_path, settings) as (journal, _):
        for name in ("a", "b", "c", "c"):
            journal.lost(make_action(name), "one", time.time_ns())
        # Those of an action that is lost again count, however long ago they were.
        assert [key for key, _ in journal.losses] == [key_of(make_action("c"))] * 2
    async with open_database(tmp_path / FILE, schema=SCHEMA, version=VERSION) as database:
        found = await database.read(rows.READ_LOSSES)
    assert [row[0] for row in found] == [key_of(make_action("c"))] * 2


async def test_two_servers_cannot_have_the_same_journal(tmp_path: Path) -> None:
    async with open_journal(tmp_path, SETTINGS):
        with pytest.RaisesGroup(pytest.RaisesExc(Unavailable, match="in use by another process")):
            await left_in(tmp_path)


# --- outcomes


class OfPlugin(errors.TimedOut):
    """As a plugin may have."""


def noted(error: StokerError, note: str) -> StokerError:
    error.add_note(note)
    return error


@pytest.mark.parametrize(
    "error",
    [
        None,
        errors.InternalError("a bug"),
        errors.InputsMissing([BLAKE3.digest(b"a"), BLAKE3.digest(b"b")]),
        errors.InputsMissing([]),
        errors.Overloaded("too much", 2.5),
        errors.ProgramNotStarted("/bin/x", "is not there", exit_code=127),
        OfPlugin(3.0, "one"),
        noted(errors.InvalidRequest("wrong"), "instance 'a'"),
        errors.Quarantined("a/1", "noon", ["once", "twice"]),
    ],
)
def test_an_outcome_tells_clients_the_same_after_a_restart(error: StokerError | None) -> None:
    outcome = Outcome(
        result=reapi.ActionResult(exit_code=3, stdout_raw=b"x") if error is None else None,
        error=error,
        cached=error is None,
        message="for a person",
        server_logs={"log": reapi.LogFile(human_readable=True)},
    )
    again = decode_outcome(encode_outcome(outcome))
    assert (again.result, again.cached, again.message) == (
        outcome.result,
        outcome.cached,
        outcome.message,
    )
    assert again.server_logs == outcome.server_logs
    assert to_status(again.error) == to_status(outcome.error)
    assert str(again.error) == str(outcome.error)
