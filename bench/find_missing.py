"""FindMissingBlobs of 10,000 digests, against the least that a server has to do for it.

stoker keeps the blobs in its disk store. The least is a plain loop in one process: parse the
request, ask the system for each file, serialise the answer.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from bench.measurement import Pair, Row, cost_at, cost_here, in_turns
from bench.servers import ServerProcess, open_stoker
from stoker.client import open_remote
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Channel, open_channel

METHOD = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs"
AGAINST = "a plain loop"


def measure(*, quick: bool) -> list[Row]:
    """Rows for digests that are all there, and for as many that are not."""
    return trio.run(_measure, quick)


async def _measure(quick: bool) -> list[Row]:
    count, rounds = (200, 2) if quick else (10_000, 9)
    blobs = {SHA256.digest(data): data for data in (b"%d" % number for number in range(count))}
    absent = [SHA256.digest(b"absent %d" % number) for number in range(count)]
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as name, open_stoker("disk") as ours:
        folder = Path(name)
        _make_files(folder, list(blobs))
        async with open_remote(ours.address) as remote, open_channel(ours.address) as channel:
            await remote.upload_blobs(blobs)
            comparison = _Comparison(ours, channel, folder, rounds)
            return [
                *await comparison.rows(f"find missing, all {count:,} there", list(blobs)),
                *await comparison.rows(f"find missing, none of {count:,} there", absent),
            ]


class _Comparison:
    def __init__(self, ours: ServerProcess, channel: Channel, folder: Path, rounds: int) -> None:
        self._ours = ours
        self._channel = channel
        self._folder = folder
        self._rounds = rounds

    async def rows(self, what: str, digests: Sequence[Digest]) -> list[Row]:
        request = reapi.FindMissingBlobsRequest(
            blob_digests=[digest.to_proto() for digest in digests]
        ).SerializeToString()

        async def ask() -> bytes:
            return await self._channel.unary_unary(METHOD, request, bytes)

        async def loop() -> bytes:
            return _find_missing(request, self._folder)

        assert len(await ask()) == len(await loop())
        costs = await in_turns(
            self._rounds, lambda: cost_at(self._ours, ask), lambda: cost_here(loop)
        )
        pair = Pair(*costs)
        return [
            pair.wall_row(what, AGAINST, unit="ms", per_second=1e3),
            pair.cpu_row(what, AGAINST, unit="ms CPU", per_second=1e3),
        ]


def _path(folder: Path, hash_: str) -> str:
    return f"{folder}/{hash_[:2]}/{hash_}"


def _make_files(folder: Path, digests: Sequence[Digest]) -> None:
    for digest in digests:
        path = Path(_path(folder, digest.hash))
        path.parent.mkdir(exist_ok=True)
        path.touch()


def _find_missing(data: bytes, folder: Path) -> bytes:
    request = reapi.FindMissingBlobsRequest.FromString(data)
    response = reapi.FindMissingBlobsResponse()
    for digest in request.blob_digests:
        try:
            os.stat(_path(folder, digest.hash))  # noqa: PTH116  # the least, without a Path
        except FileNotFoundError:
            response.missing_blob_digests.append(digest)
    return response.SerializeToString()
