"""What holds for every request: metadata, limits, messages, errors (sections 0 to 5)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection

import grpc
import pytest
import trio
from google.rpc import error_details_pb2, status_pb2

from stoker.digest import SHA256, Digest
from stoker.errors import DataLoss, Overloaded, Unavailable
from stoker.frontend.request_metadata import HEADER
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import remote_execution_pb2 as reapi
from stoker.storage.memory import MemoryBlobStore

from .conftest import (
    BYTESTREAM,
    REAPI,
    Client,
    chunks,
    code_of,
    failure_of,
    instance_of,
    open_front_door,
    status_of,
)

CAS = REAPI + "ContentAddressableStorage/"
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
RESOURCE_NAME = "build.bazel.remote.execution.v2.resource-name"
LIMIT = 1_000


class Troubled(MemoryBlobStore):
    """Reads of some blobs fail, as in a store that is in trouble."""

    def __init__(self) -> None:
        super().__init__(max_bytes=10_000)
        self.trouble: dict[Digest, Exception] = {}

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        for digest in digests:
            if digest in self.trouble:
                raise self.trouble[digest]
        return await super().read_many(digests)

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        for digest in digests:
            if digest in self.trouble:
                raise self.trouble[digest]
        return await super().find_missing(digests)


@pytest.fixture
def troubled() -> Troubled:
    return Troubled()


@pytest.fixture
async def client(troubled: Troubled) -> AsyncIterator[Client]:
    store = MemoryBlobStore()
    async with open_front_door(
        instance_of(store),
        instance_of(store, "a/b/c"),
        instance_of(store, "main-1.2 ü"),
        instance_of(store, "limited", max_blob_bytes=LIMIT),
        instance_of(troubled, "troubled"),
    ) as client:
        yield client


async def find_missing(
    client: Client,
    *digests: Digest,
    instance_name: str = "",
    metadata: tuple[tuple[str, str | bytes], ...] = (),
) -> int:
    request = reapi.FindMissingBlobsRequest(
        instance_name=instance_name, blob_digests=[digest.to_proto() for digest in digests]
    )
    method = CAS + "FindMissingBlobs"
    response = await client.unary(method, request, reapi.FindMissingBlobsResponse, metadata)
    return len(response.missing_blob_digests)


async def update(
    client: Client, blobs: list[tuple[Digest, bytes]], instance_name: str = ""
) -> list[status_pb2.Status]:
    request = reapi.BatchUpdateBlobsRequest(
        instance_name=instance_name,
        requests=[
            reapi.BatchUpdateBlobsRequest.Request(digest=digest.to_proto(), data=data)
            for digest, data in blobs
        ],
    )
    method = CAS + "BatchUpdateBlobs"
    response = await client.unary(method, request, reapi.BatchUpdateBlobsResponse)
    assert [r.digest.hash for r in response.responses] == [d.hash for d, _ in blobs]  # BUB-01
    return [r.status for r in response.responses]


# --- metadata and messages


async def test_unknown_fields_are_passed_over(client: Client) -> None:  # GEN-01
    known = reapi.FindMissingBlobsRequest(blob_digests=[SHA256.empty.to_proto()])
    # Field 1000, a text that no version of the message has.
    extended = known.SerializeToString() + b"\xc2\x3e\x03new"
    call = client.channel.unary_unary(CAS + "FindMissingBlobs")
    assert await trio.to_thread.run_sync(lambda: call(extended, timeout=30)) == b""


@pytest.mark.parametrize("value", [b"", b"\xff\xff\xff", bytes(range(100, 200)), b"\x0a\x05short"])
async def test_garbage_in_request_metadata(client: Client, value: bytes) -> None:  # GEN-11
    metadata = ((HEADER, value),)
    assert await find_missing(client, SHA256.empty, metadata=metadata) == 0
    data = os.urandom(10)
    digest = SHA256.digest(data)
    name = f"uploads/u/blobs/{digest}"
    assert await client.write(chunks(name, data, 5), metadata) == 10


async def test_resource_name_in_a_header(client: Client) -> None:  # GEN-12
    [digest] = await client.put(b"data")
    name = f"blobs/{digest}"
    request = bytestream.ReadRequest(resource_name=name)
    for told, code in ((name, None), ("blobs/other", INVALID)):
        call = client.stream(
            BYTESTREAM + "Read", request, bytestream.ReadResponse, [(RESOURCE_NAME, told)]
        )
        if code:
            error = await failure_of(call)
            assert error.code() is code
            assert "blobs/other" in error.details()
        else:
            assert [response.data for response in await call] == [b"data"]
    upload = f"uploads/u/{name}"
    requests = chunks(upload, b"data", 2)
    assert await client.write(requests, [(RESOURCE_NAME, upload)]) == 4
    assert await code_of(client.write(requests, [(RESOURCE_NAME, name)])) is INVALID


async def test_hint_when_to_come_again(client: Client, troubled: Troubled) -> None:  # GEN-13
    digest = SHA256.digest(b"x")
    troubled.trouble[digest] = Overloaded("too much to do", 2.5)
    error = await failure_of(find_missing(client, digest, instance_name="troubled"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = status_of(error)
    assert status.message == error.details()
    hint = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(hint)
    assert hint.retry_delay.ToMilliseconds() == 2_500


async def test_trouble_is_unavailable(client: Client, troubled: Troubled) -> None:  # GEN-27
    digest = SHA256.digest(b"x")
    troubled.trouble[digest] = Unavailable("the store does not answer")
    call = find_missing(client, digest, instance_name="troubled")
    assert await code_of(call) is grpc.StatusCode.UNAVAILABLE


async def test_bugs_tell_nothing(
    client: Client, troubled: Troubled, caplog: pytest.LogCaptureFixture
) -> None:  # GEN-27
    digest = SHA256.digest(b"x")
    troubled.trouble[digest] = ZeroDivisionError("a secret")
    error = await failure_of(find_missing(client, digest, instance_name="troubled"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    assert "a secret" in caplog.text


@pytest.mark.parametrize("instance_name", ["", "a/b/c", "main-1.2 ü"])
async def test_instance_names(client: Client, instance_name: str) -> None:  # GEN-19, BSR-02
    data = os.urandom(100)
    [digest] = await client.put(data, instance_name=instance_name)
    prefix = f"{instance_name}/" if instance_name else ""
    assert await client.read(f"{prefix}blobs/{digest}") == data
    assert is_zstd(await client.read(f"{prefix}compressed-blobs/zstd/{digest}"))
    other = os.urandom(10)
    name = f"{prefix}uploads/u/blobs/{SHA256.digest(other)}"
    assert await client.write(chunks(name, other, 3)) == 10
    absent = SHA256.digest(b"absent")
    error = await failure_of(client.read(f"{prefix}blobs/{absent}"))
    assert error.code() is NOT_FOUND
    assert str(absent) in error.details()  # GEN-22
    assert prefix in error.details()


def is_zstd(stream: bytes) -> bool:
    """Whether this is zstd, by its magic number."""
    return stream.startswith(b"\x28\xb5\x2f\xfd")


@pytest.mark.parametrize("name", ["nope", "A/b/c", "a/b", "a/b/c/", "/a/b/c", "a//b/c", "uploads"])
async def test_unknown_instances_on_every_service(client: Client, name: str) -> None:
    # GEN-18, GEN-19, CAP-18
    calls = [
        client.capabilities(name),
        find_missing(client, SHA256.empty, instance_name=name),
        update(client, [(SHA256.empty, b"")], name),
        client.unary(
            CAS + "BatchReadBlobs",
            reapi.BatchReadBlobsRequest(instance_name=name),
            reapi.BatchReadBlobsResponse,
        ),
        client.stream(
            CAS + "GetTree",
            reapi.GetTreeRequest(instance_name=name, root_digest=SHA256.empty.to_proto()),
            reapi.GetTreeResponse,
        ),
        client.unary(
            REAPI + "ActionCache/GetActionResult",
            reapi.GetActionResultRequest(instance_name=name, action_digest=SHA256.empty.to_proto()),
            reapi.ActionResult,
        ),
        client.read(f"{name}/blobs/{SHA256.empty}"),
        client.write(chunks(f"{name}/uploads/u/blobs/{SHA256.empty}", b"", 1)),
        client.write_status(f"{name}/uploads/u/blobs/{SHA256.empty}"),
    ]
    for call in calls:
        error = await failure_of(call)
        assert error.code() is INVALID
        assert name in error.details()


async def test_errors_name_blob_and_instance(client: Client) -> None:  # GEN-22
    absent, root = SHA256.digest(b"absent"), SHA256.digest(b"root")
    tree = reapi.GetTreeRequest(instance_name="a/b/c", root_digest=root.to_proto())
    action = reapi.GetActionResultRequest(instance_name="a/b/c", action_digest=absent.to_proto())
    errors = [
        await failure_of(client.stream(CAS + "GetTree", tree, reapi.GetTreeResponse)),
        await failure_of(
            client.unary(REAPI + "ActionCache/GetActionResult", action, reapi.ActionResult)
        ),
        await failure_of(client.read(f"a/b/c/blobs/{absent}", -1)),
    ]
    for error, digest in zip(errors, (root, absent, absent), strict=True):
        assert str(digest) in error.details()
        assert "a/b/c" in error.details()
    [status] = await update(client, [(absent, b"ABSENT")], "a/b/c")
    assert str(absent) in status.message
    assert "'a/b/c'" in status.message


# --- sizes


async def test_a_hundred_thousand_digests(client: Client) -> None:  # FMB-05
    absent = [SHA256.digest(b"%d" % number) for number in range(100_000)]
    request = reapi.FindMissingBlobsRequest(blob_digests=[d.to_proto() for d in absent])
    assert request.ByteSize() > 6_500_000
    options = [("grpc.max_receive_message_length", 64 << 20)]
    with grpc.insecure_channel(client.address, options=options) as channel:
        patient = Client.__new__(Client)
        patient.channel = channel
        assert await find_missing(patient, *absent) == 100_000
        assert await find_missing(patient, *[SHA256.empty] * 100_000) == 0


async def test_a_batch_of_tiny_blobs_is_taken(client: Client) -> None:  # GEN-14
    tiny = [bytes([number]) for number in range(256)] * 250
    digests = {data: SHA256.digest(data) for data in tiny}
    options = [("grpc.max_receive_message_length", 64 << 20)]
    with grpc.insecure_channel(client.address, options=options) as channel:
        patient = Client.__new__(Client)
        patient.channel = channel
        statuses = await update(patient, [(digests[data], data) for data in tiny])
    assert {status.code for status in statuses} == {0}  # BUB-11
    assert await find_missing(client, *digests.values()) == 0  # BUB-13


async def test_largest_blob_by_every_way(client: Client) -> None:  # CAP-11, BSW-23
    cache = (await client.capabilities("limited")).cache_capabilities
    assert cache.max_cas_blob_size_bytes == LIMIT
    assert not (await client.capabilities()).cache_capabilities.max_cas_blob_size_bytes
    large, fits = bytes(LIMIT + 1), bytes(LIMIT)
    digest = SHA256.digest(large)
    [refused, taken] = await update(
        client, [(digest, large), (SHA256.digest(fits), fits)], "limited"
    )
    assert (refused.code, taken.code) == (INVALID.value[0], 0)
    for form in ("blobs", "compressed-blobs/zstd"):
        name = f"limited/uploads/u/{form}/{digest}"
        error = await failure_of(client.write(chunks(name, b"x", 1)))
        assert error.code() is INVALID
        assert str(LIMIT) in error.details()
    # What is there already may still be read, whoever brought it.
    await client.put(large)
    assert await client.read(f"limited/blobs/{digest}") == large


async def test_no_room(client: Client) -> None:  # BUB-10, BSW-23
    full, fits = os.urandom(10_001), b"fits"
    statuses = await update(
        client, [(SHA256.digest(full), full), (SHA256.digest(fits), fits)], "troubled"
    )
    assert [status.code for status in statuses] == [8, 0]
    name = f"troubled/uploads/u/blobs/{SHA256.digest(full)}"
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await code_of(client.write(chunks(name, full, 5_000))) is code


async def test_damage_found_on_reading(client: Client, troubled: Troubled) -> None:  # BRB-08
    [sound, damaged] = await client.put(b"sound", b"damaged", instance_name="troubled")
    troubled.trouble[damaged] = DataLoss(damaged, "it rots")
    request = reapi.BatchReadBlobsRequest(
        instance_name="troubled", digests=[sound.to_proto(), damaged.to_proto()]
    )
    response = await client.unary(CAS + "BatchReadBlobs", request, reapi.BatchReadBlobsResponse)
    assert [r.status.code for r in response.responses] == [0, 15]
    assert [r.data for r in response.responses] == [b"sound", b""]


# --- batches


async def test_empty_batches(client: Client) -> None:  # BUB-15, FMB-04
    assert await update(client, []) == []
    assert await find_missing(client) == 0
    response = await client.unary(
        CAS + "BatchReadBlobs", reapi.BatchReadBlobsRequest(), reapi.BatchReadBlobsResponse
    )
    assert not response.responses


async def test_two_that_claim_one_digest(client: Client) -> None:  # BUB-02, BUB-11
    data = b"right"
    digest = SHA256.digest(data)
    for order in ([b"wrong", data], [data, b"wrong"], [b"wrong", data, b"WRONG", data]):
        statuses = await update(client, [(digest, blob) for blob in order])
        assert [status.code for status in statuses] == [0 if b == data else 3 for b in order]
        assert await client.read(f"blobs/{digest}") == data
    assert [s.code for s in await update(client, [(digest, data)])] == [0]  # BUB-06


async def test_malformed_digests_in_a_batch(client: Client) -> None:  # GEN-04, GEN-05, BUB-02
    good = SHA256.digest(b"good")
    statuses = await update(
        client,
        [
            (Digest(good.hash.upper(), 4, SHA256), b"good"),
            (Digest("g" * 64, 4, SHA256), b"good"),
            (Digest(good.hash, -4, SHA256), b"good"),
            (Digest(good.hash, 5, SHA256), b"good"),  # GEN-03
            (good, b"good"),
        ],
    )
    assert [status.code for status in statuses] == [3, 3, 3, 3, 0]


# --- ByteStream, the rest


async def test_wrong_size_in_a_name(client: Client) -> None:  # GEN-03, BSR-07
    [digest] = await client.put(b"data")
    for size in (0, 3, 5, (1 << 63) - 1):
        assert await code_of(client.read(f"blobs/{digest.hash}/{size}")) is NOT_FOUND
    wrong = f"uploads/u/blobs/{digest.hash}/5"
    assert await code_of(client.write(chunks(wrong, b"data!", 5))) is INVALID


async def test_compressed_messages_of_grpc(client: Client) -> None:  # BSW-29
    data = bytes(100_000)
    name = f"uploads/u/blobs/{SHA256.digest(data)}"
    call = client.channel.stream_unary(
        BYTESTREAM + "Write",
        request_serializer=bytestream.WriteRequest.SerializeToString,
        response_deserializer=bytestream.WriteResponse.FromString,
    )
    requests = iter(chunks(name, data, 10_000))
    response = await trio.to_thread.run_sync(
        lambda: call(requests, timeout=30, compression=grpc.Compression.Gzip)
    )
    assert response.committed_size == len(data)


@pytest.mark.slow
async def test_a_hundred_thousand_messages_of_one_byte(client: Client) -> None:  # BSW-30
    data = os.urandom(100_000)
    name = f"uploads/u/blobs/{SHA256.digest(data)}"
    assert await client.write(chunks(name, data, 1)) == len(data)
    assert await client.read(f"blobs/{SHA256.digest(data)}") == data
