"""Has `odd_tool.py` do things, and tells what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trio
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from stoker.client import RemoteInstance
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi

from .actions import Tree, action_blobs

PYTHON = "/usr/bin/python3"
TOOL = Path(__file__).with_name("odd_tool.py").read_bytes()
PATIENCE_SECONDS = 30

SINGLEPLEX = {"persistentWorkerKey": "key", "persistentWorkerProtocol": "json"}
MULTIPLEX = {**SINGLEPLEX, "supports-multiplex-workers": "1"}
SANDBOXED = {**MULTIPLEX, "supports-multiplex-sandboxing": "1"}


class Told(NamedTuple):
    """What a client gets to know of an action."""

    response: reapi.ExecuteResponse
    text: str
    """Its stderr."""
    facts: Mapping[str, Any]
    """What the server says of how it was run."""
    files: Mapping[str, bytes]

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")

    @property
    def message(self) -> str:
        return self.response.message


class Client:
    """Has a tool do things. Each has workers of its own, by a silo."""

    def __init__(self, remote: RemoteInstance, silo: str) -> None:
        self.remote = remote
        self.silo = silo

    async def upload(
        self,
        *lines: str,
        platform: Mapping[str, str],
        files: Mapping[str, bytes] | None = None,
        startup: Sequence[str] = (),
        outputs: reapi.Command | None = None,
        seconds: int = 20,
    ) -> Digest:
        """An action that has the tool do `lines`."""
        flags = f"flags{abs(hash(lines))}"
        inputs = {"tool.py": TOOL, flags: "\n".join(lines).encode(), **(files or {})}
        root, blobs = Tree(inputs).blobs()
        action, own = action_blobs(
            [PYTHON, "tool.py", *startup, f"@{flags}"],
            root,
            platform={"pool": "plain", "cache-silo-key": self.silo, **platform},
            timeout_seconds=seconds,
            do_not_cache=False,
        )
        if outputs is not None:
            action, own = with_outputs(action, own, outputs)
        await self.remote.upload_blobs(blobs | own)
        return action

    async def do(self, *lines: str, platform: Mapping[str, str], **more: Any) -> Told:
        """What is told of an action that has the tool do `lines`."""
        action = await self.upload(*lines, platform=platform, **more)
        response = await self.remote.run(action, skip_cache_lookup=True)
        result, facts = response.result, Struct()
        for packed in result.execution_metadata.auxiliary_metadata:
            packed.Unpack(facts)
        return Told(
            response,
            (await self._read(result.stderr_digest)).decode(),
            MessageToDict(facts),
            {file.path: await self._read(file.digest) for file in result.output_files},
        )

    async def served(self, *lines: str, platform: Mapping[str, str], **more: Any) -> Told:
        """The same for an action that a worker does at the first attempt."""
        told = await self.do(*lines, platform=platform, **more)
        assert (told.response.status.code, told.message) == (0, ""), told
        assert "worker" in told.facts, told
        return told

    async def _read(self, digest: reapi.Digest) -> bytes:
        return await self.remote.read_blob(SHA256.parse(digest)) if digest.size_bytes else b""


def with_outputs(
    action: Digest, blobs: Mapping[Digest, bytes], outputs: reapi.Command
) -> tuple[Digest, dict[Digest, bytes]]:
    """The same action with the fields of `outputs` in its command."""
    message = reapi.Action.FromString(blobs[action])
    command = reapi.Command.FromString(blobs[SHA256.parse(message.command_digest)])
    command.MergeFrom(outputs)
    message.command_digest.CopyFrom(SHA256.digest(command.SerializeToString()).to_proto())
    found = {
        SHA256.digest(data): data for data in (m.SerializeToString() for m in (command, message))
    }
    return SHA256.digest(message.SerializeToString()), found


async def all_at_once(client: Client, actions: Sequence[Sequence[str]], **more: Any) -> list[Told]:
    found: list[Told] = []

    async def do(lines: Sequence[str]) -> None:
        found.append(await client.do(*lines, **more))

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for lines in actions:
                nursery.start_soon(do, lines)
    return found
