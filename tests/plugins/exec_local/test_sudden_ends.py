"""What is left when the launcher, a supervisor or the server is killed: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from stoker import spi
from stoker.testing.execution_strategy_laws import Witness, Workplace, outcome
from stoker_exec_local import LocalStrategy
from stoker_exec_local.hierarchies import find_places

from .conftest import OpenStrategy

# Ends by nothing but SIGKILL, and belongs to nobody.
DAEMON = "(setsid sh -c 'trap \"\" HUP TERM; echo ready >&9; sleep 1000' <&- >&- 2>&- &)"


def groups_of_strategies() -> list[Path]:
    places = find_places(
        Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
    )
    return [path for place in places for path in place.path.glob("stoker-[0-9]*")]


def groups_of(pid: int) -> list[Path]:
    return [path for path in groups_of_strategies() if path.name.split("-")[2] == str(pid)]


def script(witness: Witness) -> str:
    return f"exec 9>{witness.path}; {DAEMON}; sleep 1000"


async def test_a_killed_launcher_takes_all_with_it_and_another_follows(
    strategy: LocalStrategy, place: Workplace, witness: Witness
) -> None:
    launcher = await strategy.launcher()
    async with strategy.start(place.script(script(witness))) as process:
        await witness.wait_for("ready")
        os.kill(launcher.pid, signal.SIGKILL)
        with pytest.raises(spi.Unavailable, match="killed"), trio.fail_after(60):
            await process.wait()
    await witness.wait_until_all_are_gone()
    assert await outcome(strategy, place.script("exit 3")) == spi.Exit(3)
    assert (await strategy.launcher()).pid != launcher.pid


async def test_leaving_right_after_the_launcher_was_killed_leaves_nothing(
    strategy: LocalStrategy, place: Workplace, witness: Witness
) -> None:
    launcher = await strategy.launcher()
    async with strategy.start(place.script(script(witness))):
        await witness.wait_for("ready")
        os.kill(launcher.pid, signal.SIGKILL)
    await witness.wait_until_all_are_gone()


async def test_a_killed_supervisor_takes_its_process_with_it(
    open_local_strategy: OpenStrategy, place: Workplace, witness: Witness
) -> None:
    async with open_local_strategy(cgroups="never") as strategy:
        async with strategy.start(place.script(script(witness))) as process:
            await witness.wait_for("ready")
            status = Path(f"/proc/{process.name.removeprefix('process ')}/status").read_text()
            supervisor = int(status.split("PPid:")[1].split()[0])
            assert supervisor != (await strategy.launcher()).pid
            os.kill(supervisor, signal.SIGKILL)
            with pytest.raises(spi.Unavailable), trio.fail_after(60):
                await process.wait()
        await witness.wait_until_all_are_gone()
        assert await outcome(strategy, place.script("exit 3")) == spi.Exit(3)


@pytest.fixture(params=["auto", "never"])
async def server(
    request: pytest.FixtureRequest, tmp_path: Path, witness: Witness
) -> AsyncIterator[subprocess.Popen[bytes]]:
    folder = tmp_path / "server"
    folder.mkdir()
    program = str(Path(__file__).with_name("server.py"))
    arguments = [sys.executable, program, request.param, str(folder), script(witness)]
    with subprocess.Popen(arguments, start_new_session=True) as process:
        await witness.wait_for("ready")
        yield process
        process.kill()


async def test_a_killed_server_takes_all_with_it(  # ISO-09
    server: subprocess.Popen[bytes], witness: Witness
) -> None:
    server.kill()
    await witness.wait_until_all_are_gone()
    server.wait()
    with trio.fail_after(60):
        while groups_of(server.pid):  # a folder has no event
            await trio.sleep(0.01)


async def test_what_a_killed_server_and_launcher_left_is_swept_at_the_next_start(  # ISO-09
    server: subprocess.Popen[bytes], witness: Witness, open_local_strategy: OpenStrategy
) -> None:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    pids = [*map(int, children.split()), server.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    server.wait()
    async with open_local_strategy():
        assert groups_of(server.pid) == []
        await witness.wait_until_all_are_gone()


async def test_no_group_is_left_after_an_orderly_end(
    open_local_strategy: OpenStrategy, place: Workplace
) -> None:
    async with open_local_strategy() as strategy:
        with trio.move_on_after(0.2):
            async with strategy.start(place.script("sleep 1000 & sleep 1000")) as process:
                await process.wait()
        with pytest.raises(spi.ProgramNotStarted):
            async with strategy.start(place.spec("./absent")):
                pass
        assert [path for own in groups_of(os.getpid()) for path in own.glob("*/")] == []
    assert groups_of(os.getpid()) == []
