"""Singleplex, multiplex and sandboxed multiplex workers: real processes in real folders."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from stoker.action import LoadedAction
from stoker.errors import TimedOut, Unavailable
from stoker.workers.settings import WorkerSettings
from stoker_worker_json import JsonProtocol

Rig = Any
Cas = Any
Outcome = Any

TOOL = Path(__file__).with_name("multiplex_tool.py").read_bytes()

SINGLEPLEX = {
    "persistentWorkerKey": "k",
    "persistentWorkerProtocol": "json",
    "supports-worker-cancellation": "1",
}
MULTIPLEX = {**SINGLEPLEX, "supports-multiplex-workers": "1"}
SANDBOXED = {**MULTIPLEX, "supports-multiplex-sandboxing": "1"}
MODES = pytest.mark.parametrize("platform", [SINGLEPLEX, MULTIPLEX, SANDBOXED])


@pytest.fixture
async def modes(cas: Cas, strategy: Any, tmp_path: Path, open_rig: Any) -> AsyncIterator[Rig]:
    async with open_rig(
        cas,
        strategy,
        tmp_path / "executor",
        protocols={"json": JsonProtocol()},
        # So that nobody gets another one while the first recovers.
        worker_settings=WorkerSettings(max_workers_per_key=1, shutdown_grace_seconds=1),
    ) as rig:
        yield rig


async def work(
    cas: Cas,
    platform: Mapping[str, str],
    *lines: str,
    inputs: Mapping[str, Any] | None = None,
    **fields: Any,
) -> LoadedAction:
    args = "".join(f"{line}\n" for line in lines).encode()
    # By its content, so that actions may be in flight together.
    flags = f"args{abs(hash(args))}"
    action: LoadedAction = await cas.action(
        "./tool",
        f"@{flags}",
        inputs={"tool": TOOL, flags: args, **(inputs or {})},
        platform=platform,
        **fields,
    )
    return action


async def said(rig: Rig, action: LoadedAction) -> list[str]:
    outcome = await rig.run(action)
    assert (outcome.error, outcome.message) == (None, "")
    text: bytes = await rig.cas.get(outcome.result.stderr_digest)
    return text.decode().split("\n")


async def output_of(rig: Rig, outcome: Outcome) -> Mapping[str, bytes]:
    return {file.path: await rig.cas.get(file.digest) for file in outcome.result.output_files}


async def all_at_once(rig: Rig, actions: list[LoadedAction]) -> list[Outcome]:
    outcomes: list[Outcome] = []

    async def run(action: LoadedAction) -> None:
        outcomes.append(await rig.run(action))

    async with trio.open_nursery() as nursery:
        for action in actions:
            nursery.start_soon(run, action)
    return outcomes


@MODES
async def test_nothing_of_a_request_is_left_to_the_next(
    modes: Rig, platform: Mapping[str, str]
) -> None:
    # PWK-13, WORKERS 8.14
    first = await work(
        modes.cas,
        platform,
        *("pid", "inode", "temporary mine", "write out 1", "write stray 2", "write a changed"),
        inputs={"a": b"1", "d": {"b": b"2"}},
        output_paths=["out"],
    )
    pid, inode, temporary = await said(modes, first)
    second = await work(
        modes.cas,
        platform,
        *("pid", "inode", "temporary mine", "read a", "list"),
        inputs={"a": b"1", "c": b"3"},
    )
    again = await said(modes, second)
    assert again[:4] == [pid, inode, temporary, "1"], "the same process, folder and inputs"
    assert temporary == "", "its TMPDIR was wiped"
    assert [name for name in again[4:] if not name.startswith("args")] == ["a", "c", "tool"]


async def test_a_sandboxed_request_is_told_where_its_files_are(modes: Rig) -> None:
    # PWK-14: the working directory is part of it, and paths of inputs do not name it.
    action = await work(
        modes.cas, SANDBOXED, "where", "write out/x 1", output_paths=["out/x"], inputs={"a": b""}
    )
    outcome = await modes.run(action)
    assert (await modes.cas.get(outcome.result.stderr_digest)) == b"__sandbox/1"
    assert await output_of(modes, outcome) == {"out/x": b"1"}
    below = await modes.cas.action(
        "../tool",
        "@flags",
        inputs={"tool": TOOL, "w": {"flags": b"where\nread a\n", "a": b"here"}},
        platform=SANDBOXED,
        working_directory="w",
    )
    assert await said(modes, below) == ["__sandbox/1/w", "here"]


@MODES
async def test_a_deadline_costs_no_worker_that_can_be_told(
    modes: Rig, platform: Mapping[str, str], tmp_path: Path
) -> None:
    # PWK-15, RUN-19, WORKERS 8.7, 8.8
    (pid,) = await said(modes, await work(modes.cas, platform, "pid"))
    late = await work(
        modes.cas,
        platform,
        *("write out 1", f"hang {tmp_path}/begun"),
        timeout_seconds=0.3,
        output_paths=["out"],
    )
    outcome = await modes.run(late)
    assert isinstance(outcome.error, TimedOut)
    assert await output_of(modes, outcome) == {"out": b"1"}
    assert await said(modes, await work(modes.cas, platform, "pid", inputs={"a": b""})) == [pid]


@MODES
async def test_outputs_of_a_late_request_are_taken_once_nobody_writes_them(
    modes: Rig, platform: Mapping[str, str]
) -> None:
    # RUN-19: the worker is told, and is at it until it has said that it has stopped.
    late = await work(modes.cas, platform, "finish o", timeout_seconds=0.3, output_paths=["o"])
    outcome = await modes.run(late)
    assert isinstance(outcome.error, TimedOut)
    assert await output_of(modes, outcome) == {"o": b"whole"}


@pytest.mark.parametrize("mode", [SINGLEPLEX, MULTIPLEX, SANDBOXED])
async def test_who_cannot_be_told_is_gone_before_its_outputs_are_taken(
    modes: Rig, mode: Mapping[str, str], tmp_path: Path
) -> None:
    # RUN-19
    platform = {**mode, "supports-worker-cancellation": "0"}
    (pid,) = await said(modes, await work(modes.cas, platform, "pid"))
    lines = ("write o 1", f"hang {tmp_path}/begun")
    late = await work(modes.cas, platform, *lines, timeout_seconds=0.3, output_paths=["o"])
    outcome = await modes.run(late)
    assert isinstance(outcome.error, TimedOut)
    assert not Path(f"/proc/{pid}").exists()
    assert await output_of(modes, outcome) == {"o": b"1"}


@pytest.mark.parametrize("mode", [MULTIPLEX, SANDBOXED])
async def test_no_outputs_are_taken_while_a_process_that_cannot_be_told_goes_on(
    modes: Rig, mode: Mapping[str, str], tmp_path: Path
) -> None:
    # RUN-19, WORKERS 8.7
    platform = {**mode, "supports-worker-cancellation": "0"}
    place = tmp_path / "place"
    place.mkdir()
    meet = await work(modes.cas, platform, f"meet {place} 2", output_paths=["x"])
    lines = ("write o 1", f"hang {tmp_path}/begun")
    late = await work(modes.cas, platform, *lines, timeout_seconds=0.5, output_paths=["o"])
    outcomes: list[Outcome] = []

    async def other() -> None:
        outcomes.append(await modes.run(meet))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        while not any(place.iterdir()):
            await trio.sleep(0.005)
        outcome = await modes.run(late)
        assert isinstance(outcome.error, TimedOut)
        assert await output_of(modes, outcome) == {}
        assert "no outputs are taken" in outcome.message
        (place / "second").touch()
    assert (outcomes[0].error, outcomes[0].message) == (None, "")


@MODES
async def test_cancellation_costs_no_worker_that_can_be_told(
    modes: Rig, platform: Mapping[str, str], tmp_path: Path
) -> None:
    # PWK-15, WORKERS 8.8
    (pid,) = await said(modes, await work(modes.cas, platform, "pid"))
    begun = tmp_path / "begun"
    async with trio.open_nursery() as nursery:
        action = await work(
            modes.cas, platform, "write stray 1", f"hang {begun}", output_paths=["stray"]
        )
        nursery.start_soon(modes.run, action)
        while not begun.exists():
            await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    # Until the worker has answered, what the request was to write is still its own.
    after = await work(modes.cas, platform, "pid", "read stray", inputs={"stray": b"mine"})
    assert await said(modes, after) == [pid, "mine"]


@pytest.mark.slow
async def test_a_folder_that_withstands_is_removed_as_soon_as_it_can_be(
    modes: Rig, tmp_path: Path
) -> None:
    # RUN-22
    (pid,) = await said(modes, await work(modes.cas, SINGLEPLEX, "pid"))
    (tool,) = tmp_path.glob("executor/life-*/workers/worker-1/root/tool")
    if subprocess.run(["chattr", "+i", tool], capture_output=True, check=False).returncode:
        pytest.skip("no file can be made immutable here")
    os.kill(int(pid), signal.SIGKILL)
    with trio.fail_after(20):
        while modes.executor.workers.report().keys[0].workers:
            await trio.sleep(0.01)
    assert tool.exists()
    subprocess.run(["chattr", "-i", tool], check=True)
    with trio.fail_after(20):
        while tool.parents[1].exists():
            await trio.sleep(0.02)


@pytest.mark.parametrize("platform", [MULTIPLEX, SANDBOXED])
async def test_requests_are_in_flight_together(
    modes: Rig, platform: Mapping[str, str], tmp_path: Path
) -> None:
    # WORKERS 8.7
    place = tmp_path / "place"
    place.mkdir()
    actions = [
        await work(
            modes.cas,
            platform,
            *(f"write o{n} {n}", f"meet {place} 4", "read shared", f"read own{n}", "pid"),
            inputs={"shared": b"s", f"own{n}": b"%d" % n, "d": {f"f{n}": b"", "g": b""}},
            output_paths=[f"o{n}"],
        )
        for n in range(4)
    ]
    pids = set()
    with trio.fail_after(20):
        for outcome in await all_at_once(modes, actions):
            assert outcome.message == ""
            ((path, data),) = (await output_of(modes, outcome)).items()
            assert path == f"o{data.decode()}"
            said = (await modes.cas.get(outcome.result.stderr_digest)).decode().split()
            assert said[:2] == ["s", data.decode()]
            pids.add(said[2])
    assert len(pids) == 1, "one process has served all"
    # PWK-13: once nothing is in flight, nothing of them is left.
    listed = await work(modes.cas, platform, "list")
    (outcome,) = await all_at_once(modes, [listed])
    names = (await modes.cas.get(outcome.result.stderr_digest)).decode().split()
    assert [name for name in names if not name.startswith("args")] == ["tool"]


@pytest.mark.parametrize("platform", [MULTIPLEX, SANDBOXED])
async def test_requests_that_disagree_each_see_their_own(
    modes: Rig, platform: Mapping[str, str]
) -> None:
    actions = [
        await work(
            modes.cas,
            platform,
            f"write out {n}",
            "read a",
            inputs={"a": b"%d" % n},
            output_paths=["out"],
        )
        for n in range(6)
    ]
    with trio.fail_after(20):
        outcomes = await all_at_once(modes, actions)
    seen = []
    for outcome in outcomes:
        data = (await output_of(modes, outcome))["out"]
        assert await modes.cas.get(outcome.result.stderr_digest) == data
        seen.append(data)
    assert sorted(seen) == [b"%d" % n for n in range(6)]


@pytest.mark.parametrize(("retries", "fallback"), [(0, True), (2, True), (1, False)])
async def test_a_worker_that_dies_again_and_again(
    cas: Cas, strategy: Any, tmp_path: Path, open_rig: Any, retries: int, fallback: bool
) -> None:
    # PWK-10, RUN-24, WORKERS 8.6
    settings = WorkerSettings(retries=retries, one_shot_fallback=fallback, shutdown_grace_seconds=1)
    tool = b"""#!/bin/sh
case $2 in --persistent_worker) echo words >&2; read x; exit 3;; esac; echo alone"""
    action = await cas.action(
        "./tool", "x", "@flags", inputs={"tool": tool, "flags": b""}, platform=SINGLEPLEX
    )
    async with open_rig(
        cas,
        strategy,
        tmp_path / "executor",
        protocols={"json": JsonProtocol()},
        worker_settings=settings,
    ) as rig:
        outcome = await rig.run(action)
    names = [f"worker-{n}-tool" for n in range(1, retries + 2)]
    # PWK-08
    assert sorted(outcome.server_logs) == [f"{name}.log" for name in names]
    for log in outcome.server_logs.values():
        assert log.human_readable
        assert await cas.get(log.digest) == b"words\n"
    assert all(f"{name} " in outcome.message for name in names)
    if fallback:
        assert outcome.error is None
        assert await cas.get(outcome.result.stdout_digest) == b"alone\n"
    else:
        assert isinstance(outcome.error, Unavailable)
        assert "words" in str(outcome.error)
        assert outcome.result is None
