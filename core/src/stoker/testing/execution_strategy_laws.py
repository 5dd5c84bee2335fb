"""What every execution strategy must do. A plugin's test inherits the class and gives a fixture::

    class TestMyStrategy(ExecutionStrategyLaws):
        @pytest.fixture
        async def strategy(self) -> AsyncIterator[spi.ExecutionStrategy]:
            async with open_my_strategy(...) as strategy:
                yield strategy

A limit that the strategy cannot enforce is left out where a sentence of its `enforcement` begins
with "degraded:" and names "limits of processes", or says of "memory limits" that they are "not
enforced". Memory limits that are degraded otherwise must still make a process fail.

The laws need pytest-trio and, where the processes run, a shell with the usual small programs.
"""

from __future__ import annotations

import os
import signal
import tempfile
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
        path.chmod(0o666)  # whoever the processes run as
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
        limits: spi.Limits | None = None,
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
            limits=limits or spi.Limits(),
        )

    def script(
        self,
        text: str,
        *arguments: str,
        pipes: bool = False,
        limits: spi.Limits | None = None,
    ) -> spi.ProcessSpec:
        """A shell that runs `text`."""
        return self.spec("sh", "-c", text, "sh", *arguments, pipes=pipes, limits=limits)

    def give_to(self, user: spi.ProcessUser | None) -> None:
        """Do what a server does for a strategy with a user of its own."""
        if user is not None:
            for folder in (self.root, self._temporary_directory):
                os.chown(folder, *user)
            _let_everyone_come_to(self.root.parent)

    def program(self, name: str, content: bytes, mode: int = 0o755) -> Path:
        """Write a file into the root that can be executed."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        return path


def _let_everyone_come_to(folder: Path) -> None:
    """The folders of a test are private, up to that of the system for temporary ones."""
    while folder != Path(tempfile.gettempdir()) and not folder.stat().st_mode & 0o001:
        folder.chmod(folder.stat().st_mode | 0o711)
        folder = folder.parent


async def run(strategy: spi.ExecutionStrategy, spec: spi.ProcessSpec) -> spi.Exit:
    """Run a process to its end."""
    async with strategy.start(spec) as process:
        return await process.wait()


async def _wait_for_content(file: Path, content: bytes) -> None:
    while not _holds(file, content):  # noqa: ASYNC110 -- nobody tells
        await trio.sleep(0.01)


def _holds(file: Path, content: bytes) -> bool:
    return file.exists() and file.read_bytes() == content


async def outcome(strategy: spi.ExecutionStrategy, spec: spi.ProcessSpec) -> spi.Exit:
    """Run a process to its end, and tell of that what does not differ from run to run."""
    return without_usage(await run(strategy, spec))


def without_usage(exit_: spi.Exit) -> spi.Exit:
    """An exit that can be compared."""
    return exit_._replace(usage=None)


class ExecutionStrategyLaws:
    """Inherit, and define the fixture ``strategy``."""

    @pytest.fixture
    def place(self, tmp_path: Path, strategy: spi.ExecutionStrategy) -> Workplace:
        """Fresh folders for one test."""
        place = Workplace(tmp_path)
        place.give_to(strategy.user)
        return place

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
        assert await outcome(strategy, place.script(f"exit {code}")) == spi.Exit(code)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
    async def test_a_signal_is_reported_as_shells_do(  # RUN-15
        self, strategy: spi.ExecutionStrategy, place: Workplace, number: signal.Signals
    ) -> None:
        exit_ = await outcome(strategy, place.script(f"ulimit -c 0; kill -{int(number)} $$"))
        assert exit_ == spi.Exit(128 + number, number)

    async def test_several_tasks_may_wait_and_wait_again(
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        exits = []
        async with strategy.start(place.script("read _; exit 7", pipes=True)) as process:

            async def wait() -> None:
                exits.append(without_usage(await process.wait()))

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
            assert without_usage(await process.wait()) == spi.Exit(7)

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
        assert await outcome(strategy, place.script("cat; echo end")) == spi.Exit(0)
        assert place.stdout.read_bytes() == b"end\n"

    async def test_nothing_is_open_but_the_three_streams(
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        text = "for n in 3 4 5 6 7 8 9; do if (eval : '<&'$n) 2>/dev/null; then echo $n; fi; done"
        await run(strategy, place.script(text))
        assert place.stdout.read_bytes() == b""

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

    async def test_output_is_in_its_files_as_it_comes(  # OPS-16
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        with trio.fail_after(60):
            async with strategy.start(place.script("echo one; echo two >&2; sleep 600")):
                await _wait_for_content(place.stdout, b"one\n")
                await _wait_for_content(place.stderr, b"two\n")

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
            assert without_usage(await process.wait()) == spi.Exit(0)
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
        assert await outcome(strategy, place.spec(str(tool))) == spi.Exit(5)

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
            "(setsid sh -c 'trap \"\" HUP TERM; echo ready >&9; sleep 1000' &) ; sleep 1000",
            "(setsid sh -c '(setsid sh -c \"$say; sleep 1000\" &)' <&- >&- 2>&- &) ; sleep 1000",
        ],
        ids=[
            "alone",
            "deaf to signals",
            "child",
            "forked twice",
            "stopped",
            "own session",
            "daemon without descriptors",
        ],
    )
    async def test_leaving_leaves_no_process(
        self,
        strategy: spi.ExecutionStrategy,
        place: Workplace,
        witness: Witness,
        text: str,
    ) -> None:
        say = f"exec 9>{witness.path}; say() {{ echo ready >&9; }}; export say='echo ready >&9'; "
        async with strategy.start(place.script(say + text)):
            await witness.wait_for("ready")
        await witness.wait_until_all_are_gone()

    async def test_children_left_behind_are_killed_too(  # RUN-22
        self, strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
    ) -> None:
        text = f"exec 9>{witness.path}; (trap '' HUP TERM; sleep 1000) & exit 3"
        assert await outcome(strategy, place.script(text)) == spi.Exit(3)
        await witness.wait_until_all_are_gone()

    async def test_a_daemon_whose_parents_have_ended_is_killed_too(  # RUN-22
        self, strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
    ) -> None:
        daemon = "trap '' HUP TERM; echo ready >&9; sleep 1000"
        text = f'exec 9>{witness.path}; (setsid sh -c "{daemon}" <&- >&- 2>&- &); read _; exit 3'
        async with strategy.start(place.script(text, pipes=True)) as process:
            await witness.wait_for("ready")
            assert process.stdin is not None
            await process.stdin.aclose()
            assert without_usage(await process.wait()) == spi.Exit(3)
        await witness.wait_until_all_are_gone()

    async def test_terminate_reaches_daemons(  # RUN-21
        self, strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
    ) -> None:
        daemon = "trap 'echo told >&9; exit' TERM; echo ready >&9; while :; do sleep 0.05; done"
        text = f"exec 9>{witness.path}; (setsid sh -c \"{daemon}\" &); trap '' TERM; sleep 1000"
        async with strategy.start(place.script(text)) as process:
            await witness.wait_for("ready")
            process.terminate()
            await witness.wait_for("told")
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
            assert without_usage(await process.wait()) == spi.Exit(9)
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
            exits[number] = await outcome(strategy, spec)
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

    async def test_a_process_lives_as_long_as_it_is_wanted_while_others_come_and_go(
        self, strategy: spi.ExecutionStrategy, place: Workplace, tmp_path: Path
    ) -> None:
        async with strategy.start(place.spec("cat", pipes=True)) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for number in range(20):
                other = place.spec("sh", "-c", "exit 4", stdout=tmp_path / f"stdout{number}")
                assert await outcome(strategy, other) == spi.Exit(4)
                line = f"{number}\n".encode()
                await process.stdin.send_all(line)
                assert await process.stdout.receive_some() == line
            await process.stdin.aclose()
            assert without_usage(await process.wait()) == spi.Exit(0)

    # --- limits ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("what", ["memory", "processes", "processors"])
    async def test_it_says_what_becomes_of_each_limit(
        self, strategy: spi.ExecutionStrategy, what: str
    ) -> None:
        assert any(what in sentence for sentence in strategy.enforcement())

    async def test_a_process_that_wants_too_much_memory_ends_by_it(  # RUN-23, ISO-06
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        limits = spi.Limits(memory_bytes=64 * 1024 * 1024)
        # A line without an end is kept in memory as a whole.
        spec = place.script("head -c 400000000 /dev/zero | tail -n 1 > /dev/null", limits=limits)
        if _is_degraded(strategy, "memory limits", "not enforced"):
            return  # what it says that it cannot do binds it to nothing
        if _is_degraded(strategy, "memory limits"):
            assert (await run(strategy, spec)).code != 0
            return
        exit_ = await run(strategy, spec)
        assert exit_.code != 0
        assert "out of memory" in exit_.breach
        assert str(limits.memory_bytes) in exit_.breach
        assert await outcome(strategy, place.spec("true")) == spi.Exit(0)

    async def test_a_process_that_starts_too_many_others_fails_by_it(  # ISO-06
        self, strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
    ) -> None:
        if _is_degraded(strategy, "limits of processes"):
            return  # what it says that it cannot do binds it to nothing
        text = (
            f"exec 9>{witness.path}; n=0; "
            "while [ $n -lt 60 ]; do sleep 1000 & n=$((n+1)); done; echo all"
        )
        exit_ = await run(strategy, place.script(text, limits=spi.Limits(processes=20)))
        assert exit_.code != 0
        assert "processes" in exit_.breach
        assert "20" in exit_.breach
        assert place.stdout.read_bytes() == b""
        await witness.wait_until_all_are_gone()

    async def test_a_fork_bomb_ends_with_its_process(  # ISO-06
        self, strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
    ) -> None:
        if _is_degraded(strategy, "limits of processes"):
            return  # what it says that it cannot do binds it to nothing
        bomb = "echo ready >&9; b() { while :; do (b) & done; }; b"
        text = f"exec 9>{witness.path}; {bomb}"
        async with strategy.start(place.script(text, limits=spi.Limits(processes=50))):
            await witness.wait_for("ready")
        await witness.wait_until_all_are_gone()

    async def test_a_failure_within_the_limits_is_no_breach(
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        limits = spi.Limits(cpus=0.5, memory_bytes=256 * 1024 * 1024, processes=100)
        spec = place.script("true & wait; kill -9 $$", limits=limits)
        assert await outcome(strategy, spec) == spi.Exit(137, signal.SIGKILL)

    async def test_memory_is_measured_of_the_whole_tree_or_not_at_all(
        self, strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
    ) -> None:
        # A shell keeps in memory what is in its variables.
        child = "data=$(head -c 50000000 /dev/zero | tr '\\0' x); echo grown >&9; read _ <&8"
        text = f'exec 8<&0 9>{witness.path}; echo ready >&9; read _; sh -c "$1" & wait'
        async with strategy.start(place.script(text, child, pipes=True)) as process:
            await witness.wait_for("ready")
            before = await process.measure_memory()
            assert process.stdin is not None
            await process.stdin.send_all(b"grow\n")
            await witness.wait_for("grown")
            after = await process.measure_memory()
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert before < 40_000_000
            assert after - before > 40_000_000
        assert await process.measure_memory() is None, "it has ended"

    async def test_what_was_used_is_told(  # RUN-29
        self, strategy: spi.ExecutionStrategy, place: Workplace
    ) -> None:
        text = "n=0; while [ $n -lt 200000 ]; do n=$((n+1)); done"
        usage = (await run(strategy, place.script(text))).usage
        if usage is None:
            pytest.skip("the strategy measures nothing")
        assert usage.user_seconds + usage.system_seconds > 0
        assert usage.peak_memory_bytes > 0


def _is_degraded(strategy: spi.ExecutionStrategy, *what: str) -> bool:
    return any(
        text.startswith("degraded:") and all(words in text for words in what)
        for text in strategy.enforcement()
    )
