"""Actions as processes of their own, really started."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from stoker.digest import SHA256
from stoker.errors import (
    ConfigurationError,
    FailedPrecondition,
    InputsMissing,
    InvalidRequest,
    ProgramNotStarted,
    StorageFull,
    TimedOut,
    Unavailable,
)
from stoker.execution.enclosed import Enclosed
from stoker.execution.executor import open_executor
from stoker.execution.settings import ExecutionSettings
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import ExecutionStrategy, Process, ProcessSpec, Sandbox
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.verifying import VerifyingBlobStore
from stoker.workers.settings import WorkerSettings

Rig = Any
Cas = Any
OpenRig = Callable[..., Any]


async def test_streams_are_kept_apart_and_byte_exact(rig: Rig) -> None:
    # RUN-13
    result = await rig.shell(r"printf 'a\000\377' ; printf 'b' >&2")
    assert await rig.cas.get(result.stdout_digest) == b"a\0\xff"
    assert await rig.cas.get(result.stderr_digest) == b"b"
    assert rig.leftovers() == []


async def test_a_large_stdout_is_whole(rig: Rig) -> None:
    # RUN-13
    result = await rig.shell("head -c 20000000 /dev/zero")
    assert result.stdout_digest == SHA256.digest(bytes(20_000_000)).to_proto()
    assert await rig.cas.get(result.stdout_digest) == bytes(20_000_000)


async def test_empty_streams_have_no_digest(rig: Rig) -> None:
    # RUN-14, RUN-16
    outcome = await rig.run(await rig.cas.action("true"))
    assert outcome.error is None
    assert outcome.message == ""
    assert not outcome.cached
    assert not outcome.result.HasField("stdout_digest")
    assert not outcome.result.HasField("stderr_digest")
    assert outcome.result.exit_code == 0


async def test_a_failed_command_has_outputs(rig: Rig) -> None:
    # RUN-16
    result = await rig.shell("echo 1 > f; echo why >&2; exit 7", output_paths=["f"])
    assert result.exit_code == 7
    assert [file.path for file in result.output_files] == ["f"]
    assert await rig.cas.get(result.stderr_digest) == b"why\n"


async def test_a_signal_is_named(rig: Rig) -> None:
    # RUN-15
    outcome = await rig.run(await rig.cas.shell("kill -SEGV $$"))
    assert outcome.error is None
    assert outcome.result.exit_code == 128 + signal.SIGSEGV
    assert outcome.message == ("the command was ended on executor executor-1: signal 11 (SIGSEGV)")


async def test_the_environment_is_the_documented_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # RUN-10
    monkeypatch.setenv("SENTINEL", "leaked")
    output = await rig.stdout("env | sort; ls -A $TMPDIR | wc -l")
    lines = dict(line.partition("=")[::2] for line in output.splitlines())
    assert lines.pop("PATH") == "/usr/local/bin:/usr/bin:/bin"
    assert lines.pop("HOME") == lines.pop("TMPDIR")
    assert lines.pop("0") == "", "the temporary directory is empty"
    lines.pop("PWD")  # set by the shell itself
    assert lines == {} or set(lines) <= {"_", "SHLVL", "OLDPWD"}


async def test_the_command_has_the_last_word_on_its_environment(rig: Rig) -> None:
    # RUN-10, RUN-11
    action = await rig.cas.shell("echo $PATH $HOME $X", environment={"PATH": "/bin", "HOME": "/h"})
    for value in ("1", "2"):
        action.command.environment_variables.add(name="X", value=value)
    result = await rig.result(action)
    assert await rig.cas.get(result.stdout_digest) == b"/bin /h 2\n"


async def test_stdin_is_empty(rig: Rig) -> None:
    # RUN-12
    assert await rig.stdout("cat; echo end") == "end\n"


async def test_the_working_directory_is_made(rig: Rig) -> None:
    # RUN-08, EXE-29
    assert (await rig.stdout("pwd", working_directory="a/b")).endswith("/a/b\n")


async def test_a_program_of_the_input_root_and_of_the_path(rig: Rig) -> None:
    # RUN-09
    inputs = {"w": {"tool": b"#!/bin/sh\necho $1"}}
    action = await rig.cas.action("./tool", "x", inputs=inputs, working_directory="w")
    assert await rig.cas.get((await rig.result(action)).stdout_digest) == b"x\n"
    action = await rig.cas.action("echo", "y")
    assert await rig.cas.get((await rig.result(action)).stdout_digest) == b"y\n"


@pytest.mark.parametrize(
    ("program", "exit_code"), [("no-such-tool", 127), ("./absent", 127), ("./file", 126)]
)
async def test_a_program_that_cannot_be_started(rig: Rig, program: str, exit_code: int) -> None:
    # RUN-17
    outcome = await rig.run(
        await rig.cas.action(program, inputs={"file": b"x"}, output_paths=["file"])
    )
    assert isinstance(outcome.error, ProgramNotStarted)
    assert outcome.result.exit_code == exit_code
    stderr = (await rig.cas.get(outcome.result.stderr_digest)).decode()
    assert program in stderr
    assert stderr.endswith("\n")
    check_stamps(outcome.result.execution_metadata)
    assert rig.leftovers() == []


STAMPS = [
    "worker_start_timestamp",
    "input_fetch_start_timestamp",
    "input_fetch_completed_timestamp",
    "execution_start_timestamp",
    "execution_completed_timestamp",
    "output_upload_start_timestamp",
    "output_upload_completed_timestamp",
    "worker_completed_timestamp",
]


def check_stamps(metadata: reapi.ExecutedActionMetadata) -> None:
    # RUN-27, RUN-28
    assert metadata.worker == "executor-1"
    times = [getattr(metadata, name).ToNanoseconds() for name in STAMPS]
    assert times[0] > 0
    assert times == sorted(times)
    assert metadata.virtual_execution_duration.ToNanoseconds() == times[4] - times[3]


async def test_timestamps_and_the_call_at_the_start(rig: Rig) -> None:
    # RUN-27, RUN-28
    result = await rig.shell("true")
    check_stamps(result.execution_metadata)
    (started,) = rig.started
    assert started.worker == "executor-1"
    assert started.HasField("input_fetch_completed_timestamp")
    assert started.HasField("execution_start_timestamp")
    assert not started.HasField("execution_completed_timestamp")


async def test_a_timeout_keeps_what_there_is(rig: Rig) -> None:
    # RUN-19, RUN-21: what is written on TERM is kept as well.
    script = (
        "trap 'sleep 0.2; echo late; echo 2 > g; exit 3' TERM;"
        "echo early; echo err >&2; echo 1 > f;"
        "while :; do sleep 0.05; done"
    )
    action = await rig.cas.shell(script, timeout_seconds=0.3, output_paths=["f", "g"])
    outcome = await rig.run(action)
    assert isinstance(outcome.error, TimedOut)
    assert "0.3 s" in str(outcome.error)
    assert "executor-1" in str(outcome.error)
    assert await rig.cas.get(outcome.result.stdout_digest) == b"early\nlate\n"
    assert (await rig.cas.get(outcome.result.stderr_digest)).startswith(b"err\n")
    assert [file.path for file in outcome.result.output_files] == ["f", "g"]
    check_stamps(outcome.result.execution_metadata)
    assert rig.leftovers() == []


async def test_a_timeout_of_a_command_that_does_not_listen(rig: Rig) -> None:
    # RUN-19
    action = await rig.cas.shell("trap '' TERM; sleep 1000 & sleep 1000", timeout_seconds=0.1)
    outcome = await rig.run(action)
    assert isinstance(outcome.error, TimedOut)
    assert outcome.result.exit_code == 128 + signal.SIGKILL
    assert processes_in(rig.folder) == []


async def test_the_default_timeout(
    cas: Cas, strategy: Any, tmp_path: Path, open_rig: OpenRig
) -> None:
    # EXE-11
    settings = ExecutionSettings(default_timeout_seconds=0.1, termination_grace_seconds=0)
    async with open_rig(cas, strategy, tmp_path, settings) as rig:
        outcome = await rig.run(await cas.shell("sleep 1000"))
        assert isinstance(outcome.error, TimedOut)


async def test_a_timeout_above_the_limit_is_refused(
    cas: Cas, strategy: Any, tmp_path: Path, open_rig: OpenRig
) -> None:
    # EXE-10
    settings = ExecutionSettings(maximum_timeout_seconds=0.5)
    async with open_rig(cas, strategy, tmp_path, settings) as rig:
        with pytest.raises(InvalidRequest, match=r"0\.6 s is above this server's limit of 0\.5 s"):
            await rig.run(await cas.shell("true", timeout_seconds=0.6))
        assert not rig.started


def processes_in(folder: Path) -> list[int]:
    """The processes that work below `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            cwd = str(path.readlink())
        except OSError:
            continue
        if cwd.startswith(str(folder)):
            found.append(int(path.parent.name))
    return found


async def test_strays_are_dead_before_outputs_are_collected(rig: Rig) -> None:
    # RUN-22
    script = "(trap '' HUP TERM; while :; do echo x >> f; done) & (sleep 1000 &); echo done"
    result = await rig.shell(script, output_paths=["f"])
    assert await rig.cas.get(result.stdout_digest) == b"done\n"
    assert processes_in(rig.folder) == []


async def test_nothing_of_one_action_is_seen_by_the_next(rig: Rig) -> None:
    # RUN-25
    await rig.shell("touch $TMPDIR/x; touch y; mkdir ro; touch ro/z; chmod 555 ro; chmod 0 .")
    assert await rig.stdout("ls -A . $TMPDIR/.. | grep -c '[xyz]$' || true") == "0\n"
    assert rig.leftovers() == []


async def test_missing_inputs(rig: Rig) -> None:
    # EXE-04
    action = await rig.cas.action("true")
    absent = SHA256.digest(b"absent")
    action = type(action)(
        namespace="",
        digest=action.digest,
        action=action.action,
        command=action.command,
        input_root=absent,
        platform={},
        timeout_seconds=None,
    )
    with pytest.raises(InputsMissing) as caught:
        await rig.run(action)
    assert caught.value.digests == (absent,)
    assert rig.leftovers() == []


class Refusing(Sandbox):
    @asynccontextmanager
    async def enclose(self, spec: ProcessSpec) -> AsyncIterator[ProcessSpec]:
        if spec.argv:
            raise FailedPrecondition("cannot enclose")
        yield spec


class Marking(Sandbox):
    """Rewrites the command, and notes when it was left."""

    def __init__(self) -> None:
        self.left = 0

    @asynccontextmanager
    async def enclose(self, spec: ProcessSpec) -> AsyncIterator[ProcessSpec]:
        try:
            yield ProcessSpec(
                argv=("/bin/echo", "enclosed", *spec.argv),
                environment=spec.environment,
                root=spec.root,
                temporary_directory=spec.temporary_directory,
                stdout=spec.stdout,
                stderr=spec.stderr,
            )
        finally:
            self.left += 1


async def test_a_sandbox_that_cannot_enclose(cas: Cas, strategy: Any, tmp_path: Path) -> None:
    # ISO-11
    async with open_executor(
        name="e",
        blobs=cas.blobs,
        strategy=Enclosed(strategy, Refusing()),
        protocols={},
        folder=tmp_path,
        settings=ExecutionSettings(),
        worker_settings=WorkerSettings(),
    ) as executor:
        with pytest.raises(FailedPrecondition, match="cannot enclose"):
            await executor.run(await cas.action("true"), lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


async def test_the_sandbox_decides_what_is_started(cas: Cas, strategy: Any, tmp_path: Path) -> None:
    sandbox = Marking()
    async with open_executor(
        name="e",
        blobs=cas.blobs,
        strategy=Enclosed(strategy, sandbox),
        protocols={},
        folder=tmp_path,
        settings=ExecutionSettings(),
        worker_settings=WorkerSettings(),
    ) as executor:
        outcome = await executor.run(await cas.action("false"), lambda *_: None)
    assert outcome.result is not None
    assert await cas.get(outcome.result.stdout_digest) == b"enclosed false\n"
    assert sandbox.left == 1


async def test_a_full_store_is_no_result(
    strategy: Any, tmp_path: Path, open_rig: OpenRig, cas: Cas
) -> None:
    # RUN-24, RUN-33
    action = await cas.shell("head -c 100000 /dev/zero > f", output_paths=["f"])
    store = MemoryBlobStore(max_bytes=50_000)
    cas.blobs = VerifyingBlobStore(store)
    await cas.put(action.action.SerializeToString())
    await cas.directory({})
    async with open_rig(cas, strategy, tmp_path) as rig:
        with pytest.raises(StorageFull):
            await rig.run(action)
        assert rig.leftovers() == []


@pytest.mark.parametrize("name", ["life-abcdefgh", "actions", "workers"])
async def test_what_a_killed_server_left_is_swept(
    cas: Cas, strategy: Any, tmp_path: Path, open_rig: OpenRig, name: str
) -> None:
    left = tmp_path / name / "1" / "root" / "d"
    left.mkdir(parents=True)
    (left / "f").write_bytes(b"")
    left.chmod(0o500)
    async with open_rig(cas, strategy, tmp_path) as rig:
        assert await rig.stdout("ls -A | wc -l") == "0\n"
        await wait_until_removed(tmp_path / name)


async def wait_until_removed(path: Path) -> None:
    with trio.fail_after(60):
        while path.exists():  # a folder has no event
            await trio.sleep(0.01)


async def test_what_an_earlier_server_started_writes_nowhere_near(
    cas: Cas, strategy: Any, tmp_path: Path, open_rig: OpenRig
) -> None:
    # The orphan of a killed server goes on writing to the folder it knows, and makes it anew.
    roots = []
    for _ in range(2):
        async with open_rig(cas, strategy, tmp_path) as rig:
            roots.append((await rig.stdout("pwd")).strip())
    assert roots[0] != roots[1]
    orphan = await trio.lowlevel.open_process(
        ["sh", "-c", f"while :; do mkdir -p {roots[0]}; echo x > {roots[0]}/out; done"],
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(3):
            async with open_rig(cas, strategy, tmp_path) as rig:
                result = await rig.shell("sleep 0.05; ls -A", output_paths=["out"])
                assert not result.HasField("stdout_digest")
                assert not result.output_files
    finally:
        orphan.kill()
        await orphan.wait()


async def test_a_folder_that_withstands_is_removed_later(rig: Rig) -> None:
    root = (await rig.stdout("pwd; touch f; (chattr +i f || true) 2> /dev/null")).strip()
    immutable = Path(root) / "f"
    if not immutable.exists():
        pytest.skip("no file can be made immutable here")
    subprocess.run(["chattr", "-i", immutable], check=True)
    await wait_until_removed(immutable.parent.parent)


async def test_a_left_file_that_withstands_holds_up_nothing(
    cas: Cas, strategy: Any, tmp_path: Path, open_rig: OpenRig
) -> None:
    left = tmp_path / "life-abcdefgh"
    for name in ("a", "b", "c"):
        (left / name).mkdir(parents=True)
        (left / name / "file").write_text("")
    immutable = left / "b" / "file"
    if subprocess.run(["chattr", "+i", immutable], capture_output=True, check=False).returncode:
        pytest.skip("no file can be made immutable here")
    try:
        async with open_rig(cas, strategy, tmp_path) as rig:
            assert await rig.stdout("echo fine") == "fine\n"
            await wait_until_removed(left / "a")
            await wait_until_removed(left / "c")
            assert immutable.exists()
    finally:
        subprocess.run(["chattr", "-i", immutable], check=True)


async def test_a_folder_has_one_executor(
    rig: Rig, cas: Cas, strategy: Any, open_rig: OpenRig
) -> None:
    with pytest.raises(ConfigurationError, match="used by another executor"):
        async with open_rig(cas, strategy, rig.folder):
            pass
    assert await rig.stdout("echo fine") == "fine\n"


async def test_a_strategy_that_fails_is_no_result(
    cas: Cas, tmp_path: Path, open_rig: OpenRig
) -> None:
    # RUN-24
    class Failing(ExecutionStrategy):
        @asynccontextmanager
        async def start(self, spec: ProcessSpec) -> AsyncIterator[Process]:
            if spec.argv:
                raise Unavailable("no processes today")
            yield cast("Process", None)

    async with open_rig(cas, Failing(), tmp_path) as rig:
        with pytest.raises(Unavailable, match="no processes today"):
            await rig.run(await cas.action("true"))
        assert rig.leftovers() == []


@pytest.mark.parametrize("milliseconds", range(0, 60, 3))
async def test_cancellation_at_any_point_leaves_nothing(rig: Rig, milliseconds: int) -> None:
    action = await rig.cas.shell(
        "echo 1 > f; setsid sleep 1000 & (sleep 1000 &); sleep 1000",
        inputs={"d": {f"f{number}": b"%d" % number for number in range(50)}, "large": b"x" * 2**21},
        output_paths=["f"],
    )
    with trio.move_on_after(milliseconds / 1000) as scope:
        await rig.run(action)
    assert scope.cancelled_caught
    assert rig.leftovers() == []
    assert processes_in(rig.folder) == []


async def test_many_cancelled_at_once_leave_nothing(rig: Rig) -> None:
    action = await rig.cas.shell("setsid sleep 1000 & (sleep 1000 &); sleep 1000")
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(rig.run, action)
        while len(rig.started) < 15:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert rig.leftovers() == []
    assert processes_in(rig.folder) == []


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("replacement", ["", "mkdir", "mkfifo", "ln -s /etc/passwd"])
async def test_a_stream_that_is_taken_away_is_told(rig: Rig, stream: str, replacement: str) -> None:
    # RUN-13: never as if nothing had been written.
    replace = f"{replacement} ../{stream}" if replacement else ""
    action = await rig.cas.shell(
        f"echo lost; echo lost >&2; echo 1 > f; rm ../{stream}; {replace}", output_paths=["f"]
    )
    outcome = await rig.run(action)
    assert isinstance(outcome.error, FailedPrecondition)
    assert stream in str(outcome.error)
    assert not outcome.result.HasField(f"{stream}_digest")
    assert [file.path for file in outcome.result.output_files] == ["f"]


async def test_a_working_directory_that_leads_nowhere(rig: Rig) -> None:
    # RUN-08: asking again is of no use.
    inputs = {"l": "nothing"}
    action = await rig.cas.action("true", inputs=inputs, working_directory="l/d")
    with pytest.raises(FailedPrecondition, match="working directory l/d"):
        await rig.run(action)


def test_what_a_full_disk_cut_short_is_no_result(tmp_path: Path) -> None:
    # RUN-24: on a file system of 40 MiB, which only a namespace of its own lets us mount.
    mount = 'mount -t tmpfs -o size=40m tmpfs "$1" && shift && exec "$@"'
    enclosed = ["unshare", "-Urm", "sh", "-c", mount, "sh", str(tmp_path)]
    try:
        probe = subprocess.run([*enclosed, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if probe.returncode != 0:
        pytest.skip(f"no mount namespace: {probe.stderr.decode().strip()}")
    run = subprocess.run(
        [*enclosed, sys.executable, "-m", f"{__package__}.full_disk", str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "all is well\n"), run.stderr
