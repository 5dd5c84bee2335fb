"""What one call says and the next one finds; what needs no storage; who may write."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager

import grpc
import pytest

from stoker.digest import SHA256, Digest
from stoker.errors import StokerError, Unavailable
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobReader
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.read_only import ReadOnlyBlobStore

from .conftest import REAPI, chunks, code_of, failure_of, instance_of, open_front_door

NOT_FOUND = grpc.StatusCode.NOT_FOUND


class Counting(MemoryBlobStore):
    """Counts the questions."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        self.asked.append(len(digests))
        return await super().find_missing(digests)


class Unreachable(MemoryBlobStore):
    """Answers nothing."""

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        raise Unavailable(f"{len(digests)} blobs were asked for in vain")


async def test_answers_agree_with_what_follows() -> None:  # FMB-08, BUB-12, BUB-13
    async with open_front_door(instance_of(MemoryBlobStore())) as client:
        blobs = [os.urandom(100) for _ in range(10)]
        digests = [SHA256.digest(blob) for blob in blobs]
        assert len(await client.missing(*digests)) == 10
        for digest in digests:
            assert await code_of(client.read(f"blobs/{digest}")) is NOT_FOUND
        await client.put(*blobs)
        assert await client.missing(*digests) == set()
        assert [await client.read(f"blobs/{digest}") for digest in digests] == blobs


async def test_store_is_asked_once_for_a_batch() -> None:  # FMB-10
    store = Counting()
    async with open_front_door(instance_of(store)) as client:
        digests = [SHA256.digest(b"%d" % number) for number in range(5_000)]
        assert len(await client.missing(*digests, *digests)) == 5_000
    assert store.asked == [5_000]


async def test_capabilities_need_no_storage_and_no_credentials() -> None:  # CAP-16, CAP-17
    async with open_front_door(instance_of(Unreachable())) as client:
        capabilities = await client.capabilities()  # GEN-23: on the port of all services
        assert capabilities.cache_capabilities.digest_functions
        assert not capabilities.HasField("execution_capabilities")  # CAP-01
        call = client.missing(SHA256.digest(b"x"))
        assert await code_of(call) is grpc.StatusCode.UNAVAILABLE  # never "missing"


async def test_instance_that_takes_no_results_says_so() -> None:  # CAP-07, ACU-06
    instance = instance_of(MemoryBlobStore(), client_updates=False)
    async with open_front_door(instance, instance_of(MemoryBlobStore(), "open")) as client:
        for name, enabled in (("", False), ("open", True)):
            cache = (await client.capabilities(name)).cache_capabilities
            assert cache.action_cache_update_capabilities.update_enabled is enabled
        request = reapi.UpdateActionResultRequest(
            action_digest=SHA256.empty.to_proto(), action_result=reapi.ActionResult()
        )
        call = client.unary(REAPI + "ActionCache/UpdateActionResult", request, reapi.ActionResult)
        assert await code_of(call) is grpc.StatusCode.PERMISSION_DENIED


async def test_read_only_store_refuses_at_the_first_message() -> None:  # BSW-27, FMB-07
    inner = MemoryBlobStore()
    data = os.urandom(64 << 20)
    digest = SHA256.digest(data)
    sent = 0

    def requests() -> object:
        nonlocal sent
        for request in chunks(f"uploads/u/blobs/{digest}", data, 1 << 20):
            sent += 1
            yield request

    async with open_front_door(instance_of(ReadOnlyBlobStore(inner, "main"))) as client:
        assert await client.missing(digest) == {digest.hash}
        error = await failure_of(client.write(requests()))  # type: ignore[arg-type] # a generator
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert sent < 64


@pytest.mark.parametrize("size", [100, 3 << 20])
async def test_upload_goes_on_at_another_server(size: int) -> None:  # BSQ-06
    store = MemoryBlobStore()
    data = os.urandom(size)
    name = f"uploads/u/blobs/{SHA256.digest(data)}"
    half = size // 2
    async with open_front_door(instance_of(store)) as client:
        await client.write([bytestream.WriteRequest(resource_name=name, data=data[:half])])
    async with open_front_door(instance_of(store)) as client:
        assert await client.write_status(name) == (half, False)
        rest = chunks(name, data[half:], 1 << 20, offset=half)
        assert await client.write(rest) == size
        assert await client.read(f"blobs/{SHA256.digest(data)}") == data


class Evicting(MemoryBlobStore):
    """Holds ten blobs, and forgets those that were not looked at for the longest time."""

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        self._touch(digests)
        return await super().find_missing(digests)

    def open_read(  # type: ignore[override] # any context manager will do
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AbstractAsyncContextManager[BlobReader]:
        self._touch([digest])
        return super().open_read(digest, offset, limit)

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        self._touch(digests)
        return await super().read_many(digests)

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        failures = await super().write_many(blobs)
        while len(self._blobs) > 10:
            del self._blobs[next(iter(self._blobs))]
        return failures

    def _touch(self, digests: Collection[Digest]) -> None:
        for digest in digests:
            if digest in self._blobs:
                self._blobs[digest] = self._blobs.pop(digest)


async def test_looking_at_blobs_extends_their_life() -> None:  # FMB-03, GTR-12, BSR-21
    async with open_front_door(instance_of(Evicting())) as client:
        directory = reapi.Directory(symlinks=[reapi.SymlinkNode(name="l", target="t")])
        leaf = await client.put_message(directory)
        node = reapi.DirectoryNode(name="leaf", digest=leaf.to_proto())
        root = await client.put_message(reapi.Directory(directories=[node]))
        asked, read, forgotten = await client.put(b"asked for", b"read", b"forgotten")
        for number in range(20):
            tree = reapi.GetTreeRequest(root_digest=root.to_proto())
            cas = REAPI + "ContentAddressableStorage/"
            await client.stream(cas + "GetTree", tree, reapi.GetTreeResponse)
            assert await client.missing(asked) == set()
            assert await client.read(f"blobs/{read}") == b"read"
            await client.put(b"%d" % number)
        assert await client.missing(root, leaf, asked, read, forgotten) == {forgotten.hash}
