"""The least that a server in Python does for a warm action: the peer of stoker's whole way.

It parses the same messages, lays out one file, asks a worker over its pipes, and files a result in
a thread, with a row in SQLite as the disk store does. It decides nothing, looks nothing up, queues,
shares, limits and remembers nothing, and cleans nothing up.

Its arguments: a folder with the messages ``action``, ``command``, ``root``, ``directory`` and
``request``, which it also works in, and the worker's program. It prints its address.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import trio
from google.longrunning import operations_pb2

from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Server, ServerCall, Service, tune_allocator, unary_stream, unary_unary

_REAPI = "build.bazel.remote.execution.v2"
_STAGES = (
    *("queued", "worker_start", "input_fetch_start", "input_fetch_completed", "execution_start"),
    *("execution_completed", "output_upload_start", "output_upload_completed", "worker_completed"),
)
_ANSWER_BYTES = 65_536


class Chain:
    """All steps of an action, one after the other; one action at a time."""

    def __init__(self, folder: Path, tool: subprocess.Popen[bytes]) -> None:
        assert tool.stdin is not None
        assert tool.stdout is not None
        self._folder = folder
        self._messages = {
            name: (folder / name).read_bytes()
            for name in ("action", "command", "root", "directory")
        }
        self._request = (folder / "request").read_bytes()
        self._stdin = trio.lowlevel.FdStream(os.dup(tool.stdin.fileno()))
        self._stdout = trio.lowlevel.FdStream(os.dup(tool.stdout.fileno()))
        self._numbers = count()
        self._index = _open_index(folder / "index.sqlite")

    def services(self) -> list[Service]:
        return [
            Service(
                f"{_REAPI}.Capabilities",
                {
                    "GetCapabilities": unary_unary(
                        self.get_capabilities,
                        reapi.GetCapabilitiesRequest,
                        reapi.ServerCapabilities,
                    )
                },
            ),
            Service(
                f"{_REAPI}.Execution",
                {
                    "Execute": unary_stream(
                        self.execute, reapi.ExecuteRequest, operations_pb2.Operation
                    )
                },
            ),
        ]

    async def get_capabilities(
        self, _request: reapi.GetCapabilitiesRequest, _call: ServerCall
    ) -> reapi.ServerCapabilities:
        found = reapi.ServerCapabilities()
        found.low_api_version.major = found.high_api_version.major = 2
        found.cache_capabilities.digest_functions.append(reapi.DigestFunction.SHA256)
        found.execution_capabilities.digest_function = reapi.DigestFunction.SHA256
        found.execution_capabilities.digest_functions.append(reapi.DigestFunction.SHA256)
        found.execution_capabilities.exec_enabled = True
        return found

    async def execute(
        self, request: reapi.ExecuteRequest, _call: ServerCall
    ) -> operations_pb2.Operation:
        number = next(self._numbers)
        self._parse()
        _write(self._folder, f"part-{number}", "file0", b"%d" % number, 0o644)
        await self._stdin.send_all(self._request)
        await self._stdout.receive_some(_ANSWER_BYTES)
        result = reapi.ActionResult(execution_metadata=_metadata())
        await trio.to_thread.run_sync(self._file, number, result.SerializeToString())
        return _ended(request, result)

    def _parse(self) -> None:
        reapi.Action.FromString(self._messages["action"])
        reapi.Command.FromString(self._messages["command"])
        reapi.Directory.FromString(self._messages["root"])
        reapi.Directory.FromString(self._messages["directory"])

    def _file(self, number: int, data: bytes) -> None:
        name = hashlib.sha256(b"%d" % number).hexdigest()
        row = (name, len(data), time.time_ns() // 10**6)
        self._index.execute("INSERT INTO files VALUES (?, ?, ?)", row)
        _write(self._folder, f"result-{number}", name, data, 0o444)


def _open_index(path: Path) -> sqlite3.Connection:
    index = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    index.execute("PRAGMA journal_mode = WAL")
    index.execute("PRAGMA synchronous = NORMAL")
    index.execute("CREATE TABLE files (name TEXT PRIMARY KEY, size INT, used INT) WITHOUT ROWID")
    return index


def _write(folder: Path, part: str, name: str, data: bytes, mode: int) -> None:
    descriptor = os.open(folder / part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
        os.fchmod(descriptor, mode)
        os.utime(descriptor, ns=(0, 0))
    finally:
        os.close(descriptor)
    (folder / name).unlink(missing_ok=True)
    (folder / part).rename(folder / name)


def _metadata() -> reapi.ExecutedActionMetadata:
    metadata = reapi.ExecutedActionMetadata(worker="bare")
    for stage in _STAGES:
        getattr(metadata, f"{stage}_timestamp").FromNanoseconds(time.time_ns())
    return metadata


def _ended(request: reapi.ExecuteRequest, result: reapi.ActionResult) -> operations_pb2.Operation:
    operation = operations_pb2.Operation(name=f"operations/{os.urandom(16).hex()}", done=True)
    operation.metadata.Pack(
        reapi.ExecuteOperationMetadata(
            stage=reapi.ExecutionStage.COMPLETED,
            action_digest=request.action_digest,
            partial_execution_metadata=result.execution_metadata,
        )
    )
    operation.response.Pack(reapi.ExecuteResponse(result=result))
    return operation


@contextmanager
def _open_tool(program: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-IS", program, "--persistent_worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tool:
        try:
            yield tool
        finally:
            tool.kill()


async def main(folder: str, program: str) -> None:
    tune_allocator()
    with _open_tool(program) as tool:
        server = Server(Chain(Path(folder), tool).services())
        port = server.add_listener("127.0.0.1:0")
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve)
            print(f"127.0.0.1:{port}", flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
