"""What every sandbox must do. For what one that isolates must do besides, see `isolation_laws`.

A plugin's test inherits the class, and gives two fixtures: the sandbox, and a strategy to start
enclosed processes by::

    class TestMySandbox(SandboxLaws):
        @pytest.fixture
        async def sandbox(self) -> AsyncIterator[spi.Sandbox]:
            async with open_my_sandbox(...) as sandbox:
                yield sandbox

        @pytest.fixture
        def strategy(self) -> spi.ExecutionStrategy:
            return MyStrategy()

The laws need pytest-trio, Linux, and within the sandbox a shell with the usual small programs.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from stoker import spi
from stoker.testing.execution_strategy_laws import Witness, Workplace


@asynccontextmanager
async def start_enclosed(
    strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, spec: spi.ProcessSpec
) -> AsyncIterator[spi.Process]:
    """Start a process as the server does."""
    async with sandbox.enclose(spec) as enclosed, strategy.start(enclosed) as process:
        yield process


async def run_enclosed(
    strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, spec: spi.ProcessSpec
) -> spi.Exit:
    """Run a process to its end; how it ended, as the server takes it. What it used is left out."""
    async with start_enclosed(strategy, sandbox, spec) as process:
        return sandbox.read_exit(await process.wait())._replace(usage=None)


async def run_plain(strategy: spi.ExecutionStrategy, spec: spi.ProcessSpec) -> spi.Exit:
    """Run a process to its end; how it ended. What it used is left out."""
    async with strategy.start(spec) as process:
        return (await process.wait())._replace(usage=None)


def witness_in(spec: spi.ProcessSpec) -> Witness:
    """A witness where a process can reach it whatever way its root is shown."""
    witness = Witness(spec.temporary_directory / "witness")
    # The strategy may run processes as another user.
    witness.path.chmod(0o666)
    return witness


def traces(folder: Path) -> tuple[object, ...]:
    """What a sandbox might leave behind: mounts, and names in `folder`, where the roots are."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    names = sorted(path.name for path in folder.iterdir())
    return (sum(str(folder) in line for line in mounts.splitlines()), names)


class SandboxFixtures:
    """Places for processes, and a witness of their end."""

    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        """The folder that the places are in."""
        home = tmp_path / "places"
        home.mkdir()
        return home

    @pytest.fixture
    def new_place(self, home: Path) -> Callable[[str], Workplace]:
        """Makes folders by `make_place`; to be replaced where they must belong to a user."""
        return lambda name: make_place(home, name)

    @pytest.fixture
    def place(self, new_place: Callable[[str], Workplace]) -> Workplace:
        """Fresh folders for one process."""
        return new_place("one")

    @pytest.fixture
    def other_place(self, new_place: Callable[[str], Workplace]) -> Workplace:
        """Fresh folders for another one."""
        return new_place("other")

    @pytest.fixture
    async def witness(self, place: Workplace) -> AsyncIterator[Witness]:
        """Tells when all processes are gone."""
        witness = witness_in(place.spec("true"))
        yield witness
        witness.close()


def make_place(home: Path, name: str) -> Workplace:
    """Fresh folders in the folder `name` of `home`, and the files that a process writes to."""
    folder = home / name
    folder.mkdir()
    place = Workplace(folder)
    for path in (place.stdout, place.stderr):
        path.touch(mode=0o600)
    return place


class SandboxLaws(SandboxFixtures):
    """What holds of a process within any sandbox. Define ``sandbox`` and ``strategy``."""

    @pytest.mark.parametrize("code", [0, 1, 42, 255])
    async def test_an_exit_code_is_reported_as_it_is(
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace, code: int
    ) -> None:
        exit_ = await run_enclosed(strategy, sandbox, place.script(f"exit {code}"))
        assert exit_ == spi.Exit(code)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
    async def test_a_signal_is_reported_as_one(  # RUN-15
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        number: signal.Signals,
    ) -> None:
        script = place.script(f"ulimit -c 0; kill -{int(number)} $$")
        assert await run_enclosed(strategy, sandbox, script) == spi.Exit(128 + number, number)

    async def test_the_environment_is_exactly_what_was_given(  # RUN-10
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("STOKER_SENTINEL", "leaked")
        environment = {"LANG": "C.UTF-8", "ODD": "a=b c\nd", "EMPTY": "", "a.b-c%": "1"}
        await run_enclosed(strategy, sandbox, place.spec("env", "-0", environment=environment))
        assert sorted(place.stdout.read_text().split("\0")[:-1]) == sorted(
            f"{name}={value}" for name, value in environment.items()
        )

    @pytest.mark.parametrize(
        "arguments",
        [("a b", "", "'\"$HOME\\", "line\nline", "*", "größer"), ("--", "--bind", "-c"), ("x",)],
        ids=["odd", "options", "one"],
    )
    async def test_arguments_arrive_byte_for_byte(
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        arguments: tuple[str, ...],
    ) -> None:
        spec = place.script(r'printf "%s\0" "$@"', *arguments)
        assert await run_enclosed(strategy, sandbox, spec) == spi.Exit(0)
        assert place.stdout.read_text().split("\0")[:-1] == list(arguments)

    async def test_many_arguments_and_variables_arrive(
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        arguments = [f"an argument, number {number}" for number in range(12_000)]
        spec = place.spec(
            *("sh", "-c", 'printf "%s\n" "$@"; env | wc -l; echo "$V2999"', "sh", *arguments),
            environment={f"V{number}": "v a l u e" for number in range(3_000)},
        )
        assert await run_enclosed(strategy, sandbox, spec) == spi.Exit(0)
        *echoed, variables, last = place.stdout.read_text().splitlines()
        assert echoed == arguments
        # A shell may add some of its own.
        assert int(variables) in range(3_000, 3_004)
        assert last == "v a l u e"

    async def test_a_program_that_is_absent_is_told(  # RUN-17
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        try:
            exit_ = await run_enclosed(strategy, sandbox, place.spec("./no-such-tool"))
        except spi.ProgramNotStarted as error:
            told, code = str(error), error.exit_code
        else:
            told, code = place.stderr.read_text(), exit_.code
        assert "no-such-tool" in told
        assert code == 127

    async def test_stdout_and_stderr_arrive_apart_and_byte_for_byte(  # RUN-13
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        spec = place.script(r"printf '\0\377out'; printf '\0\376err' >&2")
        await run_enclosed(strategy, sandbox, spec)
        assert place.stdout.read_bytes() == b"\0\xffout"
        assert place.stderr.read_bytes() == b"\0\xfeerr"

    async def test_stdin_is_empty_and_the_null_device_works(  # RUN-12
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        script = place.script("cat; echo lost > /dev/null && cat /dev/null && echo end")
        assert await run_enclosed(strategy, sandbox, script) == spi.Exit(0)
        assert place.stdout.read_bytes() == b"end\n"

    async def test_pipes_carry_both_ways(
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        spec = replace(place.spec("cat", pipes=True), root_changes=True)
        async with start_enclosed(strategy, sandbox, spec) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send_all(b"there and back\n")
            assert await process.stdout.receive_some() == b"there and back\n"
            await process.stdin.aclose()
            assert sandbox.read_exit(await process.wait()).code == 0

    async def test_what_it_writes_below_the_root_is_there(
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        (place.root / "input").write_text("1")
        script = place.script("mkdir -p a/b; echo made > a/b/made; cp input copy; rm input")
        assert await run_enclosed(strategy, sandbox, script) == spi.Exit(0)
        assert (place.root / "a" / "b" / "made").read_text() == "made\n"
        assert (place.root / "copy").read_text() == "1"
        assert not (place.root / "input").exists()

    async def test_its_temporary_directory_is_there(
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        spec = place.spec("true")
        script = f"echo x > '{spec.temporary_directory}/x' && cat '{spec.temporary_directory}/x'"
        assert await run_enclosed(strategy, sandbox, place.script(script)) == spi.Exit(0)

    async def test_the_working_directory_is_below_the_root(  # RUN-08
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        (place.root / "a" / "b").mkdir(parents=True)
        (place.root / "link").symlink_to("a/b")
        spec = place.spec("pwd", "-P", working_directory="link")
        await run_enclosed(strategy, sandbox, spec)
        assert place.stdout.read_text() == f"{(place.root / 'a' / 'b').resolve()}\n"

    async def test_odd_names_of_folders(
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        new_place: Callable[[str], Workplace],
    ) -> None:
        place = new_place("a b\n,c:d=\\e'f\"$g")
        (place.root / "in put").write_text("1")
        script = place.script('cat "in put" && echo 2 > out')
        assert await run_enclosed(strategy, sandbox, script) == spi.Exit(0)
        assert (place.root / "out").read_text() == "2\n"

    async def test_changes_of_the_root_are_seen_inside(
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        (place.root / "replaced").write_text("old\n")
        (place.root / "removed").write_text("")
        text = (
            "echo begun; while read -r line; do "
            'cat new/file replaced; test -e removed; echo "$?"; done'
        )
        spec = replace(place.script(text, pipes=True), root_changes=True)
        async with start_enclosed(strategy, sandbox, spec) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert await process.stdout.receive_some() == b"begun\n"
            (place.root / "new").mkdir()
            (place.root / "new" / "file").write_text("new\n")
            (place.root / "newer").write_text("newer\n")
            (place.root / "newer").rename(place.root / "replaced")
            (place.root / "removed").unlink()
            await process.stdin.send_all(b"look\n")
            seen = b""
            while seen.count(b"\n") < 3:
                seen += await process.stdout.receive_some()
            assert seen == b"new\nnewer\n1\n"

    async def test_terminate_reaches_the_command(  # RUN-21
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        witness: Witness,
    ) -> None:
        text = (
            f"exec 9>'{witness.path}'; trap 'echo written > written; exit 9' TERM; "
            "echo ready >&9; while :; do sleep 0.05; done"
        )
        async with start_enclosed(strategy, sandbox, place.script(text)) as process:
            await witness.wait_for("ready")
            process.terminate()
            assert sandbox.read_exit(await process.wait()).code == 9
        await witness.wait_until_all_are_gone()
        # Partial logs are what the time is given for.
        assert (place.root / "written").read_text() == "written\n"

    @pytest.mark.parametrize("leave_by", ["exit", "exception", "cancellation"])
    async def test_leaving_leaves_nothing(  # RUN-22
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        home: Path,
        *,
        witness: Witness,
        leave_by: str,
    ) -> None:
        before = traces(home / "one")
        text = f"exec 9>'{witness.path}'; trap '' TERM; sleep 1000 & echo ready >&9; sleep 1000"

        async def live() -> None:
            async with start_enclosed(strategy, sandbox, place.script(text)):
                await witness.wait_for("ready")
                if leave_by == "exception":
                    raise KeyError
                if leave_by == "cancellation":
                    nursery.cancel_scope.cancel()
                    await trio.sleep_forever()

        if leave_by == "exception":
            with pytest.raises(KeyError):
                await live()
        else:
            async with trio.open_nursery() as nursery:
                await live()
        await witness.wait_until_all_are_gone()
        assert traces(home / "one") == before

    async def test_an_enclosure_in_which_nothing_runs_leaves_nothing(
        self, sandbox: spi.Sandbox, place: Workplace, home: Path
    ) -> None:
        before = traces(home / "one")
        async with sandbox.enclose(place.spec("true")):
            pass
        assert traces(home / "one") == before

    async def test_a_storm_of_cancellations_leaves_nothing(
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        home: Path,
        *,
        witness: Witness,
    ) -> None:
        before = traces(home / "one")
        text = f"exec 9>'{witness.path}'; (sleep 1000 & sleep 1000) & sleep 1000"

        async def run_and_cancel(patience_seconds: float) -> None:
            with trio.move_on_after(patience_seconds):
                await run_enclosed(strategy, sandbox, place.script(text))

        async with trio.open_nursery() as nursery:
            for number in range(60):
                # Scattered: from before the start until long after it.
                nursery.start_soon(run_and_cancel, number * 37 % 60 / 100)
        await witness.wait_until_all_are_gone()
        assert traces(home / "one") == before
