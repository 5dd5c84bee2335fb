"""One worker without a pool, as a real process of ``tool.py``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from stoker.protos.worker_protocol_pb2 import WorkRequest
from stoker.spi import ExecutionStrategy, ProcessSpec
from stoker.workers.key import Mode, WorkerKey
from stoker.workers.plan import WorkerPlan
from stoker.workers.worker import Worker, WorkerMachinery
from stoker_exec_local import open_local

from .trees import tree_of
from .workshop import PATIENCE_SECONDS, PROTOCOLS, TOOL, is_alive

MACHINERY: dict[str, Any] = {
    "max_response_bytes": 10_000_000,
    "max_log_bytes": 10_000_000,
    "cancel_grace_seconds": PATIENCE_SECONDS,
    "shutdown_grace_seconds": PATIENCE_SECONDS,
}


@asynccontextmanager
async def open_worker(
    folder: Path,
    *startup: str,
    protocol: str = "proto",
    multiplex: bool = False,
    cancellable: bool = False,
    around: Callable[[ExecutionStrategy], ExecutionStrategy] | None = None,
    **machinery: float,
) -> AsyncIterator[Worker[None]]:
    """A worker that is not started yet, and leaves no process behind."""
    spec = _lay_out(folder, [*startup, *(["--json"] if protocol == "json" else [])])
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_local() as strategy, trio.open_nursery() as nursery:
            worker: Worker[None] = Worker(
                name="worker-1-Tool",
                plan=_plan(spec, protocol, multiplex=multiplex, cancellable=cancellable),
                folder=None,
                spec=spec,
                protocol=PROTOCOLS[protocol],
                machinery=WorkerMachinery(
                    strategy=around(strategy) if around else strategy, **{**MACHINERY, **machinery}
                ),
            )
            nursery.start_soon(worker.live, lambda: None)
            try:
                yield worker
            finally:
                worker.retire()
    name, _, pid = worker.process_name.rpartition(" ")
    assert name != "process" or not is_alive(int(pid))


def _lay_out(folder: Path, startup: Sequence[str]) -> ProcessSpec:
    for name in ("root", "tmp"):
        (folder / name).mkdir()
    (folder / "root/tool.py").write_bytes(TOOL)
    return ProcessSpec(
        argv=(sys.executable, "-IS", "tool.py", *startup, "--persistent_worker"),
        environment={},
        root=folder / "root",
        temporary_directory=folder / "tmp",
        stderr=folder / "log",
        root_changes=True,
    )


def _plan(spec: ProcessSpec, protocol: str, *, multiplex: bool, cancellable: bool) -> WorkerPlan:
    key = WorkerKey(
        namespace="",
        silo="",
        platform=(),
        argv=spec.argv,
        environment=(),
        working_directory="",
        protocol=protocol,
        mode=Mode.MULTIPLEX if multiplex else Mode.SINGLEPLEX,
        tools="",
    )
    return WorkerPlan(
        key=key,
        protocol=protocol,
        startup=spec.argv[:-1],
        flag_files=(),
        tool_tree=tree_of({}),
        cancellable=cancellable,
    )


def request(*arguments: str) -> WorkRequest:
    """What has the tool do as `arguments` say."""
    return WorkRequest(arguments=arguments)
