"""Input trees, actions and an executor that starts real processes."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from stoker.action import LoadedAction, Outcome, load_action
from stoker.digest import SHA256, Digest
from stoker.execution.executor import Executor, open_executor
from stoker.execution.settings import ExecutionSettings
from stoker.log_streams.names import StreamNames
from stoker.log_streams.run_output import RunOutputs
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import ExecutionStrategy, WorkerProtocol
from stoker.storage.input_tree import InputTree
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.tree_cache import read_input_tree
from stoker.storage.verifying import VerifyingBlobStore
from stoker.workers.settings import WorkerSettings
from stoker_exec_local import open_local

Entries = Mapping[str, "bytes | str | reapi.FileNode | Entries"]


class Cas:
    """A store in memory, with short ways to fill and read it."""

    def __init__(self) -> None:
        self.blobs = VerifyingBlobStore(MemoryBlobStore())

    async def put(self, data: bytes) -> Digest:
        digest = SHA256.digest(data)
        assert not await self.blobs.write_many({digest: data})
        return digest

    async def get(self, message: reapi.Digest) -> bytes:
        digest = SHA256.parse(message)
        return (await self.blobs.read_many([digest]))[digest]

    async def directory(self, entries: Entries) -> Digest:
        """Bytes are files, text is the target of a link, a FileNode is taken with its name set."""
        message = reapi.Directory()
        for name, entry in sorted(entries.items()):
            if isinstance(entry, bytes):
                digest = (await self.put(entry)).to_proto()
                message.files.add(name=name, digest=digest, is_executable=entry[:2] == b"#!")
            elif isinstance(entry, str):
                message.symlinks.add(name=name, target=entry)
            elif isinstance(entry, reapi.FileNode):
                message.files.add(name=name).MergeFrom(entry)
            else:
                digest = (await self.directory(entry)).to_proto()
                message.directories.add(name=name, digest=digest)
        return await self.put(message.SerializeToString())

    async def tree(self, entries: Entries) -> InputTree:
        return await read_input_tree(self.blobs, await self.directory(entries))

    async def action(
        self,
        *arguments: str,
        inputs: Entries | None = None,
        timeout_seconds: float | None = None,
        environment: Mapping[str, str] | None = None,
        platform: Mapping[str, str] | None = None,
        **command_fields: Any,
    ) -> LoadedAction:
        command = reapi.Command(arguments=arguments, **command_fields)
        for name, value in (environment or {}).items():
            command.environment_variables.add(name=name, value=value)
        action = reapi.Action(
            input_root_digest=(await self.directory(inputs or {})).to_proto(),
            command_digest=(await self.put(command.SerializeToString())).to_proto(),
        )
        for name, value in (platform or {}).items():
            action.platform.properties.add(name=name, value=value)
        if timeout_seconds is not None:
            action.timeout.CopyFrom(Duration(nanos=int(timeout_seconds * 10**9)))
        return load_action(
            SHA256.digest(action.SerializeToString()),
            action,
            command,
            namespace="",
            metadata=reapi.RequestMetadata(),
        )

    async def shell(self, script: str, **fields: Any) -> LoadedAction:
        return await self.action("/bin/sh", "-c", script, **fields)


class Rig:
    """An executor, and what it worked with."""

    def __init__(self, cas: Cas, executor: Executor, folder: Path, outputs: RunOutputs) -> None:
        self.cas = cas
        self.outputs = outputs
        self.executor = executor
        self.folder = folder
        self.started: list[reapi.ExecutedActionMetadata] = []
        self.streams: list[StreamNames] = []

    def note_start(
        self, metadata: reapi.ExecutedActionMetadata, streams: StreamNames | None
    ) -> None:
        if streams is not None:
            self.started.append(metadata)
            self.streams.append(streams)

    async def run(self, action: LoadedAction) -> Outcome:
        return await self.executor.run(action, self.note_start)

    async def result(self, action: LoadedAction) -> reapi.ActionResult:
        outcome = await self.run(action)
        assert outcome.error is None
        assert outcome.result is not None
        return outcome.result

    async def shell(self, script: str, **fields: Any) -> reapi.ActionResult:
        return await self.result(await self.cas.shell(script, **fields))

    async def stdout(self, script: str, **fields: Any) -> str:
        result = await self.shell(script, **fields)
        return (await self.cas.get(result.stdout_digest)).decode()

    def leftovers(self) -> list[str]:
        """Folders of actions that nobody keeps, and what kept ones hold beside clean inputs."""
        place = self.executor.workplace
        kept = place.kept_folders
        known = {*kept, *place.leaving_folders}
        found = [path for path in self.folder.glob("life-*/actions/*") if path not in known]
        found += [
            p
            for top in kept
            for p in top.iterdir()
            if p.name not in ("root", "tmp")
            and not (p.name in ("stdout", "stderr") and p.is_file() and not p.stat().st_size)
        ]
        found += [path for top in kept for path in (top / "tmp").iterdir()]
        return sorted(path.name for path in found)


@pytest.fixture
def cas() -> Cas:
    return Cas()


@pytest.fixture
async def strategy() -> AsyncIterator[ExecutionStrategy]:
    async with open_local() as opened:
        yield opened


@pytest.fixture
def deep_folders(tmp_path: Path) -> Iterator[None]:
    """For tests that make deep trees: pytest's own removal of `tmp_path` fails on a left one."""
    yield
    subprocess.run(["/bin/rm", "-rf", *tmp_path.iterdir()], check=True)


@pytest.fixture(name="open_rig")
def open_rig_fixture() -> Callable[..., AbstractAsyncContextManager[Rig]]:
    return open_rig


@pytest.fixture
async def rig(cas: Cas, strategy: ExecutionStrategy, tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(cas, strategy, tmp_path / "executor") as opened:
        yield opened


@asynccontextmanager
async def open_rig(
    cas: Cas,
    strategy: ExecutionStrategy,
    folder: Path,
    settings: ExecutionSettings | None = None,
    protocols: Mapping[str, WorkerProtocol] | None = None,
    worker_settings: WorkerSettings | None = None,
) -> AsyncIterator[Rig]:
    outputs = RunOutputs()
    async with open_executor(
        name="executor-1",
        outputs=outputs,
        blobs=cas.blobs,
        strategy=strategy,
        protocols=protocols or {},
        folder=folder,
        settings=settings or ExecutionSettings(termination_grace_seconds=0.5),
        worker_settings=worker_settings or WorkerSettings(shutdown_grace_seconds=1),
    ) as executor:
        yield Rig(cas, executor, folder, outputs)
