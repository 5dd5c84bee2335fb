"""What the local strategy promises beside the laws, with and without control groups."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from stoker import spi
from stoker.testing.execution_strategy_laws import (
    Witness,
    Workplace,
    outcome,
    run,
    without_usage,
)
from stoker_exec_local import LocalStrategy


async def test_output_files_are_private(strategy: spi.ExecutionStrategy, place: Workplace) -> None:
    await run(strategy, place.spec("true"))
    assert place.stdout.stat().st_mode & 0o777 == 0o600
    assert place.stderr.stat().st_mode & 0o777 == 0o600


async def test_a_start_that_is_told_with_the_end_is_told_when_it_was(
    strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    before_ns = time.monotonic_ns()
    async with strategy.start(place.spec("true")) as process:
        assert process.started_ns is not None
        assert before_ns <= process.started_ns <= time.monotonic_ns()
        assert without_usage(await process.wait()) == spi.Exit(0)
        assert process.has_exited


async def test_the_start_of_a_process_that_lasts_is_told_before_its_end(
    strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    async with strategy.start(place.spec("sleep", "1000")) as process:
        assert not process.has_exited


async def test_a_session_opened_below_a_living_parent_is_killed(
    strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
) -> None:
    text = f"exec 9>{witness.path}; setsid sh -c '(sleep 1000 &); echo ready >&9; sleep 1000'; :"
    async with strategy.start(place.script(text)):
        await witness.wait_for("ready")
    await witness.wait_until_all_are_gone()


async def test_a_session_opened_by_one_that_ends_with_its_stdin_is_killed(
    strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
) -> None:
    text = f"(exec 9>{witness.path}; setsid sh -c 'echo ready >&9; sleep 1000' <&- >&-) & cat"
    async with strategy.start(place.spec("sh", "-c", text, pipes=True)) as process:
        await witness.wait_for("ready")
        assert process.stdin is not None
        await process.stdin.aclose()
        assert without_usage(await process.wait()) == spi.Exit(0)
    await witness.wait_until_all_are_gone()


async def test_a_group_of_its_own_does_not_save_an_orphan(
    strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
) -> None:
    # `timeout` makes itself the leader of a group.
    text = f"exec 9>{witness.path}; timeout 1000 sh -c 'echo ready >&9; sleep 1000' & sleep 1000"
    async with strategy.start(place.script(text)) as process:
        await witness.wait_for("ready")
        os.kill(int(process.name.removeprefix("process ")), signal.SIGKILL)
        await process.wait()
    await witness.wait_until_all_are_gone()


async def test_a_process_that_lives_on_in_its_threads_is_killed(
    strategy: spi.ExecutionStrategy, place: Workplace, witness: Witness
) -> None:
    program = (
        "import ctypes, threading, time\n"
        f"witness = open({str(witness.path)!r}, 'w')\n"
        "def run():\n"
        "    time.sleep(0.05)\n"
        "    print('ready', file=witness, flush=True)\n"
        "    time.sleep(1000)\n"
        "threading.Thread(target=run).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)  # the exit of one thread\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("the number of the system call is that of x86_64")
    async with strategy.start(place.spec("python3", "-c", program)):
        await witness.wait_for("ready")
    await witness.wait_until_all_are_gone()


async def test_an_action_ends_before_the_server_when_the_machine_is_out_of_memory(
    strategy: LocalStrategy, place: Workplace
) -> None:
    await run(strategy, place.spec("cat", "/proc/self/oom_score_adj"))
    assert place.stdout.read_text() == "500\n"
    own = Path("/proc/self/oom_score_adj").read_text()
    launcher = await strategy.launcher()
    assert Path(f"/proc/{launcher.pid}/oom_score_adj").read_text() == own


async def test_an_ended_process_is_reaped(
    strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    async with strategy.start(place.spec("true")) as process:
        pid = int(process.name.removeprefix("process "))
        await process.wait()
    assert not Path(f"/proc/{pid}").exists()


async def test_no_descriptor_is_left(strategy: spi.ExecutionStrategy, place: Workplace) -> None:
    await run(strategy, place.spec("true"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        await run(strategy, place.spec("true"))
        await run(strategy, place.spec("true", pipes=True))
        with pytest.raises(spi.ProgramNotStarted):
            await run(strategy, place.spec("./absent", pipes=True))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_programs_written_a_moment_ago_start(  # RUN-18
    strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    true = shutil.which("true")
    assert true is not None
    content = Path(true).read_bytes()

    async def write_and_run(number: int) -> None:
        def write() -> None:
            place.program(f"tool{number}", content)

        for _ in range(5):
            await trio.to_thread.run_sync(write)
            assert await outcome(strategy, place.spec(f"./tool{number}")) == spi.Exit(0)

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(write_and_run, number)


async def test_a_program_held_open_for_writing_is_a_passing_trouble(  # RUN-18
    strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    tool = place.program("tool", b"#!/bin/sh\n")
    with tool.open("ab"), pytest.raises(spi.Unavailable, match="writing"):
        await run(strategy, place.spec("./tool"))
    assert await outcome(strategy, place.spec("./tool")) == spi.Exit(0)


@pytest.mark.parametrize("target", ["nothing", "l", "file", "file/below"])
@pytest.mark.parametrize("working_directory", ["l", "l/d"])
async def test_a_working_directory_that_leads_nowhere_is_the_fault_of_the_request(
    strategy: spi.ExecutionStrategy, place: Workplace, target: str, working_directory: str
) -> None:
    # RUN-08: trying again elsewhere would not help.
    (place.root / "file").write_text("")
    (place.root / "l").symlink_to(target)
    with pytest.raises(spi.FailedPrecondition, match=f"working directory {working_directory} "):
        await run(strategy, place.spec("true", working_directory=working_directory))


async def test_a_missing_root_is_nobodys_fault(
    strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    spec = replace(place.spec("true"), root=place.root / "absent")
    with pytest.raises(spi.Unavailable, match="absent"):
        await run(strategy, spec)


@pytest.mark.parametrize("mode", [0o644, 0o755])
async def test_a_fifo_is_no_program(
    strategy: spi.ExecutionStrategy, place: Workplace, mode: int
) -> None:
    # RUN-17
    os.mkfifo(place.root / "fifo")
    (place.root / "fifo").chmod(mode)
    with pytest.raises(spi.ProgramNotStarted, match="not a regular file") as caught:
        await run(strategy, place.spec("./fifo"))
    assert caught.value.exit_code == 126


@pytest.mark.parametrize(
    ("program", "path"),
    [
        ("x" * 300, "/bin"),
        ("x" * 5000, "/bin"),
        ("/" + "x" * 300, "/bin"),
        ("/" + "x" * 5000, "/bin"),
        ("absent", "/" + "x" * 300),
        ("absent", ":".join(["/" + "x" * 300] * 100)),
    ],
    ids=["name", "very-long-name", "path", "very-long-path", "PATH", "very-long-PATH"],
)
async def test_what_is_too_long_for_any_disk_is_not_there(
    strategy: spi.ExecutionStrategy, place: Workplace, program: str, path: str
) -> None:
    # RUN-17
    spec = replace(place.spec(program), environment={"PATH": path})
    with pytest.raises(spi.ProgramNotStarted) as caught:
        await run(strategy, spec)
    assert caught.value.exit_code in (126, 127)
    assert len(str(caught.value)) < 1100


async def test_an_output_file_that_cannot_be_opened_is_named(
    strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    with pytest.raises(spi.Unavailable, match="absent"):
        await run(strategy, place.spec("true", stdout=place.root / "absent" / "stdout"))


async def test_too_long_arguments_are_the_fault_of_the_command(
    strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    with pytest.raises(spi.ProgramNotStarted, match="too long") as caught:
        await run(strategy, place.spec("true", "x" * 4_000_000))
    assert caught.value.exit_code == 126
