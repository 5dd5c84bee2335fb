"""Random requests to a real server: it never crashes, never says INTERNAL, never leaves its store.

STOKER_FUZZ_REQUESTS sets how many, STOKER_FUZZ_SEED with what they begin.
"""

from __future__ import annotations

import json
import os
import random
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from google.longrunning import operations_pb2
from google.protobuf.message import Message

from stoker.client import open_remote
from stoker.digest import DIGEST_FUNCTIONS, SHA256, Digest
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Channel, RpcError, StatusCode, open_channel

from .server_process import LOCAL, open_server_process

REQUESTS = int(os.environ.get("STOKER_FUZZ_REQUESTS", "20000"))
SEED = os.environ.get("STOKER_FUZZ_SEED", "stoker")
TASKS = 16
REAPI = "/build.bazel.remote.execution.v2."
CAS = REAPI + "ContentAddressableStorage/"
BYTESTREAM = "/google.bytestream.ByteStream/"

# Statuses that a server in good health may answer to nonsense.
EXPECTED = {
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.OUT_OF_RANGE,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.UNIMPLEMENTED,
    StatusCode.ABORTED,  # two calls on one upload
    StatusCode.DEADLINE_EXCEEDED,
}

NUMBERS = (0, 1, -1, 4, 5, 100, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63))
SEGMENTS = (
    *("", ".", "..", "blobs", "uploads", "compressed-blobs", "zstd", "identity", "actions"),
    *("blake3", "sha1", "sha256tree", "u", "-1", "0", "5", "007", "²", "a b", "ü\u202e\U0001f600"),
    *("../../etc/passwd", "..%2f..", "\0", "%00", "\x7f\x01", "x" * 300, "9" * 5_000, "~root"),
)


class Nonsense:
    """Requests of all kinds, near to right ones and far from them."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        blobs = [self._random.randbytes(n) for n in (0, 1, 5, 5, 100, 5_000, 70_000)]
        self._blobs = [
            *blobs,
            reapi.Directory().SerializeToString(),
            reapi.Directory(
                directories=[reapi.DirectoryNode(name="d", digest=SHA256.empty.to_proto())]
            ).SerializeToString(),
        ]
        self._kinds: list[Callable[[], tuple[str, list[bytes]]]] = [
            *[self._read, self._write, self._status] * 3,
            *[self._missing, self._update, self._batch_read, self._tree] * 2,
            self._result,
            self._update_result,
            self._execute,
            self._capabilities,
            self._operation,
        ]

    def request(self) -> tuple[str, list[bytes]]:
        """The full name of a method and the messages to send it."""
        method, messages = self._random.choice(self._kinds)()
        if self._random.random() < 0.2:
            messages = [self._damaged(message) for message in messages]
        return method, messages

    def _one(self, *choices: object) -> object:
        return self._random.choice(choices)

    def _damaged(self, message: bytes) -> bytes:
        data = bytearray(message or b"\0")
        for _ in range(self._random.randrange(4)):
            data[self._random.randrange(len(data))] = self._random.randrange(256)
        cut = self._random.randrange(len(data) + 1)
        return bytes(data[:cut] if self._random.random() < 0.3 else data)

    def _blob(self) -> bytes:
        return self._random.choice(self._blobs)

    def _digest(self) -> reapi.Digest:
        function = self._random.choice((SHA256,) * len(DIGEST_FUNCTIONS) + DIGEST_FUNCTIONS)
        digest = function.digest(self._blob()).to_proto()
        if self._random.random() < 0.15:
            digest.size_bytes = self._number()
        if self._random.random() < 0.1:
            digest.hash = self._text()
        return digest

    def _number(self) -> int:
        return self._random.choice((*NUMBERS, self._random.randrange(-10, 70_010)))

    def _function(self) -> int:
        return self._random.choice((0, 0, 0, 1, 1, 1, 9, self._random.randrange(-2, 14)))

    def _text(self) -> str:
        letters = string.printable + "é²\u202e"
        return "".join(self._random.choices(letters, k=self._random.choice((0, 1, 40, 64, 65))))

    def _instance(self) -> str:
        if self._random.random() < 0.8:
            return self._random.choice(("", "tenant/b"))
        return "/".join(self._random.choices(SEGMENTS, k=self._random.randrange(1, 4)))

    def _name(self, *, upload: bool) -> str:
        digest = self._digest()
        segments = [self._instance()] if self._random.random() < 0.4 else []
        if upload or self._random.random() < 0.1:
            segments += ["uploads", str(self._one("u", "v", *SEGMENTS))]
        segments += ["compressed-blobs", "zstd"] if self._random.random() < 0.4 else ["blobs"]
        if self._random.random() < 0.3:
            segments.append(str(self._one("blake3", "sha1", *SEGMENTS)))
        segments += [digest.hash, str(digest.size_bytes)]
        while self._random.random() < 0.15:
            place = self._random.randrange(len(segments) + 1)
            segments.insert(place, self._random.choice(SEGMENTS))
        if self._random.random() < 0.1:
            del segments[self._random.randrange(len(segments))]
        return "/".join(segments)

    def _read(self) -> tuple[str, list[bytes]]:
        request = bytestream.ReadRequest(
            resource_name=self._name(upload=False),
            read_offset=self._random.choice((0, 0, self._number())),
            read_limit=self._random.choice((0, 0, self._number())),
        )
        return BYTESTREAM + "Read", [request.SerializeToString()]

    def _status(self) -> tuple[str, list[bytes]]:
        request = bytestream.QueryWriteStatusRequest(resource_name=self._name(upload=True))
        return BYTESTREAM + "QueryWriteStatus", [request.SerializeToString()]

    def _write(self) -> tuple[str, list[bytes]]:
        name, data = self._name(upload=True), self._blob()
        offset = self._random.choice((0, 0, 0, 1, 5, self._number()))
        size = self._random.choice((1_000, 20_000, 100_000))
        requests: list[bytestream.WriteRequest] = []
        for start in range(0, len(data) + 1, size):
            piece = data[start : start + size]
            requests.append(
                bytestream.WriteRequest(
                    resource_name=self._random.choice((name, name, "", "other"))
                    if requests
                    else name,
                    write_offset=offset + start if offset < 1 << 40 else offset,
                    finish_write=start + size > len(data) and self._random.random() < 0.8,
                    data=piece,
                )
            )
        return BYTESTREAM + "Write", [request.SerializeToString() for request in requests]

    def _digests(self) -> list[reapi.Digest]:
        if self._random.random() < 0.5:
            return [SHA256.digest(blob).to_proto() for blob in self._random.choices(self._blobs)]
        return [self._digest() for _ in range(self._random.randrange(6))]

    def _missing(self) -> tuple[str, list[bytes]]:
        return CAS + "FindMissingBlobs", _as_sent(
            reapi.FindMissingBlobsRequest(
                instance_name=self._instance(),
                blob_digests=self._digests(),
                digest_function=self._function(),  # type: ignore[arg-type] # any number
            )
        )

    def _update(self) -> tuple[str, list[bytes]]:
        return CAS + "BatchUpdateBlobs", _as_sent(
            reapi.BatchUpdateBlobsRequest(
                instance_name=self._instance(),
                digest_function=self._function(),  # type: ignore[arg-type] # any number
                requests=[
                    reapi.BatchUpdateBlobsRequest.Request(
                        digest=digest,
                        data=self._blob(),
                        compressor=self._random.choice((0, 0, 1, 2, 77)),  # type: ignore[arg-type]
                    )
                    for digest in self._digests()
                ],
            )
        )

    def _batch_read(self) -> tuple[str, list[bytes]]:
        return CAS + "BatchReadBlobs", _as_sent(
            reapi.BatchReadBlobsRequest(
                instance_name=self._instance(),
                digests=self._digests(),
                digest_function=self._function(),  # type: ignore[arg-type] # any number
                acceptable_compressors=self._random.choices((0, 1, 2, 77)),  # type: ignore[arg-type]
            )
        )

    def _tree(self) -> tuple[str, list[bytes]]:
        return CAS + "GetTree", _as_sent(
            reapi.GetTreeRequest(
                instance_name=self._instance(),
                root_digest=self._digest(),
                page_size=self._random.choice((0, 1, -1, (1 << 31) - 1)),
                page_token=self._random.choice(("", "", self._text(), "MDA6MQ==")),
                digest_function=self._function(),  # type: ignore[arg-type] # any number
            )
        )

    def _result(self) -> tuple[str, list[bytes]]:
        return REAPI + "ActionCache/GetActionResult", _as_sent(
            reapi.GetActionResultRequest(
                instance_name=self._instance(),
                action_digest=self._digest(),
                inline_stdout=True,
                digest_function=self._function(),  # type: ignore[arg-type] # any number
            )
        )

    def _update_result(self) -> tuple[str, list[bytes]]:
        return REAPI + "ActionCache/UpdateActionResult", _as_sent(
            reapi.UpdateActionResultRequest(
                instance_name=self._instance(),
                action_digest=self._digest(),
                action_result=reapi.ActionResult(
                    output_files=[
                        reapi.OutputFile(path=self._text(), digest=self._digest())
                        for _ in range(self._random.randrange(3))
                    ],
                    stdout_digest=self._digest(),
                    stdout_raw=self._blob(),
                ),
                digest_function=self._function(),  # type: ignore[arg-type] # any number
            )
        )

    def _execute(self) -> tuple[str, list[bytes]]:
        return REAPI + "Execution/Execute", _as_sent(
            reapi.ExecuteRequest(
                instance_name=self._instance(),
                action_digest=self._digest(),
                digest_function=self._function(),  # type: ignore[arg-type] # any number
            )
        )

    def _capabilities(self) -> tuple[str, list[bytes]]:
        request = reapi.GetCapabilitiesRequest(instance_name=self._instance())
        return REAPI + "Capabilities/GetCapabilities", _as_sent(request)

    def _operation(self) -> tuple[str, list[bytes]]:
        request = operations_pb2.GetOperationRequest(name=self._text())
        return "/google.longrunning.Operations/GetOperation", _as_sent(request)


def _as_sent(message: Message) -> list[bytes]:
    return [message.SerializeToString()]


async def send(channel: Channel, method: str, messages: list[bytes]) -> str:
    """Make the call; returns the name of its status. Fails for a bad one."""
    try:
        async with channel.open_stream(method, bytes) as stream:
            try:
                for message in messages:
                    await stream.send(message)
                await stream.send_eof()
            except trio.BrokenResourceError:
                pass  # the server has answered already
            while await stream.receive() is not None:
                pass
    except RpcError as error:
        if error.code not in EXPECTED:
            pytest.fail(f"{method} answered {error} to {messages!r:.2000}")
        return error.code.name
    return "OK"


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
async def test_no_request_breaks_the_server(tmp_path: Path) -> None:  # SEC-05
    toml = LOCAL + '\n[instances."tenant/b"]\nblob_store = "main"\naction_cache = "main"\n'
    home = tmp_path / "deep" / "down" / "server"
    home.parent.mkdir(parents=True)
    outside = files_of(tmp_path)
    nonsense = Nonsense(SEED)
    statuses: Counter[str] = Counter()
    remaining = iter(range(REQUESTS))

    async def send_on(channel: Channel) -> None:
        for _ in remaining:
            method, messages = nonsense.request()
            statuses[await send(channel, method, messages)] += 1

    with open_server_process(home, toml) as server:
        async with open_channel(server.address) as channel, trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(send_on, channel)
        # Still alive, and still right.
        async with open_remote(f"grpc://{server.address}") as remote:
            data = b"after all that"
            digest = SHA256.digest(data)
            await remote.upload_blobs({digest: data})
            assert await remote.read_blob(digest) == data
        assert server.process.poll() is None
    print(json.dumps(statuses))
    assert sum(statuses.values()) == REQUESTS
    assert statuses["OK"] > REQUESTS / 20, "nonsense that is all refused at the door tests little"
    log = (home / "server.log").read_text(errors="replace")
    assert "Traceback" not in log, log[-5_000:]
    new = {
        name for name in files_of(tmp_path) - outside if not name.startswith("deep/down/server/")
    }
    assert not new
    assert_blobs_are_their_names(home / "cas")


def assert_blobs_are_their_names(store: Path) -> None:
    """Every blob in the store's folder is named by its own hash and size."""
    functions = {function.name.lower(): function for function in DIGEST_FUNCTIONS}
    seen = 0
    for path in store.rglob("*-*"):
        function = functions.get(path.relative_to(store).parts[0])
        if function is None or not path.is_file():
            continue
        name, _, size = path.name.partition("-")
        if len(name) == function.hash_length and size.isdigit():
            assert function.digest(path.read_bytes()) == Digest(name, int(size), function)
            seen += 1
    assert seen
