"""What every execution strategy must do. A plugin's test inherits the class and gives a fixture::

    class TestMyStrategy(ExecutionStrategyLaws):
        @pytest.fixture
        async def strategy(self) -> AsyncIterator[spi.ExecutionStrategy]:
            async with open_my_strategy(...) as strategy:
                yield strategy

The laws need pytest-trio and, where the processes run, a shell with the usual small programs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from stoker import spi

# Wide bounds, only so that a broken law is reported rather than waited for.
_PATIENCE_SECONDS = 60


class Witness:
    """Tells when the last process that opened the named pipe `path` for writing is gone.

    It works whatever numbers the processes bear, so also across process namespaces.
    """

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._reader = trio.lowlevel.FdStream(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        # While nobody has opened the pipe yet, reading it must wait rather than see its end.
        self._own_writer: int | None = os.open(path, os.O_WRONLY)
        self._unread = b""

    async def wait_for(self, word: str) -> None:
        """Wait until a process has written a line with this word."""
        line = word.encode() + b"\n"
        with trio.fail_after(_PATIENCE_SECONDS):
            while line not in self._unread:
                self._unread += await self._reader.receive_some()
        self._unread = self._unread.replace(line, b"", 1)

    async def wait_until_all_are_gone(self) -> None:
        """Fail if a process goes on to hold the pipe."""
        self._close_own_writer()
        with trio.fail_after(_PATIENCE_SECONDS):
            while await self._reader.receive_some():
                pass

    def close(self) -> None:
        """Give the descriptors back."""
        self._close_own_writer()
        self._reader.close()

    def _close_own_writer(self) -> None:
        if self._own_writer is not None:
            os.close(self._own_writer)
            self._own_writer = None


class Workplace:
    """Folders for processes, and specifications of what is to run there."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.stdout = folder / "stdout"
        self.stderr = folder / "stderr"
        self._temporary_directory = folder / "temporary"
        self.root.mkdir()
        self._temporary_directory.mkdir()

    def spec(
        self,
        *argv: str,
        environment: Mapping[str, str] | None = None,
        working_directory: str = "",
        pipes: bool = False,
        stdout: Path | None = None,
    ) -> spi.ProcessSpec:
        """A process that writes its stdout to a file, or with `pipes` to a pipe."""
        return spi.ProcessSpec(
            argv=argv,
            environment=environment or {},
            root=self.root,
            working_directory=working_directory,
            temporary_directory=self._temporary_directory,
            stderr=self.stderr,
            stdout=None if pipes else stdout or self.stdout,
        )

    def script(self, text: str, *arguments: str, pipes: bool = False) -> spi.ProcessSpec:
        """A shell that runs `text`."""
        return self.spec("sh", "-c", text, "sh", *arguments, pipes=pipes)

    def program(self, name: str, content: bytes, mode: int = 0o755) -> Path:
        """Write a file into the root that can be executed."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        return path


async def run(strategy: spi.ExecutionStrategy, spec: spi.ProcessSpec) -> spi.Exit:
    """Run a process to its end."""
    async with strategy.start(spec) as process:
        return await process.wait()


class ExecutionStrategyLaws:
    """Inherit, and define the fixture ``strategy``."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Workplace:
        """Fresh folders for one test."""
        return Workplace(tmp_path)

    @pytest.fixture
    async def witness(self, place: Workplace) -> AsyncIterator[Witness]:
        """A witness whose pipe lies where the processes can reach it."""
        witness = Witness(place.root / "witness")
        yield witness
        witness.close()

    # --- how a process ends ----------------------------------------------------------------------

    @pytest.mark.parametrize("code", [0, 1, 42, 255])
    async def test_an_exit_code_is_reported_as_it_is(
        self, strategy: spi.ExecutionStrategy, place: Workplace, code: int
    ) -> None:
        assert await run(strategy, place.script(f"exit {code}")) == spi.Exit(code)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
    async def test_a_signal_is_reported_as_shells_do(  # RUN-15
        self, strategy: spi.ExecutionStrategy, place: Workplace, number: signal.Signals
    ) -> None:
        exit_ = await run(strategy, place.script(f"ulimit -c 0; kill -{int(number)} $$"))
        assert exit_ == spi.Exit(128 + number, number)

    async def test_several_tasks_may_wait_and_wait_again(
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        exits = []
        async with strategy.start(place.script("read _; exit 7", pipes=True)) as process:

            async def wait() -> None:
                exits.append(await process.wait())

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(wait)
                assert process.stdin is not None
                await process.stdin.aclose()
            await wait()
        await wait()
        assert exits == [spi.Exit(7)] * 5

    async def test_cancelling_a_wait_leaves_the_process_alone(
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        async with strategy.start(place.script("read _; exit 7", pipes=True)) as process:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.wait)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert process.stdin is not None
            await process.stdin.send_all(b"on\n")
            assert await process.wait() == spi.Exit(7)

    # --- what a process sees ---------------------------------------------------------------------

    async def test_the_environment_is_exactly_what_was_given(  # RUN-10
        self,
        strategy: spi.ExecutionStrategy,
        place: Workplace,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("STOKER_SENTINEL", "leaked")
        environment = {"LANG": "C.UTF-8", "ODD": "a=b c\nd", "EMPTY": ""}
        await run(strategy, place.spec("env", "-0", environment=environment))
        assert sorted(place.stdout.read_text().split("\0")[:-1]) == sorted(
            f"{name}={value}" for name, value in environment.items()
        )

    async def test_arguments_arrive_byte_for_byte(
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        arguments = ("a b", "", "'\"$HOME\\", "line\nline", "*", "größer")
        await run(strategy, place.script(r'printf "%s\0" "$@"', *arguments))
        assert place.stdout.read_text().split("\0")[:-1] == list(arguments)

    async def test_the_working_directory_is_below_the_root(  # RUN-08
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        (place.root / "a" / "b").mkdir(parents=True)
        await run(strategy, place.spec("pwd", "-P", working_directory="a/b"))
        assert place.stdout.read_text() == f"{(place.root / 'a' / 'b').resolve()}\n"

    async def test_what_it_writes_below_the_root_is_there(
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        await run(strategy, place.script("echo made > made"))
        assert (place.root / "made").read_text() == "made\n"

    async def test_stdin_is_empty_without_pipes(  # RUN-12
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        assert await run(strategy, place.script("cat; echo end")) == spi.Exit(0)
        assert place.stdout.read_bytes() == b"end\n"

    # --- what a process writes -------------------------------------------------------------------

    async def test_stdout_and_stderr_arrive_apart_and_byte_for_byte(  # RUN-13
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        await run(strategy, place.script(r"printf '\0\377out'; printf '\0\376err' >&2"))
        assert place.stdout.read_bytes() == b"\0\xffout"
        assert place.stderr.read_bytes() == b"\0\xfeerr"

    async def test_stderr_is_appended(
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        place.stderr.write_bytes(b"before\n")
        await run(strategy, place.script("echo after >&2"))
        assert place.stderr.read_bytes() == b"before\nafter\n"

    async def test_a_large_stdout_arrives_whole(  # RUN-13
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        size_bytes = 50 * 1024 * 1024
        await run(strategy, place.script(f"head -c {size_bytes} /dev/zero; echo end >&2"))
        assert place.stdout.stat().st_size == size_bytes
        assert place.stderr.read_bytes() == b"end\n"

    async def test_pipes_carry_both_ways(
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        data = bytes(range(256)) * 4096
        async with strategy.start(place.spec("cat", pipes=True)) as process:
            stdin, stdout = process.stdin, process.stdout
            assert stdin is not None
            assert stdout is not None

            async def send() -> None:
                await stdin.send_all(data)
                await stdin.aclose()

            received = b""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while piece := await stdout.receive_some():
                    received += piece
            assert await process.wait() == spi.Exit(0)
        assert received == data

    # --- which program ---------------------------------------------------------------------------

    async def test_a_bare_name_is_looked_up_in_the_path_of_the_environment(  # RUN-09
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        place.program("first/tool", b"not to be run", mode=0o644)
        place.program("second/tool", b"#!/bin/sh\necho second\n")
        place.program("third/tool", b"#!/bin/sh\necho third\n")
        folders = [str(place.root / name) for name in ("none", "first", "second", "third")]
        await run(strategy, place.spec("tool", environment={"PATH": ":".join(folders)}))
        assert place.stdout.read_text() == "second\n"

    async def test_a_bare_name_is_not_looked_up_in_the_working_directory(  # RUN-09
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        place.program("tool", b"#!/bin/sh\n")
        with pytest.raises(spi.ProgramNotStarted) as caught:
            await run(strategy, place.spec("tool"))
        assert caught.value.exit_code == 127

    async def test_a_path_that_is_set_is_the_only_one(  # RUN-09
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        with pytest.raises(spi.ProgramNotStarted):
            await run(strategy, place.spec("true", environment={"PATH": str(place.root)}))

    @pytest.mark.parametrize("name", ["./tool", "bin/tool", "../tool"])
    async def test_a_name_with_a_slash_is_relative_to_the_working_directory(  # RUN-09
        self, strategy: spi.ExecutionStrategy, place: Workplace, name: str
    ) -> None:
        (place.root / "work").mkdir()
        place.program(f"work/{name}", b'#!/bin/sh\necho "$0"\n')
        await run(strategy, place.spec(name, working_directory="work"))
        assert place.stdout.read_text() == f"{name}\n"

    async def test_an_absolute_name_is_taken_as_it_is(  # RUN-09
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        tool = place.program("tool", b"#!/bin/sh\nexit 5\n")
        assert await run(strategy, place.spec(str(tool))) == spi.Exit(5)

    async def test_a_program_that_is_absent_is_named(  # RUN-17
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        with pytest.raises(spi.ProgramNotStarted, match="not found") as caught:
            await run(strategy, place.spec("./tool"))
        assert (caught.value.program, caught.value.exit_code) == ("./tool", 127)

    @pytest.mark.parametrize(
        ("content", "mode", "reason"),
        [
            (b"#!/bin/sh\n", 0o644, "not executable"),
            (b"#!/no/such/interpreter -x\n", 0o755, "/no/such/interpreter"),
            (b"\x7fELF, but not really", 0o755, "format"),
        ],
    )
    async def test_a_program_that_cannot_be_executed_is_named(  # RUN-17
        self,
        strategy: spi.ExecutionStrategy,
        place: Workplace,
        *,
        content: bytes,
        mode: int,
        reason: str,
    ) -> None:
        place.program("tool", content, mode)
        with pytest.raises(spi.ProgramNotStarted, match=reason) as caught:
            await run(strategy, place.spec("./tool"))
        assert (caught.value.program, caught.value.exit_code) == ("./tool", 126)

    async def test_a_directory_is_no_program(  # RUN-17
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        (place.root / "tool").mkdir()
        with pytest.raises(spi.ProgramNotStarted, match="directory") as caught:
            await run(strategy, place.spec("./tool"))
        assert caught.value.exit_code == 126

    # --- what is left ----------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "text",
        [
            "say; sleep 1000",
            "trap '' TERM INT HUP; say; while :; do sleep 1; done",
            "(say; sleep 1000) & wait",
            "(sh -c 'trap \"\" HUP TERM; echo ready >&9; sleep 1000' &) ; sleep 1000",
            "sleep 1000 & kill -STOP $!; say; kill -STOP $$",
        ],
        ids=["alone", "deaf to signals", "child", "forked twice", "stopped"],
    )
    async def test_leaving_leaves_no_process(
        self,
        strategy: spi.ExecutionStrategy,
        place: Workplace,
        witness: Witness,
        text: str,
    ) -> None:
        say = f"exec 9>{witness.path}; say() {{ echo ready >&9; }}; "
        async with strategy.start(place.script(say + text)):
            await witness.wait_for("ready")
        await witness.wait_until_all_are_gone()

    async def test_children_left_behind_are_killed_too(  # RUN-22
        self, strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
    ) -> None:
        text = f"exec 9>{witness.path}; (trap '' HUP TERM; sleep 1000) & exit 3"
        assert await run(strategy, place.script(text)) == spi.Exit(3)
        await witness.wait_until_all_are_gone()

    async def test_terminate_reaches_the_whole_tree(  # RUN-21
        self, strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
    ) -> None:
        child = "trap 'echo child >&9; exit' TERM; echo ready >&9; while :; do sleep 0.05; done"
        text = (
            f'exec 9>{witness.path}; sh -c "{child}" & '
            "trap 'wait; echo parent >&9; exit 9' TERM; echo ready >&9; wait"
        )
        async with strategy.start(place.script(text)) as process:
            await witness.wait_for("ready")
            await witness.wait_for("ready")
            process.terminate()
            await witness.wait_for("child")
            await witness.wait_for("parent")
            assert await process.wait() == spi.Exit(9)
            process.terminate()
        process.terminate()
        await witness.wait_until_all_are_gone()

    async def test_leaving_by_an_exception_leaves_no_process_and_hides_nothing(
        self, strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
    ) -> None:
        text = f"exec 9>{witness.path}; echo ready >&9; sleep 1000"

        async def fail() -> None:
            async with strategy.start(place.script(text)):
                await witness.wait_for("ready")
                raise KeyError

        with pytest.raises(KeyError):
            await fail()
        await witness.wait_until_all_are_gone()

    async def test_a_hundred_processes_at_once(
        self, strategy: spi.ExecutionStrategy, place: Workplace, tmp_path: Path
    ) -> None:
        exits: dict[int, spi.Exit] = {}

        async def run_one(number: int) -> None:
            stdout = tmp_path / f"stdout{number}"
            spec = place.spec("sh", "-c", f"echo {number}; exit {number}", stdout=stdout)
            exits[number] = await run(strategy, spec)
            assert stdout.read_text() == f"{number}\n"

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(run_one, number)
        assert exits == {number: spi.Exit(number) for number in range(100)}

    async def test_a_storm_of_cancellations_leaves_no_process(
        self, strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
    ) -> None:
        text = f"exec 9>{witness.path}; (sleep 1000 & sleep 1000) & sleep 1000"

        async def run_and_cancel(patience_seconds: float, pipes: bool) -> None:
            with trio.move_on_after(patience_seconds):
                await run(strategy, place.script(text, pipes=pipes))

        with trio.fail_after(_PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    # Scattered over a second: from before the start until long after it.
                    patience_seconds = number * 37 % 200 / 200
                    nursery.start_soon(run_and_cancel, patience_seconds, number % 2 == 0)
        await witness.wait_until_all_are_gone()
