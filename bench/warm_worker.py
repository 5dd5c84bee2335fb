"""Actions on a warm persistent worker, above the worker's own time for the same request.

The worker answers at once, so that the time of an action is all that lies between a client and a
worker: the call, the queue, the inputs, the request, and the outcome's way back. The worker's own
time is that of the same WorkRequest, sent to a second process of the same tool over plain pipes.
What is left when that is taken away is held against a bound; the whole action against the same
action run without a worker, and against a bare chain of what no server in Python can leave away.

Each action is another one, by one input file; all its other inputs were there before. Medians of
single actions: what has to wait for a new worker is no warm action.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from bench.actions import Actions
from bench.load import at_a_time
from bench.measurement import Row
from bench.servers import ServerProcess, open_program, open_stoker
from stoker.client import RemoteInstance, open_remote
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.worker_protocol_pb2 import Input, WorkRequest

TOOL = Path(__file__).with_name("worker_tool.py")
COMMAND = [sys.executable, "-IS", "tool.py", "@flags"]
WARM = {"persistentWorkerKey": "bench"}

AT_MOST_MS = 3.0
"""What a warm action with 1,000 inputs may take above the worker's own time."""

_FILES_PER_FOLDER = 100


class _Load(NamedTuple):
    inputs: int
    in_flight: int

    @property
    def said(self) -> str:
        return f"{self.inputs:,} inputs, 1 new, {self.in_flight} at a time"


_LOADS = [_Load(inputs, in_flight) for inputs in (10, 1_000, 10_000) for in_flight in (1, 8)]


def measure(*, quick: bool) -> list[Row]:
    """Two rows for each number of inputs and of actions at a time, and one beside a bare chain."""
    loads = [load for load in _LOADS if not quick or load.inputs < 10_000]
    rows = [row for load in loads for row in trio.run(_measure, load, quick)]
    return [*rows, trio.run(_measure_chain, _Load(1_000, 1), quick)]


async def _measure(load: _Load, quick: bool) -> list[Row]:
    count, rounds = (8, 2) if quick else (64, 5)
    actions = Actions()
    warm = [_add(actions, load, f"{batch}", count, WARM) for batch in range(rounds + 1)]
    cold = [_add(actions, load, f"cold {batch}", 8, {}) for batch in range(rounds)]
    ours, own, one_shot = [], [], []
    with open_stoker("disk", load.in_flight) as server, _open_tool() as tool:
        async with open_remote(server.address) as remote:
            await actions.upload(remote)
            request = _request(_files(load.inputs, ""))
            await _latency_ms(remote, warm[0], load.in_flight)
            for batch in range(rounds):
                ours.append(await _latency_ms(remote, warm[batch + 1], load.in_flight))
                own.append(_own_ms(tool, request, count))
                one_shot.append(await _latency_ms(remote, cold[batch], load.in_flight))
    return [
        Row(
            what=f"warm action, {load.said}",
            unit="ms",
            ours=[mine - alone for mine, alone in zip(ours, own, strict=True)],
            against=f"a bound of {AT_MOST_MS:g} ms",
            theirs=[AT_MOST_MS] * rounds,
            at_most=1.0 if (load.inputs, load.in_flight) == (1_000, 1) else None,
        ),
        Row(
            what=f"warm action, {load.said}",
            unit="ms",
            ours=ours,
            against="without a worker",
            theirs=one_shot,
        ),
    ]


async def _measure_chain(load: _Load, quick: bool) -> Row:
    count, rounds = (8, 2) if quick else (64, 5)
    actions = Actions()
    batches = [_add(actions, load, f"{batch}", count, WARM) for batch in range(rounds + 1)]
    ours, chain = [], []
    with open_stoker("disk", load.in_flight) as server, _open_chain(actions, load) as bare:
        async with open_remote(server.address) as remote, open_remote(bare.address) as other:
            await actions.upload(remote)
            for batch in batches:
                ours.append(await _latency_ms(remote, batch, load.in_flight))
                chain.append(await _latency_ms(other, batch, load.in_flight))
    return Row(
        what=f"warm action, {load.said}",
        unit="ms",
        ours=ours[1:],
        against="a bare chain",
        theirs=chain[1:],
    )


@contextmanager
def _open_chain(actions: Actions, load: _Load) -> Iterator[ServerProcess]:
    """What any server has to do for one of these actions, and nothing else."""
    files = _files(load.inputs, "")
    action = reapi.Action.FromString(actions.blobs[actions.add(COMMAND, files, platform=WARM)])
    root = actions.blobs[SHA256.parse(action.input_root_digest)]
    directory = reapi.Directory.FromString(root).directories[0]
    messages = {
        "action": action.SerializeToString(),
        "command": actions.blobs[SHA256.parse(action.command_digest)],
        "root": root,
        "directory": actions.blobs[SHA256.parse(directory.digest)],
        "request": _request(files),
    }
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder:
        for name, data in messages.items():
            Path(folder, name).write_bytes(data)
        with open_program("bare_chain.py", folder, str(TOOL)) as server:
            yield server


def _add(
    actions: Actions, load: _Load, salt: str, count: int, platform: Mapping[str, str]
) -> list[Digest]:
    return [
        actions.add(COMMAND, _files(load.inputs, f"{salt} {number}"), platform=platform)
        for number in range(count)
    ]


def _files(inputs: int, salt: str) -> Mapping[str, bytes]:
    files = {f"source{n // _FILES_PER_FOLDER}/file{n}": b"%d" % n for n in range(inputs)}
    files["source0/file0"] = salt.encode()
    return {"tool.py": TOOL.read_bytes(), "flags": b"--do\n--it\n", **files}


async def _latency_ms(remote: RemoteInstance, actions: Sequence[Digest], in_flight: int) -> float:
    """The median of single actions."""
    taken: list[float] = []

    async def run(action: Digest) -> None:
        start = time.perf_counter()
        response = await remote.run(action)
        taken.append((time.perf_counter() - start) * 1e3)
        assert not response.status.code, response.status.message
        assert not response.cached_result
        # What could not be given to a worker has a message that says why.
        assert not response.message, response.message

    await at_a_time(in_flight, actions, run)
    return statistics.median(taken)


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


@contextmanager
def _open_tool() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-IS", str(TOOL), "--persistent_worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tool:
        yield tool
        assert tool.stdin is not None
        tool.stdin.close()


def _own_ms(tool: subprocess.Popen[bytes], request: bytes, count: int) -> float:
    """The median of as many requests, one after the other."""
    assert tool.stdin is not None
    assert tool.stdout is not None
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        tool.stdin.write(request)
        tool.stdin.flush()
        assert tool.stdout.read(1) == b"\0"
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken)
