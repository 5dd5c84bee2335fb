"""What processes are held to, and what becomes known when they break it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from stoker.errors import InvalidRequest, TimedOut
from stoker.execution.limited import Limited
from stoker.execution.settings import ExecutionSettings
from stoker.spi import (
    ExecutionStrategy,
    Exit,
    Limits,
    Process,
    ProcessSpec,
    ResourceUsage,
)
from stoker_worker_json import JsonProtocol

Rig = Any
Cas = Any
OpenRig = Callable[..., Any]

USAGE = ResourceUsage(user_seconds=1.5, system_seconds=0.25, peak_memory_bytes=2**30)
BREACH = "out of memory: the limit is 1073741824 bytes, and 1073741824 were used"


class Accounted(Process):
    """A real process, of which more is known at its end."""

    def __init__(self, process: Process, breach: str) -> None:
        self.name, self.stdin, self.stdout = process.name, process.stdin, process.stdout
        self._process = process
        self._breach = breach

    async def wait(self) -> Exit:
        return (await self._process.wait())._replace(breach=self._breach, usage=USAGE)

    def terminate(self) -> None:
        self._process.terminate()


class Accounting(ExecutionStrategy):
    """Starts real processes, remembers their limits, and tells of a breach where it should."""

    def __init__(self, strategy: ExecutionStrategy, breach: str = "") -> None:
        self._strategy = strategy
        self._breach = breach
        self.limits: list[Limits] = []

    @asynccontextmanager
    async def start(self, spec: ProcessSpec) -> AsyncIterator[Process]:
        self.limits.append(spec.limits)
        async with self._strategy.start(spec) as process:
            yield Accounted(process, self._breach)


def facts_of(outcome: Any) -> dict[str, object]:
    facts: dict[str, object] = {}
    for told in outcome.result.execution_metadata.auxiliary_metadata:
        message = Struct()
        assert told.Unpack(message)
        facts |= dict(message.items())
    return facts


async def test_what_was_used_is_told(  # RUN-29
    cas: Cas, strategy: ExecutionStrategy, tmp_path: Path, open_rig: OpenRig
) -> None:
    async with open_rig(cas, Accounting(strategy), tmp_path) as rig:
        outcome = await rig.run(await cas.shell("true"))
    assert facts_of(outcome) == {
        "user_seconds": 1.5,
        "system_seconds": 0.25,
        "peak_memory_bytes": 2**30,
    }
    assert (outcome.message, outcome.reusable) == ("", True)


async def test_a_signal_is_told_by_name(rig: Rig) -> None:  # RUN-15, RUN-29
    assert facts_of(await rig.run(await rig.cas.shell("kill -SEGV $$")))["signal"] == "SIGSEGV"


async def test_a_breach_names_limit_and_executor_and_is_not_reusable(  # RUN-23, RUN-31
    cas: Cas, strategy: ExecutionStrategy, tmp_path: Path, open_rig: OpenRig
) -> None:
    async with open_rig(cas, Accounting(strategy, BREACH), tmp_path) as rig:
        outcome = await rig.run(
            await cas.shell("echo said; echo 1 > f; kill -9 $$", output_paths=["f"])
        )
    assert (outcome.error, outcome.reusable, outcome.result.exit_code) == (None, False, 137)
    assert outcome.message == f"the command was ended on executor executor-1: {BREACH}"
    assert facts_of(outcome)["breach"] == BREACH
    assert facts_of(outcome)["signal"] == "SIGKILL"
    assert await cas.get(outcome.result.stdout_digest) == b"said\n"
    assert [file.path for file in outcome.result.output_files] == ["f"]


async def test_a_timeout_tells_what_was_used(
    cas: Cas, strategy: ExecutionStrategy, tmp_path: Path, open_rig: OpenRig
) -> None:
    async with open_rig(cas, Accounting(strategy), tmp_path) as rig:
        outcome = await rig.run(await cas.shell("sleep 100", timeout_seconds=0.1))
    assert isinstance(outcome.error, TimedOut)
    assert facts_of(outcome)["peak_memory_bytes"] == 2**30


SETTINGS = ExecutionSettings(default_memory_bytes=100_000_000, max_processes=50)


@pytest.mark.parametrize(
    ("platform", "settings", "limits"),
    [
        ({}, ExecutionSettings(), Limits(processes=4096)),
        ({}, SETTINGS, Limits(memory_bytes=100_000_000, processes=50)),
        ({"memory": "50MB"}, SETTINGS, Limits(memory_bytes=50_000_000, processes=50)),
        ({"cpus": "2"}, SETTINGS, Limits(memory_bytes=100_000_000, processes=50)),
        ({"cpus": "2"}, ExecutionSettings(enforce_cpus=True), Limits(cpus=2.0, processes=4096)),
        ({}, ExecutionSettings(enforce_cpus=True), Limits(processes=4096)),
    ],
)
async def test_a_process_gets_the_limits_of_its_action(
    cas: Cas,
    strategy: ExecutionStrategy,
    tmp_path: Path,
    open_rig: OpenRig,
    platform: dict[str, str],
    settings: ExecutionSettings,
    limits: Limits,
) -> None:
    seen = Accounting(strategy)
    async with open_rig(cas, Limited(seen, settings), tmp_path) as rig:
        await rig.result(await cas.action("true", platform=platform))
    assert seen.limits == [limits]


TOOL = b"""#!/usr/bin/python3
import json, sys
if "--persistent_worker" in sys.argv:
    for line in sys.stdin:
        print(json.dumps({"exitCode": 0, "output": "as a worker"}), flush=True)
"""


async def test_so_does_a_persistent_worker(
    cas: Cas, strategy: ExecutionStrategy, tmp_path: Path, open_rig: OpenRig
) -> None:
    seen = Accounting(strategy)
    protocols = {"json": JsonProtocol()}
    platform = {
        "persistentWorkerKey": "k",
        "persistentWorkerProtocol": "json",
        "memory": "1GiB",
    }
    action = await cas.action(
        "./tool", "@args", inputs={"tool": TOOL, "args": b"x\n"}, platform=platform
    )
    async with open_rig(cas, Limited(seen, SETTINGS), tmp_path, protocols=protocols) as rig:
        result = await rig.result(action)
    assert await cas.get(result.stderr_digest) == b"as a worker"
    assert seen.limits == [Limits(memory_bytes=2**30, processes=50)]


async def test_a_platform_that_asks_for_no_amount(
    cas: Cas, strategy: ExecutionStrategy, tmp_path: Path, open_rig: OpenRig
) -> None:
    async with open_rig(cas, Limited(strategy, SETTINGS), tmp_path) as rig:
        with pytest.raises(InvalidRequest, match="memory='much'"):
            await rig.run(await cas.action("true", platform={"memory": "much"}))
    assert rig.leftovers() == []
