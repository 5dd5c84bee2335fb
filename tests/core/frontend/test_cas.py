"""Capabilities, CAS and ByteStream through the front door (sections 0 to 9)."""

from __future__ import annotations

import base64
import os

import grpc
import pytest

from stoker.digest import SHA256, Digest
from stoker.frontend.capabilities import MAX_BATCH_BYTES
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import remote_execution_pb2 as reapi

from .conftest import REAPI, Client, chunks, code_of

CAS = REAPI + "ContentAddressableStorage/"
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def upload_name(digest: Digest) -> str:
    return f"uploads/an-upload/blobs/{digest}"


async def test_capabilities(client: Client) -> None:  # CAP-02…06, 09, 10, 12…15
    answer = await client.unary(
        REAPI + "Capabilities/GetCapabilities",
        reapi.GetCapabilitiesRequest(),
        reapi.ServerCapabilities,
    )
    cache, execution = answer.cache_capabilities, answer.execution_capabilities
    assert cache.digest_functions[0] == reapi.DigestFunction.SHA256
    assert reapi.DigestFunction.UNKNOWN not in cache.digest_functions  # CAP-03
    assert list(execution.digest_functions) == list(cache.digest_functions)  # CAP-04
    assert cache.max_batch_total_size_bytes == MAX_BATCH_BYTES
    assert cache.action_cache_update_capabilities.update_enabled
    assert list(cache.supported_compressors) == [reapi.Compressor.ZSTD]  # CAP-13
    assert list(cache.supported_batch_update_compressors) == [reapi.Compressor.ZSTD]
    assert not cache.split_blob_support
    assert execution.exec_enabled
    assert execution.digest_function == reapi.DigestFunction.SHA256
    assert list(execution.supported_node_properties) == ["mtime", "unix_mode"]
    [priorities] = execution.execution_priority_capabilities.priorities
    assert priorities.min_priority <= 0 <= priorities.max_priority
    assert (answer.low_api_version.major, answer.low_api_version.minor) == (2, 0)
    assert (answer.high_api_version.major, answer.high_api_version.minor) == (2, 12)


async def test_unknown_and_impossible_instances(client: Client) -> None:  # GEN-18, GEN-19, CAP-18
    for name, text in (("nope", "nope"), ("a//b", "slash"), ("a/blobs", "blobs")):
        request = reapi.GetCapabilitiesRequest(instance_name=name)
        with pytest.raises(grpc.RpcError) as info:
            await client.unary(
                REAPI + "Capabilities/GetCapabilities", request, reapi.ServerCapabilities
            )
        assert info.value.code() is INVALID
        assert text in info.value.details()


async def test_find_missing(client: Client) -> None:  # FMB-01, 02, 04, 06
    [present] = await client.put(b"present")
    absent = SHA256.digest(b"absent")
    wrong_size = Digest(present.hash, present.size_bytes + 1, SHA256)  # GEN-03
    found = await client.missing(present, absent, absent, SHA256.empty)
    assert found == {absent.hash}
    assert await client.missing(wrong_size) == {present.hash}
    assert await client.missing() == set()


@pytest.mark.parametrize(
    ("hash_", "size", "function"),
    [
        (SHA256.empty.hash.upper(), 0, 0),  # GEN-04
        ("ab", 2, 0),
        (SHA256.empty.hash, -1, 0),  # GEN-05
        (SHA256.empty.hash, 0, reapi.DigestFunction.SHA256TREE),  # GEN-08
        (SHA256.empty.hash, 0, 4711),
        ("0" * 40, 0, reapi.DigestFunction.SHA256),  # GEN-09
    ],
)
async def test_malformed_digests(client: Client, hash_: str, size: int, function: int) -> None:
    request = reapi.FindMissingBlobsRequest(
        blob_digests=[reapi.Digest(hash=hash_, size_bytes=size)],
        digest_function=function,  # type: ignore[arg-type] # numbers as they come on the wire
    )
    call = client.unary(CAS + "FindMissingBlobs", request, reapi.FindMissingBlobsResponse)
    assert await code_of(call) is INVALID


async def test_batch_update_judges_each_blob(client: Client) -> None:  # BUB-01, 02, 05, 07, 11
    good, other = b"good", b"other"
    digests = [SHA256.digest(good), SHA256.digest(other), SHA256.empty, SHA256.digest(good)]
    data = [good, b"OTHER", b"", good]
    requests = [
        reapi.BatchUpdateBlobsRequest.Request(digest=digest.to_proto(), data=blob)
        for digest, blob in zip(digests, data, strict=True)
    ]
    requests.append(
        reapi.BatchUpdateBlobsRequest.Request(
            digest=digests[1].to_proto(), data=other, compressor=reapi.Compressor.ZSTD
        )
    )
    response = await client.unary(
        CAS + "BatchUpdateBlobs",
        reapi.BatchUpdateBlobsRequest(requests=requests),
        reapi.BatchUpdateBlobsResponse,
    )
    assert [r.status.code for r in response.responses] == [0, 3, 0, 0, 3]
    assert [r.digest.hash for r in response.responses][:4] == [d.hash for d in digests]
    assert await client.missing(*digests) == {digests[1].hash}


@pytest.mark.parametrize("data", [(b"good", b"evil"), (b"evil", b"good")])
async def test_each_copy_in_a_batch_is_judged_by_itself(
    client: Client, data: tuple[bytes, bytes]
) -> None:  # BUB-02, BUB-11
    digest = SHA256.digest(b"good")
    request = reapi.BatchUpdateBlobsRequest(
        requests=[
            reapi.BatchUpdateBlobsRequest.Request(digest=digest.to_proto(), data=blob)
            for blob in data
        ]
    )
    response = await client.unary(CAS + "BatchUpdateBlobs", request, reapi.BatchUpdateBlobsResponse)
    expected = [0 if blob == b"good" else 3 for blob in data]
    assert [r.status.code for r in response.responses] == expected
    assert await client.missing(digest) == set()


async def test_pages_of_a_heavy_tree_stay_messages_that_clients_take(client: Client) -> None:
    folders = [  # GTR-13
        reapi.Directory(
            symlinks=[reapi.SymlinkNode(name=f"{i}-{j}", target="t" * 200) for j in range(5000)]
        )
        for i in range(8)
    ]
    for folder in folders:
        await client.put_message(folder)
    root = reapi.Directory(
        directories=[
            reapi.DirectoryNode(
                name=str(i), digest=SHA256.digest(folder.SerializeToString()).to_proto()
            )
            for i, folder in enumerate(folders)
        ]
    )
    pages = await tree_pages(client, await client.put_message(root))
    assert len(pages) > 1
    assert [d for page in pages for d in page.directories] == [root, *folders]


async def test_batches_are_bounded_as_advertised(client: Client) -> None:  # BUB-03, 04, BRB-02
    exact = os.urandom(MAX_BATCH_BYTES)
    [digest] = await client.put(exact)
    over = reapi.BatchUpdateBlobsRequest(
        requests=[
            reapi.BatchUpdateBlobsRequest.Request(digest=SHA256.digest(d).to_proto(), data=d)
            for d in (exact[:-1], b"ab")
        ]
    )
    call = client.unary(CAS + "BatchUpdateBlobs", over, reapi.BatchUpdateBlobsResponse)
    assert await code_of(call) is INVALID
    assert len(await client.missing(SHA256.digest(b"ab"))) == 1
    whole = await client.unary(
        CAS + "BatchReadBlobs",
        reapi.BatchReadBlobsRequest(digests=[digest.to_proto()]),
        reapi.BatchReadBlobsResponse,
    )
    assert whole.responses[0].data == exact
    twice = reapi.BatchReadBlobsRequest(digests=[digest.to_proto()] * 2)
    assert await code_of(
        client.unary(CAS + "BatchReadBlobs", twice, reapi.BatchReadBlobsResponse)
    ) is (INVALID)


async def test_batch_read(client: Client) -> None:  # BRB-01, 05, 06
    [one] = await client.put(b"one")
    absent = SHA256.digest(b"absent")
    response = await client.unary(
        CAS + "BatchReadBlobs",
        reapi.BatchReadBlobsRequest(
            digests=[d.to_proto() for d in (one, absent, SHA256.empty, one)]
        ),
        reapi.BatchReadBlobsResponse,
    )
    assert [r.data for r in response.responses] == [b"one", b"", b"", b"one"]
    assert [r.status.code for r in response.responses] == [0, 5, 0, 0]


async def test_a_batch_of_tiny_blobs_stays_a_message_that_clients_take(client: Client) -> None:
    blobs = [b"%060d" % i for i in range(30_000)]  # GEN-14, GEN-15, BRB-07
    digests = await client.put(*blobs)
    response = await client.unary(
        CAS + "BatchReadBlobs",
        reapi.BatchReadBlobsRequest(digests=[digest.to_proto() for digest in digests]),
        reapi.BatchReadBlobsResponse,
    )
    assert response.ByteSize() < 4 * 1024 * 1024
    assert {r.status.code for r in response.responses} == {0, 8}
    assert response.responses[0].data == blobs[0]
    too_many = reapi.BatchReadBlobsRequest(digests=[digests[0].to_proto()] * 50_000)
    call = client.unary(CAS + "BatchReadBlobs", too_many, reapi.BatchReadBlobsResponse)
    assert await code_of(call) is INVALID


async def test_read_ranges(client: Client) -> None:  # BSR-01, 04, 05, 09
    data = os.urandom(3 * 1024 * 1024 + 17)
    digest = SHA256.digest(data)
    assert await client.write(chunks(upload_name(digest), data, 1 << 20)) == len(data)
    name = f"blobs/{digest}"
    assert await client.read(name) == data
    assert await client.read(f"/{name}") == data
    assert await client.read(f"blobs/sha256/{digest}") == data  # BSR-03
    assert await client.read(name, offset=len(data)) == b""
    assert await client.read(name, offset=5, limit=9) == data[5:14]
    assert await client.read(name, offset=5, limit=len(data)) == data[5:]
    assert await client.read(f"blobs/{SHA256.empty}") == b""
    out_of_range = grpc.StatusCode.OUT_OF_RANGE
    assert await code_of(client.read(name, offset=len(data) + 1)) is out_of_range
    assert await code_of(client.read(name, offset=-1)) is out_of_range
    assert await code_of(client.read(name, limit=-1)) is INVALID
    assert await code_of(client.read(f"blobs/{SHA256.digest(b'absent')}")) is NOT_FOUND  # BSR-06
    assert await code_of(client.read(f"blobs/{digest.hash}/1")) is NOT_FOUND  # BSR-07


@pytest.mark.parametrize(
    "name",
    [
        "",
        "blobs",
        "blobs/x/1",
        f"blobs/{SHA256.empty.hash}",
        f"blobs/{SHA256.empty.hash}/-1",
        f"blobs/{SHA256.empty.hash}/{'9' * 5000}",
        f"blobs/{SHA256.empty}/extra",  # BSR-23
        f"uploads/u/blobs/{SHA256.empty}",  # BSR-08
        f"compressed-blobs/identity/{SHA256.empty}",  # BSR-14
        f"compressed-blobs/deflate/{SHA256.empty}",
        f"compressed-blobs/{SHA256.empty}",
        f"compressed-blobs/zstd/{SHA256.empty}/extra",
        f"blobs/{SHA256.empty.hash}/{1 << 63}",
        f"blobs/{SHA256.empty.hash}/²",
        f"nothing/{SHA256.empty}",
    ],
)
async def test_names_that_cannot_be_read(client: Client, name: str) -> None:
    assert await code_of(client.read(name)) is INVALID


async def test_write_in_every_size_of_message(client: Client) -> None:  # BSW-01, 05, 20, 22, 30
    for data, size in ((b"", 1), (b"x" * 5000, 1), (os.urandom(4 << 20), 4 << 20)):
        digest = SHA256.digest(data)
        assert await client.write(chunks(upload_name(digest), data, size)) == len(data)
        assert await client.missing(digest) == set()
        assert await client.read(f"blobs/{digest}") == data


async def test_finish_may_come_alone(client: Client) -> None:  # BSW-06
    digest = SHA256.digest(b"data")
    name = f"{upload_name(digest)}/some/metadata"
    requests = [
        bytestream.WriteRequest(resource_name=name, data=b"data"),
        bytestream.WriteRequest(resource_name=name, write_offset=4, finish_write=True),
    ]
    assert await client.write(requests) == 4


@pytest.mark.parametrize(
    "requests",
    [
        [("N", 0, b"datum", True)],  # BSW-09: another blob
        [("N", 0, b"dat", True)],  # too short
        [("N", 0, b"data more", True)],  # too long
        [("N", 1, b"ata", True)],  # BSW-04
        [("N", 0, b"da", False), ("", 3, b"ta", True)],
        [("N", 0, b"da", False), ("other", 2, b"ta", True)],  # BSW-02
        [("", 0, b"data", True)],
        [("N", 0, b"data", True), ("N", 4, b"", True)],  # BSW-07
        [],
    ],
)
async def test_uploads_that_are_wrong(
    client: Client, requests: list[tuple[str, int, bytes, bool]]
) -> None:
    digest = SHA256.digest(b"data")
    sent = [
        bytestream.WriteRequest(
            resource_name=upload_name(digest) if name == "N" else name,
            write_offset=offset,
            data=data,
            finish_write=finish,
        )
        for name, offset, data, finish in requests
    ]
    assert await code_of(client.write(sent)) is INVALID
    assert await client.missing(digest) == {digest.hash}  # BSW-26
    assert await client.write(chunks(upload_name(digest), b"data", 2)) == 4


async def test_an_upload_without_its_end_is_nothing(client: Client) -> None:  # BSW-08
    digest = SHA256.digest(b"data")
    requests = [bytestream.WriteRequest(resource_name=upload_name(digest), data=b"data")]
    assert await client.write(requests) == 4
    assert await client.missing(digest) == {digest.hash}


async def test_a_blob_that_is_there_needs_no_upload(client: Client) -> None:  # BSW-10, 13
    data = os.urandom(32 << 20)
    digest = SHA256.digest(data)
    requests = chunks(upload_name(digest), data, 1 << 20)
    assert await client.write(requests) == len(data)
    sent = 0

    def counted() -> object:
        nonlocal sent
        for request in requests:
            sent += 1
            yield request

    assert await client.write(counted()) == len(data)  # type: ignore[arg-type] # a generator
    assert sent < len(requests)


async def test_query_write_status(client: Client) -> None:  # BSQ-01, 03, 05
    [digest] = await client.put(b"here")
    assert await client.write_status(upload_name(digest)) == (4, True)
    assert await client.write_status(upload_name(SHA256.digest(b"absent"))) == (0, False)
    assert await code_of(client.write_status(f"blobs/{digest}")) is INVALID


async def tree_pages(
    client: Client, root: Digest, page_size: int = 0, token: str = ""
) -> list[reapi.GetTreeResponse]:
    request = reapi.GetTreeRequest(
        root_digest=root.to_proto(), page_size=page_size, page_token=token
    )
    return await client.stream(CAS + "GetTree", request, reapi.GetTreeResponse)


async def test_get_tree(client: Client) -> None:  # GTR-01…09
    leaf = reapi.Directory(symlinks=[reapi.SymlinkNode(name="l", target="t")])
    leaf_digest = await client.put_message(leaf)
    absent = SHA256.digest(b"absent")
    middle = [
        reapi.Directory(
            files=[reapi.FileNode(name=str(i), digest=SHA256.empty.to_proto())],
            directories=[reapi.DirectoryNode(name="leaf", digest=leaf_digest.to_proto())],
        )
        for i in range(4)
    ]
    nodes = [(str(i), await client.put_message(m)) for i, m in enumerate(middle)]
    nodes.append(("absent", absent))
    root = reapi.Directory(
        directories=[reapi.DirectoryNode(name=n, digest=d.to_proto()) for n, d in sorted(nodes)]
    )
    root_digest = await client.put_message(root)
    pages = await tree_pages(client, root_digest, page_size=2)
    assert [len(page.directories) for page in pages] == [2, 2, 2]
    everything = [d for page in pages for d in page.directories]
    assert everything == [root, *middle, leaf]
    assert [bool(page.next_page_token) for page in pages] == [True, True, False]
    rest = await tree_pages(client, root_digest, 2, pages[0].next_page_token)
    assert [d for page in rest for d in page.directories] == everything[2:]
    [empty] = await tree_pages(client, SHA256.empty)
    assert list(empty.directories) == [reapi.Directory()]
    assert await code_of(tree_pages(client, absent)) is NOT_FOUND
    assert await code_of(tree_pages(client, root_digest, -1)) is INVALID
    prefix = root_digest.hash[:16]
    forged = [f"{prefix}:²".encode(), f"{prefix}:{'9' * 5000}".encode(), b"0" * 16 + b":1"]
    for token in ("bad", "é", *(base64.b64encode(token).decode() for token in forged)):
        assert await code_of(tree_pages(client, root_digest, 0, token)) is INVALID  # GTR-07
    [no_directory] = await client.put(b"\xff\xff no directory")
    assert await code_of(tree_pages(client, no_directory)) is INVALID  # GTR-10


async def test_what_is_not_offered_is_unimplemented(client: Client) -> None:  # GEN-25
    unimplemented = grpc.StatusCode.UNIMPLEMENTED
    for method in (
        CAS + "SplitBlob",
        CAS + "SpliceBlob",
        "/build.bazel.remote.asset.v1.Fetch/FetchBlob",
    ):
        call = client.unary(method, reapi.SplitBlobRequest(), reapi.SplitBlobResponse)
        assert await code_of(call) is unimplemented
