"""A worker's log: rotated while its process writes to it, and told in errors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from stoker.workers.failure import FaultKind, WorkerFailed
from stoker.workers.log import LOG_TAIL_BYTES, WorkerLog, earlier_log, remove_log

from .alone import open_worker, request

MAX_BYTES = 10_000


@pytest.fixture
def log(tmp_path: Path) -> WorkerLog:
    """A log of at most `MAX_BYTES`."""
    return WorkerLog(tmp_path / "log", MAX_BYTES)


@pytest.fixture
def stderr(log: WorkerLog) -> Iterator[int]:
    """The same as its process has it."""
    descriptor = os.open(log.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def test_a_rotation_keeps_the_end_and_empties_the_file(log: WorkerLog, stderr: int) -> None:
    written = b"%06d" * MAX_BYTES % tuple(range(MAX_BYTES))
    os.write(stderr, written)
    log.rotate()
    assert log.path.read_bytes() == b""
    assert log.earlier.read_bytes() == written[-MAX_BYTES:]
    assert log.earlier.stat().st_mode & 0o777 == 0o600
    os.write(stderr, b"more")
    assert log.path.read_bytes() == b"more"
    log.rotate()
    assert log.earlier.read_bytes() == b"more"


def test_its_tail_spans_a_rotation(log: WorkerLog, stderr: int) -> None:
    assert log.read_tail() == ""
    os.write(stderr, b"forgotten\n" + b"x" * LOG_TAIL_BYTES + b"kept\n")
    log.rotate()
    os.write(stderr, b"last words\xff\n")
    assert log.read_tail().endswith("xkept\nlast words\ufffd")
    assert len(log.read_tail()) == LOG_TAIL_BYTES - 1
    os.write(stderr, b"y" * LOG_TAIL_BYTES)
    assert log.read_tail() == "y" * LOG_TAIL_BYTES


def test_what_the_worker_puts_in_its_place_is_not_followed(log: WorkerLog, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("of somebody else")
    log.path.symlink_to(other)
    with pytest.raises(OSError, match="symbolic"):
        log.rotate()
    log.path.unlink()
    log.rotate()  # it is gone, which is as good as empty
    log.path.write_text("mine")
    log.earlier.symlink_to(other)
    log.rotate()
    assert log.earlier.read_text() == "mine"
    assert other.read_text() == "of somebody else"


def test_a_rotation_that_can_keep_nothing_still_empties_it(log: WorkerLog) -> None:
    log.path.write_text("as on a disk that is full")
    log.earlier.mkdir()
    log.rotate()
    assert log.path.read_bytes() == b""


async def test_a_flood_is_kept_within_bounds_and_ends_nobody(tmp_path: Path) -> None:
    max_bytes = 1_000_000
    async with open_worker(tmp_path, max_log_bytes=max_bytes) as worker:
        answer = (await worker.perform(request("flood-until-emptied", "3"))).response
        report = json.loads(answer.output)
        # The end of it lies within the bounds as well, once that was looked at.
        while worker.log.stat().st_size > max_bytes:
            await trio.lowlevel.checkpoint()
        assert earlier_log(worker.log).stat().st_size <= max_bytes
        assert report["emptied"] == 3
        with pytest.raises(WorkerFailed) as caught:
            await worker.perform(request("die", "1"))
        assert caught.value.log_tail.endswith("xthe enddying words")
    remove_log(worker.log)
    remove_log(worker.log)
    assert not worker.log.exists()
    assert not earlier_log(worker.log).exists()


@pytest.mark.slow
async def test_a_flood_of_hundreds_of_megabytes_fills_no_disk(tmp_path: Path) -> None:
    async with open_worker(tmp_path, max_log_bytes=16 * 2**20) as worker:
        answer = (await worker.perform(request("flood-until-emptied", "20"))).response
        report = json.loads(answer.output)
        assert report["written"] > 300_000_000
        assert report["largest"] < report["written"] / 2


async def test_a_log_that_cannot_be_emptied_ends_its_worker(tmp_path: Path) -> None:
    async with open_worker(tmp_path, max_log_bytes=1) as worker:
        await worker.start()
        worker.log.unlink()
        worker.log.mkdir()
        with pytest.raises(WorkerFailed, match="has a log that cannot be rotated") as caught:
            await worker.perform(request("hang"))
        assert caught.value.kind is FaultKind.LOG
