"""Every digest function on every way through the front door (GEN-02…10)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from stoker.digest import BLAKE3, DIGEST_FUNCTIONS, SHA1, SHA256, Digest, DigestFunction
from stoker.errors import InputsMissing
from stoker.frontend.status import to_status
from stoker.protos import remote_execution_pb2 as reapi
from stoker.storage.memory import MemoryBlobStore

from .conftest import (
    REAPI,
    Client,
    chunks,
    code_of,
    failure_of,
    instance_of,
    missing_subjects,
    open_front_door,
)

CAS = REAPI + "ContentAddressableStorage/"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
functions = pytest.mark.parametrize("function", DIGEST_FUNCTIONS, ids=str)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """All functions in the instance "", BLAKE3 alone in "blake3", two in "two"."""
    store = MemoryBlobStore()
    async with open_front_door(
        instance_of(store),
        instance_of(store, "blake3", digest_functions=(BLAKE3,)),
        instance_of(store, "two", digest_functions=(BLAKE3, SHA256)),
    ) as client:
        yield client


async def find_missing(
    client: Client, *digests: Digest, number: int = 0, instance_name: str = ""
) -> set[str]:
    request = reapi.FindMissingBlobsRequest(
        instance_name=instance_name,
        blob_digests=[digest.to_proto() for digest in digests],
        digest_function=number,  # type: ignore[arg-type] # numbers as they come on the wire
    )
    response = await client.unary(CAS + "FindMissingBlobs", request, reapi.FindMissingBlobsResponse)
    return {digest.hash for digest in response.missing_blob_digests}


@functions
async def test_a_blob_goes_every_way(client: Client, function: DigestFunction) -> None:
    one, two = b"by batch", b"by stream" * 10_000
    [first] = await client.put(one, function=function)
    second = function.digest(two)
    name = f"blobs/{function.segment}{second}"
    assert await client.write(chunks(f"uploads/u/{name}", two, 50_000)) == len(two)  # BSW-01
    assert await client.write_status(f"uploads/other/{name}") == (len(two), True)  # BSQ-01
    assert await client.missing(first, second, function.empty, function=function) == set()
    assert await client.read(name) == two
    assert await client.read(f"blobs/{function.name.lower()}/{second}") == two  # BSR-03
    read = await client.unary(
        CAS + "BatchReadBlobs",
        reapi.BatchReadBlobsRequest(digests=[first.to_proto()], digest_function=function.number),
        reapi.BatchReadBlobsResponse,
    )
    assert read.responses[0].data == one
    directory = reapi.Directory()
    [tree] = await client.stream(
        CAS + "GetTree",
        reapi.GetTreeRequest(
            root_digest=function.empty.to_proto(), digest_function=function.number
        ),
        reapi.GetTreeResponse,
    )
    assert list(tree.directories) == [directory]  # GTR-09


@functions
async def test_the_empty_blob(client: Client, function: DigestFunction) -> None:
    empty = function.empty
    assert await client.missing(empty, function=function) == set()  # FMB-02
    name = f"blobs/{function.segment}{empty}"
    assert await client.read(name) == b""  # BSR-09
    assert await client.write(chunks(f"uploads/u/{name}", b"", 1)) == 0  # BSW-22
    assert await client.put(b"", function=function) == [empty]  # BUB-05


async def test_same_bytes_are_two_blobs_under_two_functions(client: Client) -> None:  # GEN-10
    [by_sha] = await client.put(b"the same")
    by_blake = BLAKE3.digest(b"the same")
    assert await client.missing(by_blake, function=BLAKE3) == {by_blake.hash}
    disguised = Digest(by_sha.hash, by_sha.size_bytes, BLAKE3)
    assert await client.missing(disguised, function=BLAKE3) == {by_sha.hash}
    assert await code_of(client.read(f"blobs/blake3/{by_sha}")) is grpc.StatusCode.NOT_FOUND
    # And so the action cache files them apart (ACG-10).
    await client.unary(
        REAPI + "ActionCache/UpdateActionResult",
        reapi.UpdateActionResultRequest(
            action_digest=by_sha.to_proto(),
            action_result=reapi.ActionResult(exit_code=0),
            digest_function=reapi.DigestFunction.SHA256,
        ),
        reapi.ActionResult,
    )
    request = reapi.GetActionResultRequest(
        action_digest=by_sha.to_proto(), digest_function=reapi.DigestFunction.BLAKE3
    )
    call = client.unary(REAPI + "ActionCache/GetActionResult", request, reapi.ActionResult)
    assert await code_of(call) is grpc.StatusCode.NOT_FOUND


async def test_one_request_is_of_one_function(client: Client) -> None:  # GEN-02
    mixed = [SHA256.digest(b"a"), SHA1.digest(b"b")]
    for number in (0, SHA256.number, SHA1.number):
        assert await code_of(find_missing(client, *mixed, number=number)) is INVALID
    updates = [
        reapi.BatchUpdateBlobsRequest.Request(digest=digest.to_proto(), data=data)
        for digest, data in zip(mixed, (b"a", b"b"), strict=True)
    ]
    update = reapi.BatchUpdateBlobsRequest(requests=updates)
    call = client.unary(CAS + "BatchUpdateBlobs", update, reapi.BatchUpdateBlobsResponse)
    assert await code_of(call) is INVALID
    assert await client.missing(mixed[0]) == {mixed[0].hash}
    read = reapi.BatchReadBlobsRequest(digests=[digest.to_proto() for digest in mixed])
    call2 = client.unary(CAS + "BatchReadBlobs", read, reapi.BatchReadBlobsResponse)
    assert await code_of(call2) is INVALID


async def test_unset_function_is_told_by_the_length(client: Client) -> None:
    [digest] = await client.put(b"sha")
    assert await find_missing(client, digest) == set()  # GEN-06
    assert await find_missing(client, digest, instance_name="two") == set()  # GEN-07
    error = await failure_of(find_missing(client, digest, instance_name="blake3"))
    assert error.code() is INVALID
    assert "BLAKE3" in error.details()
    assert "'blake3'" in error.details()  # GEN-22


async def test_functions_of_an_instance(client: Client) -> None:
    for name, numbers in (("blake3", [9]), ("two", [9, 1])):
        cache = (await client.capabilities(name)).cache_capabilities
        assert list(cache.digest_functions) == numbers  # CAP-02, CAP-03
    error = await failure_of(
        find_missing(client, SHA1.empty, number=SHA1.number, instance_name="two")
    )
    assert error.code() is INVALID  # GEN-08
    assert "BLAKE3, SHA256" in error.details()
    assert await code_of(client.read(f"two/blobs/{SHA1.empty}")) is INVALID
    assert await code_of(client.read(f"blake3/blobs/sha256/{SHA256.empty}")) is INVALID
    assert await client.read(f"blake3/blobs/blake3/{BLAKE3.empty}") == b""
    call = find_missing(client, SHA1.empty, number=SHA256.number)
    assert await code_of(call) is INVALID  # GEN-09


def test_violations_name_the_function() -> None:  # EXE-05
    digests = [BLAKE3.digest(b"x"), SHA1.digest(b"x"), SHA256.digest(b"x")]
    assert missing_subjects(to_status(InputsMissing(digests))) == {
        f"blobs/blake3/{digests[0]}",
        f"blobs/{digests[1]}",
        f"blobs/{digests[2]}",
    }
