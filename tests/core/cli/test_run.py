"""`stoker run` as a program, on a whole server that executes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from stoker.testing.server import EXECUTING, MEMORY_ONLY, open_test_server

Stoker = Callable[..., Awaitable["subprocess.CompletedProcess[bytes]"]]


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    (tmp_path / "server").mkdir()
    async with open_test_server(EXECUTING, tmp_path / "server") as server:
        yield server.address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def command_line(address: str, *arguments: object) -> list[str]:
    words = [sys.executable, "-m", "stoker", "run", "--server", address]
    return [*words, *map(str, arguments)]


@pytest.fixture
def run(address: str, folder: Path) -> Stoker:
    async def run_stoker(*arguments: object) -> subprocess.CompletedProcess[bytes]:
        return await trio.run_process(
            command_line(address, *arguments),
            cwd=folder,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )

    return run_stoker


async def test_output_passes_byte_for_byte_and_the_exit_code_is_the_commands(
    run: Stoker,
) -> None:
    done = await run("--", "sh", "-c", r"printf '\0\377out'; printf 'err\n' >&2; exit 42")
    assert (done.returncode, done.stdout) == (42, b"\0\xffout")
    assert b"err\n" in done.stderr
    assert b"exit code 42" in done.stderr
    assert b"--output" in done.stderr


async def test_a_large_stdout_passes_whole(run: Stoker) -> None:
    done = await run("--", "head", "-c", "10000000", "/dev/zero")
    assert done.stdout == bytes(10_000_000)


async def test_the_folder_goes_there_and_outputs_come_back(run: Stoker, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "in").write_text("input")
    (folder / "tool").write_text("#!/bin/sh\ncat sub/in > sub/out; mkdir -p d/e; ln -s x d/e/f\n")
    (folder / "tool").chmod(0o755)
    done = await run("--output", "sub/out", "--output", "d", "--", "./tool")
    assert done.returncode == 0, done.stderr
    assert (folder / "sub" / "out").read_text() == "input"
    assert (folder / "d" / "e" / "f").readlink() == Path("x")


async def test_outputs_are_relative_to_the_working_directory(run: Stoker, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "keep").write_text("")
    done = await run(
        "--working-directory", "sub", "--output", "out", "--", "sh", "-c", "echo made > out"
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "sub" / "out").read_text() == "made\n"


async def test_what_is_excluded_stays_here(run: Stoker, folder: Path) -> None:
    for name in ("seen", "hidden.log"):
        (folder / name).write_text("")
    done = await run("--exclude", "*.log", "--", "ls")
    assert done.stdout == b"seen\n"


async def test_the_environment_arrives(run: Stoker) -> None:
    done = await run("--env", "A=1=2", "--env", "B=", "--", "sh", "-c", 'echo "$A,${B-unset}"')
    assert done.stdout == b"1=2,\n"


async def test_a_property_that_no_executor_has_is_refused(run: Stoker) -> None:
    assert (await run("--property", "OSFamily=linux", "--", "true")).returncode == 0
    done = await run("--property", "OSFamily=plan9", "--", "true")
    assert done.returncode == 1
    assert b"OSFamily" in done.stderr
    assert b"Traceback" not in done.stderr


async def test_a_second_run_comes_from_the_cache_unless_told_otherwise(run: Stoker) -> None:
    command = ("--json", "--", "echo", "hello")
    cached = [json.loads((await run(*command)).stdout)["cached"] for _ in range(2)]
    assert cached == [False, True]
    again = await run("--no-cache", *command)
    assert json.loads(again.stdout)["cached"] is False


async def test_json_tells_all(run: Stoker) -> None:
    done = await run("--json", "--output", "out", "--", "sh", "-c", "echo o; echo e >&2; echo>out")
    facts = json.loads(done.stdout)
    assert facts["exit_code"] == 0
    assert (facts["stdout"], facts["stderr"]) == ("o\n", "e\n")
    assert facts["outputs"] == {"files": 1, "size_bytes": 1}
    assert facts["executor"]


async def test_a_timeout_is_told_with_what_was_printed_so_far(run: Stoker) -> None:
    done = await run("--timeout", "1", "--", "sh", "-c", "echo so far; sleep 1000")
    assert (done.returncode, done.stdout) == (1, b"so far\n")
    assert b"timeout" in done.stderr


async def test_a_program_that_is_not_there_is_named(run: Stoker) -> None:
    done = await run("--", "no-such-program")
    assert done.returncode == 1
    assert b"no-such-program" in done.stderr
    assert b"Traceback" not in done.stderr


async def test_an_interrupt_stops_the_action_too(address: str, folder: Path) -> None:
    pipe = folder.parent / "pipe"
    os.mkfifo(pipe)
    reader = trio.lowlevel.FdStream(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
    own_writer = os.open(pipe, os.O_WRONLY)
    command = ("--", "sh", "-c", f"exec 9>{pipe}; echo started >&9; sleep 1000")
    process = await trio.lowlevel.open_process(
        command_line(address, *command), cwd=folder, stderr=subprocess.DEVNULL
    )
    with trio.fail_after(60):
        assert await reader.receive_some() == b"started\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        os.close(own_writer)
        assert await reader.receive_some() == b""  # the last process that held it is gone
    await reader.aclose()


async def test_an_instance_that_only_caches_says_so(tmp_path: Path) -> None:
    async with open_test_server(MEMORY_ONLY, tmp_path) as server:
        done = await trio.run_process(
            command_line(server.address, "--", "true"), capture_stderr=True, check=False
        )
    assert done.returncode == 1
    assert b"does not execute" in done.stderr
    assert b"Traceback" not in done.stderr


async def test_an_instance_that_is_not_there_is_named(run: Stoker) -> None:
    done = await run("--instance", "elsewhere", "--", "true")
    assert done.returncode == 1
    assert b"'elsewhere'" in done.stderr


@pytest.mark.parametrize(
    "option", [("--env", "A"), ("--property", "=x"), ("--timeout", "0"), ("--no-such",)]
)
async def test_wrong_options_are_wrong_usage(run: Stoker, option: tuple[str, ...]) -> None:
    assert (await run(*option, "--", "true")).returncode == 2


async def test_an_output_that_was_not_produced_is_told(run: Stoker) -> None:
    script = "echo > there; mkdir d; ln -s x l; exit 3"
    names = ("there", "d", "l", "absent")
    outputs = [word for name in names for word in ("--output", name)]
    done = await run(*outputs, "--", "sh", "-c", script)
    assert done.returncode == 3
    assert done.stderr.count(b"Warning") == 1
    assert b"Warning: output absent was not produced" in done.stderr


async def test_an_output_whose_place_is_taken_by_a_folder_is_named(
    run: Stoker, folder: Path
) -> None:
    (folder / "taken").mkdir()
    for script in ("rm -r taken; echo > taken", "rm -r taken; ln -s x taken"):
        done = await run("--output", "taken", "--", "sh", "-c", script)
        assert done.returncode == 1
        assert b"output taken cannot be written" in done.stderr
        assert b".part" not in done.stderr
        assert [path.name for path in folder.iterdir()] == ["taken"]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("option", [(), ("--json",)])
async def test_closed_streams_are_left_alone(
    address: str, folder: Path, closed: str, option: tuple[str, ...]
) -> None:
    command = command_line(address, *option, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    done = await trio.run_process(
        ["sh", "-c", f'"$@" {closed}', "sh", *command],
        cwd=folder,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (7, False), done.stderr
    if not option and closed == "2>&-":
        assert done.stdout == b"out\n"


async def test_a_server_without_tls_is_told_apart(address: str, folder: Path) -> None:
    done = await trio.run_process(
        command_line(f"grpcs://{address}", "--", "true"),
        cwd=folder,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"not available: it does not speak TLS" in done.stderr
