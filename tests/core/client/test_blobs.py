"""Blobs through the client, on a whole server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from stoker.client import RemoteInstance, open_remote
from stoker.digest import SHA256, Digest
from stoker.errors import DataLoss
from stoker.protos import bytestream_pb2
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import (
    RpcError,
    Server,
    ServerCall,
    Service,
    StatusCode,
    unary_stream,
    unary_unary,
)
from stoker.testing.server import MEMORY_ONLY, open_test_server


@pytest.fixture
async def remote(tmp_path: Path) -> AsyncIterator[RemoteInstance]:
    async with (
        open_test_server(MEMORY_ONLY, tmp_path) as server,
        open_remote(server.address) as opened,
    ):
        yield opened


def blobs_of(*contents: bytes) -> dict[Digest, bytes]:
    return {SHA256.digest(content): content for content in contents}


async def test_blobs_of_all_sizes_come_back(remote: RemoteInstance) -> None:
    limit = (await remote.capabilities()).cache_capabilities.max_batch_total_size_bytes
    sizes = [0, 1, limit - 1, limit, limit + 1, 3 * limit]
    blobs = blobs_of(*(os.urandom(size) for size in sizes))
    await remote.upload_blobs(blobs)
    assert await remote.find_missing(blobs) == set()
    assert {digest: await remote.read_blob(digest) for digest in blobs} == blobs


async def test_files_of_all_sizes_come_back(remote: RemoteInstance, tmp_path: Path) -> None:
    blobs = blobs_of(b"", b"small", os.urandom(10_000_000))
    files = {}
    for digest, content in blobs.items():
        files[digest] = tmp_path / digest.hash
        files[digest].write_bytes(content)
    await remote.upload_files(files)
    for digest, content in blobs.items():
        await remote.download_file(digest, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content


async def test_more_blobs_than_one_batch_holds(remote: RemoteInstance) -> None:
    blobs = blobs_of(*(b"%d" % number for number in range(9_000)))
    await remote.upload_blobs(blobs)
    assert await remote.find_missing(blobs) == set()


async def test_more_digests_than_one_call_asks_for(remote: RemoteInstance) -> None:
    blobs = blobs_of(*(b"%d" % number for number in range(45_000)))
    present = dict(list(blobs.items())[:10])
    await remote.upload_blobs(present)
    assert await remote.find_missing(blobs) == blobs.keys() - present.keys()


async def test_a_blob_can_be_sent_again(remote: RemoteInstance) -> None:
    blobs = blobs_of(b"small", os.urandom(10_000_000))
    await remote.upload_blobs(blobs)
    await remote.upload_blobs(blobs)


async def test_an_absent_blob_is_not_found(remote: RemoteInstance) -> None:
    with pytest.raises(RpcError) as caught:
        await remote.read_blob(SHA256.digest(b"absent"))
    assert caught.value.code is StatusCode.NOT_FOUND


@pytest.mark.parametrize("size_bytes", [10, 10_000_000])
async def test_a_file_that_changed_is_refused(
    remote: RemoteInstance, tmp_path: Path, size_bytes: int
) -> None:
    digest = SHA256.digest(b"a" * size_bytes)
    for content in (b"b" * size_bytes, b"a" * (size_bytes + 1), b"a" * (size_bytes - 1)):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(RpcError, match=digest.hash):
            await remote.upload_files({digest: tmp_path / "file"})
    assert await remote.find_missing([digest]) == {digest}


async def test_a_download_that_fails_leaves_the_old_file(
    remote: RemoteInstance, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    with pytest.raises(RpcError):
        await remote.download_file(SHA256.digest(b"absent"), folder / "file")
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_bytes() == b"old"


async def test_a_download_that_is_cancelled_leaves_nothing(
    remote: RemoteInstance, tmp_path: Path
) -> None:
    blobs = blobs_of(os.urandom(10_000_000))
    await remote.upload_blobs(blobs)
    folder = tmp_path / "folder"
    folder.mkdir()
    with trio.CancelScope() as scope:
        scope.cancel()
        await remote.download_file(next(iter(blobs)), folder / "file")
    assert list(folder.iterdir()) == []


async def test_a_download_can_be_executable(remote: RemoteInstance, tmp_path: Path) -> None:
    (digest,) = blobs = blobs_of(b"#!/bin/sh\n")
    await remote.upload_blobs(blobs)
    await remote.download_file(digest, tmp_path / "tool", executable=True)
    await remote.download_file(digest, tmp_path / "text")
    assert os.access(tmp_path / "tool", os.X_OK)
    assert not (tmp_path / "text").stat().st_mode & 0o111


async def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    target = f"unix:{tmp_path / 'absent'}"
    with pytest.raises(RpcError, match="absent") as caught:
        async with open_remote(target):
            pass
    assert caught.value.code is StatusCode.UNAVAILABLE


async def test_an_instance_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with open_test_server(MEMORY_ONLY, tmp_path) as server:
        with pytest.raises(RpcError, match="'elsewhere'"):
            async with open_remote(server.address, "elsewhere"):
                pass


async def test_an_instance_name_of_several_segments(tmp_path: Path) -> None:  # BSR-02
    toml = MEMORY_ONLY.replace('[instances.""]', '[instances."a/b c"]')
    blobs = blobs_of(b"small", os.urandom(10_000_000))
    async with (
        open_test_server(toml, tmp_path) as server,
        open_remote(server.address, "a/b c") as remote,
    ):
        await remote.upload_blobs(blobs)
        assert {digest: await remote.read_blob(digest) for digest in blobs} == blobs


@pytest.mark.parametrize("sent", [b"wrong", b"short", b"right and more", b""])
async def test_a_server_that_sends_another_blob_is_caught(sent: bytes, tmp_path: Path) -> None:
    seen: list[reapi.RequestMetadata] = []

    async def read(_: bytestream_pb2.ReadRequest, call: ServerCall) -> None:
        await call.send(bytestream_pb2.ReadResponse(data=sent))

    async def capabilities(
        _: reapi.GetCapabilitiesRequest, call: ServerCall
    ) -> reapi.ServerCapabilities:
        header = call.metadata.get("build.bazel.remote.execution.v2.requestmetadata-bin")
        assert isinstance(header, bytes)
        seen.append(reapi.RequestMetadata.FromString(header))
        return reapi.ServerCapabilities()

    reading = unary_stream(read, bytestream_pb2.ReadRequest, bytestream_pb2.ReadResponse)
    asking = unary_unary(capabilities, reapi.GetCapabilitiesRequest, reapi.ServerCapabilities)
    server = Server(
        [
            Service("google.bytestream.ByteStream", {"Read": reading}),
            Service("build.bazel.remote.execution.v2.Capabilities", {"GetCapabilities": asking}),
        ]
    )
    port = server.add_listener("127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        async with open_remote(f"127.0.0.1:{port}") as remote:
            with pytest.raises(DataLoss):
                await remote.download_file(SHA256.digest(b"right"), tmp_path / "file")
        await server.stop(0)
    assert list(tmp_path.iterdir()) == []
    assert [metadata.tool_details.tool_name for metadata in seen] == ["stoker"]  # GEN-11
