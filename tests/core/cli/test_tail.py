"""Output as it comes: `stoker run` and `stoker tail` as programs, on a whole server (OPS-16)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from stoker.errors import LogStreamNotFound
from stoker.log_streams.streams import LogStreams
from stoker.scheduler.queue import Stage
from stoker.testing.server import EXECUTING, ServerUnderTest, open_test_server

STEPWISE = """exec 3<"$0"
while read word <&3 && [ "$word" != end ]; do echo "$word"; echo "${word}!" >&2; done"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerUnderTest]:
    async with open_test_server(EXECUTING, tmp_path / "server") as server:
        yield server


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    fifo = Fifo(tmp_path / "fifo")
    yield fifo
    os.close(fifo.end)


class Fifo:
    """What an action waits for."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self.end = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def tell(self, *words: str) -> None:
        os.write(self.end, "".join(f"{word}\n" for word in words).encode())


class Program:
    """A `stoker` that runs."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process

    async def read(self, count: int) -> bytes:
        assert self.process.stdout is not None
        data = b""
        while len(data) < count:
            data += (piece := await self.process.stdout.receive_some(count - len(data)))
            assert piece, f"it ended after {data!r}"
        return data

    async def end(self) -> tuple[int, bytes, bytes]:
        """The exit code and the rest of stdout and of stderr."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        rest = b"".join([piece async for piece in self.process.stdout])
        err = b"".join([piece async for piece in self.process.stderr])
        return await self.process.wait(), rest, err


@asynccontextmanager
async def stoker(server: ServerUnderTest, command: str, *arguments: str) -> AsyncIterator[Program]:
    line = [sys.executable, "-m", "stoker", command, "--server", server.address, *arguments]
    process = await trio.lowlevel.open_process(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield Program(process)
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def running(
    server: ServerUnderTest, folder: Path, *command: str
) -> AsyncIterator[tuple[Program, str]]:
    """`stoker run`, and the name of its operation."""
    folder.mkdir()
    async with stoker(server, "run", "--input-root", str(folder), "--", *command) as program:
        while not (operations := server.running.scheduler.operations_after(0)):
            await trio.sleep(0.02)
        yield program, operations[-1].name


async def test_run_shows_output_as_it_comes_and_once(
    server: ServerUnderTest, fifo: Fifo, tmp_path: Path
) -> None:
    async with running(server, tmp_path / "f", "sh", "-c", STEPWISE, fifo.path) as (program, _):
        fifo.tell("one")
        assert await program.read(4) == b"one\n"
        fifo.tell("two")
        assert await program.read(4) == b"two\n"
        fifo.tell("end")
        code, rest, err = await program.end()
    assert (code, rest) == (0, b"")
    assert err.count(b"one!\ntwo!\n") == 1
    assert err.count(b"!") == 2


@pytest.mark.parametrize("words", ["now", "now and then"])
async def test_what_is_cut_short_is_told_and_shown_whole(
    server: ServerUnderTest, fifo: Fifo, tmp_path: Path, words: str
) -> None:
    script = f'exec 3<"$0"; echo before; read x <&3; : >/dev/stdout; read x <&3; echo {words}'
    async with running(server, tmp_path / "f", "sh", "-c", script, fifo.path) as (program, _):
        assert await program.read(7) == b"before\n"
        fifo.tell("go", "go")
        code, rest, err = await program.end()
    assert (code, rest) == (0, f"{words}\n".encode())
    assert b"Warning: the command has changed what it printed" in err


async def test_streams_that_cannot_be_read_are_done_without(
    server: ServerUnderTest, fifo: Fifo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = trio.Event()

    def find(_: LogStreams, name: str) -> None:
        asked.set()
        raise LogStreamNotFound(name)

    monkeypatch.setattr(LogStreams, "find", find)
    async with running(server, tmp_path / "f", "sh", "-c", STEPWISE, fifo.path) as (program, _):
        await asked.wait()
        fifo.tell("one", "end")
        code, rest, err = await program.end()
    assert (code, rest) == (0, b"one\n")
    assert b"one!\n" in err
    assert b"log stream" not in err


async def test_tail_follows_and_leaves_the_action_alone(
    server: ServerUnderTest, fifo: Fifo, tmp_path: Path
) -> None:
    async with running(server, tmp_path / "f", "sh", "-c", STEPWISE, fifo.path) as (program, name):
        async with stoker(server, "tail", name) as tail:
            fifo.tell("one")
            assert await tail.read(4) == b"one\n"
            tail.process.send_signal(signal.SIGINT)
            code, _, err = await tail.end()
            assert code == 130
            assert b"Traceback" not in err
        assert server.running.scheduler.find(name, "").stage is Stage.EXECUTING
        fifo.tell("two", "end")
        code, rest, _ = await program.end()
    assert (code, rest) == (0, b"one\ntwo\n")


async def test_tail_of_one_stream_of_what_has_ended(
    server: ServerUnderTest, tmp_path: Path
) -> None:
    script = "echo one; echo two >&2; exit 3"
    async with running(server, tmp_path / "f", "sh", "-c", script) as (program, name):
        await program.end()
    async with stoker(server, "tail", "--stderr", name.rpartition("/")[2]) as tail:
        code, out, err = await tail.end()
    assert (code, out) == (0, b"")
    assert err == f"two\n{name} has ended: exit code 3\n".encode()


async def test_tail_of_what_is_not_known(server: ServerUnderTest) -> None:
    async with stoker(server, "tail", "operations/x") as tail:
        code, out, err = await tail.end()
    assert (code, out) == (1, b"")
    assert err.startswith(b"Error: there is no operation named")
