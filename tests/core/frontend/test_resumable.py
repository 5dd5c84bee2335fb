"""Uploads that break off and go on (BSW-04, 08, 17…21; BSQ; GEN-26)."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import grpc
import pytest
import trio

from stoker.digest import BLAKE3, SHA256, Digest
from stoker.protos import bytestream_pb2 as bytestream
from stoker.rpc import RpcError, StatusCode, open_channel
from stoker.spi import BlobStore, BlobUpload
from stoker.storage.memory import MemoryBlobStore

from .conftest import (
    BYTESTREAM,
    Client,
    chunks,
    code_of,
    failure_of,
    instance_of,
    open_front_door,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
DATA = os.urandom(1 << 20)
DIGEST = SHA256.digest(DATA)
HALF = len(DATA) // 2


class Watched(MemoryBlobStore):
    """Tells what goes on with uploads, which a client cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.left = trio.Event()
        self.written = trio.Event()

    @asynccontextmanager
    async def open_upload(self, digest: Digest, upload: str) -> AsyncIterator[BlobUpload]:
        try:
            async with super().open_upload(digest, upload) as writer:
                yield _WatchedUpload(self, writer)
        finally:
            self.left.set()


class _WatchedUpload(BlobUpload):
    def __init__(self, store: Watched, inner: BlobUpload) -> None:
        self._store = store
        self._inner = inner
        self.offset = inner.offset

    async def write(self, data: bytes | memoryview) -> None:
        await self._inner.write(data)
        self._store.written.set()

    async def read_kept(self, offset: int, max_bytes: int) -> bytes:
        return await self._inner.read_kept(offset, max_bytes)

    async def restart(self) -> None:
        await self._inner.restart()


@pytest.fixture
def store() -> Watched:
    return Watched()


@pytest.fixture
async def client(store: Watched) -> AsyncIterator[Client]:
    """Two instances on one store."""
    async with open_front_door(instance_of(store), instance_of(store, "tenant/b")) as client:
        yield client


def upload_name(digest: Digest = DIGEST, upload: str = "u", instance: str = "") -> str:
    return f"{instance}uploads/{upload}/blobs/{digest.function.segment}{digest}"


async def write_half(client: Client, name: str | None = None) -> int:
    """Send the first half of DATA and half-close."""
    name = name or upload_name()
    return await client.write([bytestream.WriteRequest(resource_name=name, data=DATA[:HALF])])


async def test_upload_goes_on_where_it_has_ended(client: Client) -> None:
    assert await write_half(client) == HALF  # BSW-08
    assert await client.missing(DIGEST) == {DIGEST.hash}  # FMB-06
    assert await code_of(client.read(f"blobs/{DIGEST}")) is grpc.StatusCode.NOT_FOUND  # BSW-26
    assert await client.write_status(upload_name()) == (HALF, False)  # BSQ-02
    rest = chunks(upload_name(), DATA[HALF:], 100_000, offset=HALF)
    assert await client.write(rest) == len(DATA)  # BSW-17, BSW-20
    assert await client.read(f"blobs/{DIGEST}") == DATA
    assert await client.write_status(upload_name()) == (len(DATA), True)  # BSQ-01


async def test_upload_goes_on_many_times(client: Client) -> None:
    data = DATA[:1_000]
    digest = BLAKE3.digest(data)
    name = upload_name(digest)
    for offset in range(0, 1_000, 100):
        part = bytestream.WriteRequest(
            resource_name=name, write_offset=offset, data=data[offset : offset + 100]
        )
        assert await client.write([part]) == offset + 100
    assert await client.missing(digest, function=BLAKE3) == {digest.hash}
    finish = bytestream.WriteRequest(resource_name=name, write_offset=1_000, finish_write=True)
    assert await client.write([finish]) == 1_000  # BSW-06
    assert await client.read(f"blobs/blake3/{digest}") == data


async def test_connection_that_breaks_leaves_what_was_sent(client: Client, store: Watched) -> None:
    async with open_channel(client.address) as channel:
        with trio.CancelScope() as scope:
            async with channel.open_stream(
                f"{BYTESTREAM}Write", bytestream.WriteResponse
            ) as stream:
                await stream.send(
                    bytestream.WriteRequest(resource_name=upload_name(), data=DATA[:HALF])
                )
                await store.written.wait()
                scope.cancel()
                await trio.sleep_forever()
    await store.left.wait()
    assert await client.write_status(upload_name()) == (HALF, False)  # BSQ-02
    rest = chunks(upload_name(), DATA[HALF:], 1 << 20, offset=HALF)
    assert await client.write(rest) == len(DATA)  # BSW-17
    assert await client.read(f"blobs/{DIGEST}") == DATA


async def test_offset_zero_begins_again(client: Client) -> None:
    await write_half(client)  # BSW-18
    assert await client.write(chunks(upload_name(), DATA, 300_000)) == len(DATA)
    assert await client.read(f"blobs/{DIGEST}") == DATA


async def test_beginning_again_forgets_what_was_kept(client: Client) -> None:
    await write_half(client)
    first = bytestream.WriteRequest(resource_name=upload_name(), data=DATA[:10])
    assert await client.write([first]) == 10
    assert await client.write_status(upload_name()) == (10, False)


@pytest.mark.parametrize("offset", [1, HALF - 1, 200_000])
@pytest.mark.parametrize("piece", [1 << 20, 100_003])
async def test_overlap_is_passed_over(client: Client, offset: int, piece: int) -> None:
    await write_half(client)  # BSW-18
    overlapping = chunks(upload_name(), DATA[offset:], piece, offset=offset)
    assert await client.write(overlapping) == len(DATA)
    assert await client.read(f"blobs/{DIGEST}") == DATA


async def test_offset_behind_the_end_is_refused_and_forgets_nothing(client: Client) -> None:
    await write_half(client)  # BSW-19
    ahead = chunks(upload_name(), DATA[HALF + 1 :], 1 << 20, offset=HALF + 1)
    error = await failure_of(client.write(ahead))
    assert error.code() is INVALID
    assert f"up to {HALF}, got {HALF + 1}" in error.details()  # BSW-04
    assert await client.write_status(upload_name()) == (HALF, False)  # BSQ-02
    negative = bytestream.WriteRequest(resource_name=upload_name(), write_offset=-1)
    assert await code_of(client.write([negative])) is INVALID
    new = chunks(upload_name(upload="new"), DATA[5:], 1 << 20, offset=5)
    error = await failure_of(client.write(new))
    assert "up to 0, got 5" in error.details()


async def test_wrong_rest_is_found_and_all_of_it_discarded(client: Client) -> None:
    await write_half(client)  # BSW-09
    wrong = chunks(upload_name(), DATA[:HALF], 1 << 20, offset=HALF)
    error = await failure_of(client.write(wrong))
    assert error.code() is INVALID
    assert "hashes to" in error.details()
    assert await client.missing(DIGEST) == {DIGEST.hash}
    assert await client.write_status(upload_name()) == (0, False)
    assert await client.write(chunks(upload_name(), DATA, 1 << 20)) == len(DATA)


async def test_kept_bytes_are_hashed_again(client: Client, store: Watched) -> None:
    wrong = bytes(HALF)
    await client.write([bytestream.WriteRequest(resource_name=upload_name(), data=wrong)])
    rest = chunks(upload_name(), DATA[HALF:], 1 << 20, offset=HALF)
    assert await code_of(client.write(rest)) is INVALID
    assert await store.find_missing([DIGEST]) == {DIGEST}


async def test_two_calls_on_one_upload(client: Client, store: Watched) -> None:
    async with (
        open_channel(client.address) as channel,
        channel.open_stream(f"{BYTESTREAM}Write", bytestream.WriteResponse) as stream,
    ):
        first_half = bytestream.WriteRequest(resource_name=upload_name(), data=DATA[:HALF])
        await stream.send(first_half)
        await store.written.wait()
        whole = chunks(upload_name(), DATA, 1 << 20)
        assert await code_of(client.write(whole)) is grpc.StatusCode.ABORTED  # BSW-21
        another = chunks(upload_name(upload="another"), DATA, 1 << 20)
        assert await client.write(another) == len(DATA)
        # The first one ends as well, though the blob is there by now (BSW-12).
        await stream.send(
            bytestream.WriteRequest(write_offset=HALF, data=DATA[HALF:], finish_write=True)
        )
        await stream.send_eof()
        response = await stream.receive()
    assert response is not None
    assert response.committed_size == len(DATA)
    assert await client.read(f"blobs/{DIGEST}") == DATA


async def test_uploads_of_others_are_not_met(client: Client) -> None:
    await write_half(client)  # BSW-03: one name, three uploads
    same_name = upload_name(SHA256.digest(DATA[:-1]))
    other_tenant = upload_name(instance="tenant/b/")
    for name in (same_name, other_tenant, upload_name(upload="v")):
        assert await client.write_status(name) == (0, False)
    assert await write_half(client, other_tenant) == HALF
    assert await client.write_status(upload_name()) == (HALF, False)


async def test_names_of_uploads(client: Client) -> None:
    for name in ("a b", "ü", "..", "x" * 256):  # BSW-03
        upload = chunks(upload_name(SHA256.digest(b"data"), name), b"data", 3)
        assert await client.write(upload) == 4
    too_long = chunks(upload_name(upload="x" * 257), DATA, 1 << 20)
    assert await code_of(client.write(too_long)) is INVALID
    for name in (f"uploads//blobs/{DIGEST}", f"uploads/a/b/blobs/{DIGEST}", "uploads/u"):
        assert await code_of(client.write_status(name)) is INVALID  # BSQ-05


async def test_deadline_that_expires_ends_the_upload(client: Client, store: Watched) -> None:
    call = client.channel.stream_unary(  # GEN-26
        f"{BYTESTREAM}Write",
        request_serializer=bytestream.WriteRequest.SerializeToString,
        response_deserializer=bytestream.WriteResponse.FromString,
    )
    release = threading.Event()

    def requests() -> object:
        yield bytestream.WriteRequest(resource_name=upload_name(), data=DATA[:HALF])
        release.wait()

    async def write() -> None:
        with pytest.raises(grpc.RpcError) as info:
            await trio.to_thread.run_sync(lambda: call(requests(), timeout=0.5))
        assert info.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await store.left.wait()
        release.set()
    assert store.used_bytes in (0, HALF)
    assert await client.write(chunks(upload_name(), DATA, 1 << 20)) == len(DATA)
    assert store.used_bytes == len(DATA)


class Forgetful(MemoryBlobStore):
    """As a store of an older plugin: uploads are what the base class makes of them."""

    def open_upload(  # type: ignore[override] # any context manager will do
        self, digest: Digest, upload: str
    ) -> AbstractAsyncContextManager[BlobUpload]:
        return BlobStore.open_upload(self, digest, upload)

    async def uploaded_bytes(self, digest: Digest, upload: str) -> int:
        return await BlobStore.uploaded_bytes(self, digest, upload)


async def test_store_that_keeps_nothing_says_so(client: Client) -> None:
    async with open_front_door(instance_of(Forgetful())) as forgetful:
        assert await write_half(forgetful) == 0  # BSW-08
        assert await forgetful.write_status(upload_name()) == (0, False)  # BSQ-03
        assert await forgetful.write(chunks(upload_name(), DATA, 1 << 20)) == len(DATA)


async def test_own_client_sees_the_statuses(client: Client) -> None:
    async with open_channel(client.address) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary_unary(
                f"{BYTESTREAM}QueryWriteStatus",
                bytestream.QueryWriteStatusRequest(resource_name=f"blobs/{DIGEST}"),
                bytestream.QueryWriteStatusResponse,
            )
    assert caught.value.code is StatusCode.INVALID_ARGUMENT  # BSQ-05
    assert f"blobs/{DIGEST}" in caught.value.message  # GEN-22
