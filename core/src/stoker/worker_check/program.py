"""A program that may be a worker, and what is said to it."""

from __future__ import annotations

import fcntl
import math
import os
import subprocess
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from stoker.errors import MalformedResponse
from stoker.spi import WorkerProtocol, WorkRequest, WorkResponse
from stoker.worker_check.process_tree import kill_descendants

_CHUNK_BYTES = 1 << 16
_KEPT_BYTES = 1 << 16
_LIMIT_BYTES = 64 * 1024 * 1024
_EXCERPT_BYTES = 200
_MOST_UNASKED = 1000
# A process that ends closes its stdout a moment before it can be waited for.
_END_SECONDS = 1.0
_READ_WITHIN_SECONDS = 1.0
_LOOK_SECONDS = 0.005


class NoAnswer(Exception):
    """What happened in place of an answer, in words that go on after "it"."""


@dataclass(frozen=True, slots=True)
class Start:
    """How to start the program."""

    command: tuple[str, ...]
    """With ``--persistent_worker``."""
    directory: Path
    stderr: Path
    """The file to write its stderr to, emptied before."""
    patience_seconds: float
    """How long it may take for each step."""


class Program:
    """A program that runs. One task uses it."""

    def __init__(self, start: Start, process: trio.Process, protocol: WorkerProtocol) -> None:
        assert isinstance(process.stdin, trio.lowlevel.FdStream)
        assert process.stdout is not None
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._patience = start.patience_seconds
        self._protocol = protocol
        self._decoder = protocol.decoder(_LIMIT_BYTES)
        self._hear, self._heard = trio.open_memory_channel[WorkResponse](math.inf)
        self._stdout_ended = trio.Event()
        self.raw = bytearray()
        """The first bytes of all that it wrote."""
        self._incomplete = bytearray()  # the first bytes since the last answer
        self._end = ""
        self._is_over = trio.Event()

    async def send(self, *requests: WorkRequest) -> None:
        """Write the requests at once. Raises NoAnswer."""
        await self._write(b"".join(map(self._protocol.encode, requests)))

    async def send_in_parts(self, request: WorkRequest) -> None:
        """Write a request so that it is read in three parts: its first byte, its last, and the rest
        in between. Raises NoAnswer."""
        data = self._protocol.encode(request)
        last = max(1, len(data) - 1)  # one byte may be all
        for part in filter(None, (data[:1], data[1:last], data[last:])):
            await self._write(part)
            await self._wait_until_read()

    async def answers(self, count: int = 1) -> list[WorkResponse]:
        """The next answers. Raises NoAnswer if it takes too long over one, or none can come."""
        return [await self._answer() for _ in range(count)]

    async def ask(self, request: WorkRequest) -> WorkResponse:
        """The answer to `request`, or whatever comes in its place. Raises NoAnswer."""
        await self.send(request)
        return await self._answer()

    async def close_stdin(self) -> int | None:
        """Tell it to go; the exit code as Python has it, or None if it stays."""
        await self._stdin.aclose()
        return await self._wait()

    async def terminate(self) -> int | None:
        """Ask it by SIGTERM to go; as `close_stdin`."""
        self._process.terminate()
        return await self._wait()

    def unasked(self) -> list[WorkResponse]:
        """Answers that have come and were not waited for."""
        found = []
        while True:
            try:
                found.append(self._heard.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                return found

    @property
    def problem(self) -> str:
        """Why no more answers can come, in words that go on after "it"; empty if they can."""
        return self._end

    async def listen(self) -> None:
        """Hear all that the program writes, until no more can come. To run all the time."""
        with self._hear:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_process, nursery.cancel_scope)
                await self._read_stdout()
                self._stdout_ended.set()
                await trio.sleep(_END_SECONDS)
                self._over("closed its stdout while its process lives")
                nursery.cancel_scope.cancel()

    async def _read_stdout(self) -> None:
        while data := await self._stdout.receive_some(_CHUNK_BYTES):
            self.raw += data[: _KEPT_BYTES - len(self.raw)]
            self._decode(bytes(data))
        self._decode(b"")

    def _decode(self, data: bytes) -> None:
        if self._end:
            return
        try:
            self._incomplete += data[: _EXCERPT_BYTES - len(self._incomplete)]
            for response in self._decoder.feed(data):
                self._incomplete.clear()
                if self._hear.statistics().current_buffer_used >= _MOST_UNASKED:
                    self._give_up_on_flood()
                    return
                self._hear.send_nowait(response)
            if not data:
                self._decoder.end()
        except MalformedResponse as error:
            self._over(f"broke the protocol: {error}")
            self._hear.close()  # not later, as it may live for long

    def _give_up_on_flood(self) -> None:
        self.unasked()  # it would pass for a worker with those
        self._over(f"broke the protocol: it gave {_MOST_UNASKED} answers that nobody had asked for")
        self._hear.close()

    async def _watch_process(self, listening: trio.CancelScope) -> None:
        code = await self._process.wait()
        with trio.move_on_after(_END_SECONDS):
            await self._stdout_ended.wait()
        self._over(f"ended ({describe_code(code)})")
        listening.cancel()

    def _over(self, reason: str) -> None:
        self._end = self._end or reason
        self._is_over.set()

    async def _write(self, data: bytes) -> None:
        with trio.move_on_after(self._patience) as waiting:
            try:
                await self._stdin.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                waiting.deadline = math.inf
                with trio.move_on_after(2 * _END_SECONDS):
                    await self._is_over.wait()  # its end is noticed soon, and tells more
                raise NoAnswer(self._end or "closed its stdin while its process lives") from None
        if waiting.cancelled_caught:
            raise NoAnswer(f"did not read what was sent within {self._patience:g} s")

    async def _answer(self) -> WorkResponse:
        with trio.move_on_after(self._patience):
            try:
                return await self._heard.receive()
            except trio.EndOfChannel:
                raise NoAnswer(self._end) from None
        wrote = bytes(self._incomplete).strip()
        words = f"; its stdout, which belongs to the protocol, got {wrote!r}" if wrote else ""
        raise NoAnswer(f"gave no answer within {self._patience:g} s{words}")

    async def _wait_until_read(self) -> None:
        with trio.move_on_after(_READ_WITHIN_SECONDS):
            while _unread_bytes(self._stdin.fileno()):  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(_LOOK_SECONDS)

    async def _wait(self) -> int | None:
        with trio.move_on_after(self._patience):
            return await self._process.wait()
        return None


def _unread_bytes(pipe: int) -> int:
    held = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return int.from_bytes(held, "little")


def describe_code(code: int) -> str:
    """An exit code as Python has it, in words."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


@asynccontextmanager
async def open_program(start: Start, protocol: WorkerProtocol) -> AsyncIterator[Program]:
    """Start it. On leaving, cancellation included, no process of it is left.

    Raises OSError where it cannot be started.
    """
    process = await _open_process(start.command, start.directory, start.stderr)
    try:
        async with trio.open_nursery() as nursery:
            program = Program(start, process, protocol)
            nursery.start_soon(program.listen)
            yield program
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await kill_descendants()
            with trio.move_on_after(_END_SECONDS):  # it can be that of another user
                await process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                await stream.aclose()


async def _open_process(command: Sequence[str], directory: Path, stderr: Path) -> trio.Process:
    with stderr.open("wb") as log:
        return await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=directory,
            env=os.environ,
            # Ctrl-C is for the command, which then ends this in its own way.
            start_new_session=True,
        )
