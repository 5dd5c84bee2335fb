"""Actions on a warm persistent worker, against the worker's own time for the same request.

Where the worker answers at once, the time of an action is all that lies between a client and a
worker: the call, the queue, the inputs, the request, and the outcome's way back. The ratio is large
then, as the worker's own time is next to nothing; what it comes to with a worker that has something
to do, for 50 ms, is a row of its own. The worker's own time is that of the same WorkRequest, sent
to a second process of the same tool over plain pipes.

Each action is another one, by one input file. With 1,000 inputs the other 999 stay the same.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from bench.actions import Actions
from bench.load import at_a_time
from bench.measurement import Cost, Pair, Row, cost_at, cost_here, in_turns
from bench.servers import open_stoker
from stoker.client import RemoteInstance, open_remote
from stoker.digest import SHA256, Digest
from stoker.protos.worker_protocol_pb2 import Input, WorkRequest

TOOL = Path(__file__).with_name("worker_tool.py")
STARTUP = [sys.executable, "-IS", "tool.py"]
PLATFORM = {"persistentWorkerKey": "bench"}


def measure(*, quick: bool) -> list[Row]:
    """Rows for few and many inputs, and for a worker that has something to do."""
    return [
        trio.run(_measure, 1, 0, "1 input", quick),
        trio.run(_measure, 1_000, 0, "1,000 inputs, 1 new", quick),
        trio.run(_measure, 1, 50, "1 input, 50 ms", quick),
    ]


async def _measure(inputs: int, takes_ms: int, said: str, quick: bool) -> Row:
    count, rounds = (5, 2) if quick else (40, 5)
    tool_options = [f"--takes={takes_ms / 1000}"]
    actions = Actions()

    def add(salt: str) -> Digest:
        arguments = [*STARTUP, *tool_options, "@flags"]
        return actions.add(arguments, _files(inputs, salt), platform=PLATFORM)

    batches = iter([[add(f"{n} {batch}") for n in range(count)] for batch in range(rounds + 1)])
    with open_stoker("memory") as server, _open_tool(tool_options) as tool:
        async with open_remote(server.address) as remote:
            await actions.upload(remote)
            request = _request(_files(inputs, ""))

            async def execute() -> Cost:
                batch = next(batches)
                return await cost_at(
                    server, lambda: at_a_time(1, batch, lambda action: _run(remote, action))
                )

            async def ask() -> None:
                for _ in range(count):
                    _converse(tool, request)

            await execute()
            await ask()
            pair = Pair(*await in_turns(rounds, execute, lambda: cost_here(ask)))
    return pair.wall_row(
        f"worker action, {said}", "the worker's own time", unit="ms", per_second=1e3 / count
    )


def _files(inputs: int, salt: str) -> Mapping[str, bytes]:
    files = {f"source{n // 100}/file{n}": b"%d" % n for n in range(inputs)}
    files["source0/file0"] = salt.encode()
    return {"tool.py": TOOL.read_bytes(), "flags": b"--do\n--it\n", **files}


def _request(files: Mapping[str, bytes]) -> bytes:
    """The WorkRequest for `files` as it goes to a worker, its length before it."""
    inputs = [
        Input(path=path, digest=SHA256.digest(data).hash.encode()) for path, data in files.items()
    ]
    data = WorkRequest(arguments=["--do", "--it"], inputs=inputs).SerializeToString()
    length = bytearray()
    rest = len(data)
    while rest > 0x7F:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*length, rest]) + data


def _open_tool(options: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-IS", str(TOOL), *options, "--persistent_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _converse(tool: subprocess.Popen[bytes], request: bytes) -> None:
    assert tool.stdin is not None
    assert tool.stdout is not None
    tool.stdin.write(request)
    tool.stdin.flush()
    assert tool.stdout.read(1) == b"\0"


async def _run(remote: RemoteInstance, action: Digest) -> None:
    response = await remote.run(action)
    assert not response.status.code, response.status.message
    assert not response.cached_result
    # What could not be given to a worker has a message that says why.
    assert not response.message, response.message
