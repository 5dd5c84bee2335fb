"""What the operator and the strategy say of workers reaches the executor's plans."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from stoker.action import LoadedAction, Outcome
from stoker.execution.executor import Executor, open_executor
from stoker.execution.settings import ExecutionSettings
from stoker.spi import ExecutionStrategy, Process, ProcessSpec
from stoker.workers.settings import WorkerRule, WorkerSettings
from stoker_worker_json import JsonProtocol

Cas = Any

TOOL = b"""#!/usr/bin/env python3
import json, os, sys

told = " ".join([str(os.getpid()), *sys.argv[1:]])
if "--persistent_worker" not in sys.argv:
    sys.exit(told)
for line in sys.stdin:
    verbosity = json.loads(line).get("verbosity", 0)
    print(json.dumps({"output": f"{told} verbosity={verbosity}"}), flush=True)
"""


class Elsewhere(ExecutionStrategy):
    """A strategy whose image can be made another one."""

    def __init__(self, strategy: ExecutionStrategy) -> None:
        self._strategy = strategy
        self.image = "sha256:1"

    async def identify_surroundings(self, properties: Mapping[str, tuple[str, ...]]) -> str:
        return f"{self.image} of {properties.get('container-image', ())}"

    def start(self, spec: ProcessSpec) -> AbstractAsyncContextManager[Process]:
        return self._strategy.start(spec)


def executor(
    cas: Cas,
    strategy: ExecutionStrategy,
    folder: Path,
    *rules: WorkerRule,
    settings: WorkerSettings | None = None,
) -> AbstractAsyncContextManager[Executor]:
    return open_executor(
        name="executor-1",
        blobs=cas.blobs,
        strategy=strategy,
        protocols={"json": JsonProtocol()},
        folder=folder,
        settings=ExecutionSettings(),
        worker_settings=settings or WorkerSettings(shutdown_grace_seconds=1, rules=rules),
    )


JSON = {"persistentWorkerKey": "k", "persistentWorkerProtocol": "json"}


async def work(cas: Cas, tool: bytes = TOOL, /, **properties: str) -> LoadedAction:
    inputs = {"tool": tool, "args": b""}
    action: LoadedAction = await cas.action(
        "./tool", "@args", inputs=inputs, platform=properties, environment={"PATH": "/usr/bin:/bin"}
    )
    return action


async def said(cas: Cas, outcome: Outcome) -> list[str]:
    assert outcome.error is None
    assert outcome.result is not None
    text: bytes = await cas.get(outcome.result.stderr_digest)
    return text.decode().split()


def noted(outcome: Outcome) -> dict[str, Any]:
    """What auxiliary_metadata tells."""
    assert outcome.result is not None
    found: dict[str, Any] = {}
    for packed in outcome.result.execution_metadata.auxiliary_metadata:
        message = Struct()
        assert packed.Unpack(message)
        found |= dict(message)
    return found


async def run(at: Executor, action: LoadedAction) -> Outcome:
    return await at.run(action, lambda *_: None)


async def test_another_image_is_another_worker(
    cas: Cas, strategy: ExecutionStrategy, tmp_path: Path
) -> None:
    elsewhere = Elsewhere(strategy)
    action = await work(cas, **JSON)
    async with executor(cas, elsewhere, tmp_path / "executor") as at:
        first = await said(cas, await run(at, action))
        assert await said(cas, await run(at, action)) == first
        elsewhere.image = "sha256:2"
        assert (await said(cas, await run(at, action)))[0] != first[0]


async def test_a_rule_gives_a_worker_to_who_has_not_asked(
    cas: Cas, strategy: ExecutionStrategy, tmp_path: Path
) -> None:
    rule = WorkerRule(
        programs=("./to*",), use="always", protocol="json", extra_flags=("--more",), verbosity=10
    )
    async with executor(cas, strategy, tmp_path / "executor", rule) as at:
        first = await said(cas, await run(at, await work(cas)))
        assert first[1:] == ["--persistent_worker", "--more", "verbosity=10"]
        assert await said(cas, await run(at, await work(cas))) == first


async def test_a_worker_is_held_to_the_bounds_of_its_log_and_of_its_responses(
    cas: Cas, strategy: ExecutionStrategy, tmp_path: Path
) -> None:
    loud = TOOL.replace(
        b"    verbosity",
        b"    os.write(2, b'x' * 60_000)\n"
        b"    while os.fstat(2).st_size > 8192 and os.times().user < 20: pass  # it is rotated\n"
        b"    os.write(2, b'last words')\n"
        b"    verbosity",
    )
    settings = WorkerSettings(
        max_log_bytes=8192, max_response_bytes=10, retries=0, shutdown_grace_seconds=1
    )
    action = await work(cas, loud, **JSON)
    async with executor(cas, strategy, tmp_path / "executor", settings=settings) as at:
        outcome = await run(at, action)
    assert "more than 10 bytes" in outcome.message
    (log,) = outcome.server_logs.values()
    assert await cas.get(log.digest) == b"x" * 8192 + b"last words", "across the rotation"


@pytest.mark.parametrize("asks", [True, False])
async def test_a_rule_forbids_workers(
    cas: Cas, strategy: ExecutionStrategy, tmp_path: Path, asks: bool
) -> None:
    action = await work(cas, **({"supports-workers": "1"} if asks else {}))
    async with executor(cas, strategy, tmp_path / "executor", WorkerRule(use="never")) as at:
        outcome = await run(at, action)
    reason = "the server's configuration says never to use one for it"
    assert (await said(cas, outcome))[1:] == ["@args"]
    assert noted(outcome).get("one_shot_reason") == (reason if asks else None)
    assert outcome.message == (f"run without a persistent worker: {reason}" if asks else "")
