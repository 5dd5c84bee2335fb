"""Real actions for real workers, through the whole of stoker and back."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.struct_pb2 import Struct

from stoker.client import RemoteInstance, download_outputs
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi

from ..end_to_end.actions import Tree, action_blobs


@dataclass(frozen=True, slots=True)
class Done:
    """What became of an action."""

    status: int
    """The code of its status: 0 for one that was executed, however it ended."""
    exit_code: int
    stdout: str
    said: str
    """Its stderr, which is where the output of a worker goes."""
    outputs: Mapping[str, bytes]
    """By their paths; those below an output directory too."""
    message: str
    """What the server says of how it was run."""
    facts: Mapping[str, object]
    """What its auxiliary metadata tells."""
    span: tuple[int, int]
    """When it began and when it ended, in nanoseconds."""

    def overlaps(self, other: Done) -> bool:
        """Whether both were under way at the same time."""
        return self.span[0] < other.span[1] and other.span[0] < self.span[1]

    @property
    def worker(self) -> str | None:
        """The worker that served it, None if it was run without one."""
        name = self.facts.get("worker")
        return str(name) if name else None

    @property
    def served(self) -> int:
        """How many requests that worker had then answered."""
        return int(str(self.facts["served"]).partition(".")[0])

    @property
    def result(self) -> tuple[int, str, Mapping[str, bytes]]:
        """What is to be the same whoever has run it."""
        return self.exit_code, self.said, self.outputs


@dataclass(frozen=True, slots=True)
class Workbench:
    """Runs actions on a server, with a worker or without."""

    remote: RemoteInstance

    async def work(
        self,
        arguments: Sequence[str],
        tree: Tree,
        outputs: Sequence[str],
        *,
        protocol: str = "proto",
        platform: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        timeout_seconds: int | None = None,
    ) -> Done:
        """Run `arguments` among the files of `tree` on a persistent worker."""
        asked = {"persistentWorkerKey": "any", "persistentWorkerProtocol": protocol}
        action = await self.upload(
            arguments, tree, outputs, {**asked, **(platform or {})}, environment, timeout_seconds
        )
        return await self.run(action)

    async def run_once(
        self,
        arguments: Sequence[str],
        tree: Tree,
        outputs: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """The same in a process of its own."""
        done = await self.run(await self.upload(arguments, tree, outputs, {}, environment))
        assert done.worker is None
        return done

    async def upload(
        self,
        arguments: Sequence[str],
        tree: Tree,
        outputs: Sequence[str],
        platform: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
        timeout_seconds: int | None = None,
    ) -> Digest:
        """An action that is ready to be executed."""
        root, blobs = tree.blobs()
        action, own = action_blobs(
            arguments,
            root,
            outputs=outputs,
            platform=platform,
            environment=environment,
            timeout_seconds=timeout_seconds,
        )
        blobs |= own
        missing = await self.remote.find_missing(blobs)
        await self.remote.upload_blobs({digest: blobs[digest] for digest in missing})
        return action

    async def run(self, action: Digest) -> Done:
        """Execute an action that is ready."""
        response = await self.remote.run(action)
        result = response.result
        assert not response.cached_result
        return Done(
            status=response.status.code,
            exit_code=result.exit_code,
            stdout=await self._text(result.stdout_digest),
            said=await self._text(result.stderr_digest),
            outputs=await self._outputs(result),
            message=response.message or response.status.message,
            facts=_facts(result),
            span=(
                result.execution_metadata.execution_start_timestamp.ToNanoseconds(),
                result.execution_metadata.execution_completed_timestamp.ToNanoseconds(),
            ),
        )

    async def _text(self, digest: reapi.Digest) -> str:
        return (await self.remote.read_blob(SHA256.parse(digest))).decode() if digest.hash else ""

    async def _outputs(self, result: reapi.ActionResult) -> Mapping[str, bytes]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            await download_outputs(self.remote, result, folder, SHA256)
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _facts(result: reapi.ActionResult) -> dict[str, object]:
    facts: dict[str, object] = {}
    for message in result.execution_metadata.auxiliary_metadata:
        struct = Struct()
        if message.Unpack(struct):
            facts |= dict(struct)
    return facts
