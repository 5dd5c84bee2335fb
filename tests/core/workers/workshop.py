"""A workshop: actions for ``tool.py``, and pools that run it as real processes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import trio

from stoker.action import LoadedAction
from stoker.digest import SHA256, Digest
from stoker.execution.enclosed import Enclosed
from stoker.execution.input_root import InputRoot
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.worker_protocol_pb2 import WorkResponse
from stoker.spi import BlobStore, ProcessUser, Sandbox
from stoker.storage.input_tree import InputFile, InputTree
from stoker.storage.memory import MemoryBlobStore
from stoker.workers.key import Mode
from stoker.workers.plan import WorkerPlan, WorkerTerms, plan_worker
from stoker.workers.pool import WorkerPool, open_worker_pool
from stoker.workers.requests import build_request
from stoker.workers.settings import WorkerSettings
from stoker.workers.worker import Worker
from stoker_exec_local import open_local
from stoker_worker_json import JsonProtocol
from stoker_worker_proto import ProtoProtocol

from .trees import tree_of

TOOL = Path(__file__).with_name("tool.py").read_bytes()
PROTOCOLS = {"proto": ProtoProtocol(), "json": JsonProtocol()}
# Only so that a broken test is reported rather than waited for.
PATIENCE_SECONDS = 60


class WorkerRoot(InputRoot):
    """The input root of a worker, which goes with all that is beside it."""

    def __init__(self, top: Path, blobs: BlobStore) -> None:
        super().__init__(top / "root", blobs)
        self._beside = InputRoot(top, blobs)

    async def remove(self) -> None:
        """As promised by `InputRoot`."""
        await super().remove()
        await self._beside.remove()


class Work(NamedTuple):
    """An action with all that a pool wants to know of it."""

    plan: WorkerPlan
    action: LoadedAction
    tree: InputTree


@dataclass
class Workshop:
    """What the tests of this folder share."""

    folder: Path
    blobs: MemoryBlobStore = field(default_factory=MemoryBlobStore)

    async def store(self, data: bytes) -> Digest:
        """Put `data` into the CAS."""
        digest = SHA256.digest(data)
        assert not await self.blobs.write_many({digest: data})
        return digest

    async def tree(
        self, files: Mapping[str, bytes], tools: Mapping[str, bytes] | None = None
    ) -> InputTree:
        """An input tree of `files`, and `tools` that are marked as such."""
        inputs = {}
        for is_tool, group in ((False, files), (True, tools or {})):
            for path, data in group.items():
                digest = await self.store(data)
                inputs[path] = InputFile(path, digest, is_tool, is_tool, None, None)
        return tree_of(inputs)

    async def work(
        self,
        *lines: str,
        startup: Sequence[str] = (),
        protocol: str = "proto",
        tool: bytes = TOOL,
        environment: Mapping[str, str] | None = None,
        terms: WorkerTerms | None = None,
        name: str = "Tool/Run",
        cancellable: bool = False,
        multiplex: bool = False,
        invocation: str = "",
        **properties: str,
    ) -> Work:
        """An action that has the tool do what `lines` say, one argument each."""
        tree = await self.tree({"flags": "\n".join(lines).encode()}, {"tool.py": tool})
        command = reapi.Command(
            arguments=[sys.executable, "-IS", "tool.py", *startup, "@flags"],
            environment_variables=[
                reapi.Command.EnvironmentVariable(name=name, value=value)
                for name, value in (environment or {}).items()
            ],
        )
        platform = {"persistentWorkerKey": "k", "persistentWorkerProtocol": protocol, **properties}
        action = load(command, platform)
        plan = plan_worker(action, tree, PROTOCOLS)
        assert isinstance(plan, WorkerPlan)
        key = replace(plan.key, mode=Mode.MULTIPLEX) if multiplex else plan.key
        terms = terms or WorkerTerms(max_requests_in_flight=8 if multiplex else 1)
        plan = replace(plan, key=key, name=name, cancellable=cancellable, terms=terms)
        action.metadata.tool_invocation_id = invocation
        return Work(plan, action, tree)

    @asynccontextmanager
    async def pool(
        self, sandbox: Sandbox | None = None, user: ProcessUser | None = None, **settings: Any
    ) -> AsyncIterator[WorkerPool[InputRoot]]:
        """A pool that must end in time and leave neither process nor file."""
        folder = self.folder / "workers"
        with trio.fail_after(PATIENCE_SECONDS):
            async with (
                open_local() as strategy,
                open_worker_pool(
                    strategy=Enclosed(strategy, sandbox) if sandbox else strategy,
                    protocols=PROTOCOLS,
                    folder=folder,
                    open_folder=self.open_root,
                    settings=WorkerSettings(**settings),
                    user=user,
                ) as pool,
            ):
                yield pool
        assert list(folder.iterdir()) == []
        assert pool.counts == (0, 0, 0)

    def open_root(self, _: WorkerPlan, top: Path) -> InputRoot:
        """What keeps a worker's folder here."""
        return WorkerRoot(top, self.blobs)

    def lease(
        self, pool: WorkerPool[InputRoot], work: Work, *, avoid_warm: bool = False
    ) -> AbstractAsyncContextManager[Worker[InputRoot]]:
        """A worker for `work`."""
        environment = dict(work.plan.key.environment)
        return pool.lease(work.plan, work.action, environment, avoid_warm=avoid_warm)

    async def perform(self, worker: Worker[InputRoot], work: Work) -> WorkResponse:
        """As an executor does: inputs first, then the request."""
        await worker.folder.lay_out(work.tree)
        request = await build_request(work.plan, work.action, work.tree, self.blobs)
        return (await worker.perform(*request)).response

    async def run(self, pool: WorkerPool[InputRoot], work: Work) -> WorkResponse:
        """Lease a worker for one request."""
        async with self.lease(pool, work) as worker:
            return await self.perform(worker, work)

    async def report(self, pool: WorkerPool[InputRoot], **options: Any) -> dict[str, Any]:
        """What a worker that serves one more request says of itself."""
        return read_report(await self.run(pool, await self.work("report", **options)))


def load(command: reapi.Command, platform: Mapping[str, str]) -> LoadedAction:
    """An action of `command`, without the CAS."""
    return LoadedAction(
        namespace="main",
        digest=SHA256.empty,
        action=reapi.Action(),
        command=command,
        input_root=SHA256.empty,
        platform={name: (value,) for name, value in platform.items()},
        timeout_seconds=None,
        mnemonic="Tool/Run",
    )


def read_report(response: WorkResponse) -> dict[str, Any]:
    """The tool's own words."""
    assert response.exit_code == 0
    report: dict[str, Any] = json.loads(response.output)
    return report


def is_alive(pid: int) -> bool:
    """Whether there is a process of that number, other than a dead one that nobody has reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


async def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that may be gone already."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
