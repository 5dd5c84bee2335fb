"""zstd on ByteStream and in batches."""

from __future__ import annotations

import os

import grpc
import pytest

from stoker.digest import BLAKE3, SHA256, Digest
from stoker.frontend.capabilities import MAX_BATCH_BYTES
from stoker.frontend.request_metadata import HEADER
from stoker.protos import bytestream_pb2 as bytestream
from stoker.protos import remote_execution_pb2 as reapi

from . import zstd_streams
from .conftest import BYTESTREAM, REAPI, Client, chunks, code_of, failure_of

CAS = REAPI + "ContentAddressableStorage/"
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
IDENTITY, ZSTD = reapi.Compressor.IDENTITY, reapi.Compressor.ZSTD
SIZES = [1, 1_000, 70_000, 3 * 1024 * 1024 + 5]


def read_name(digest: Digest) -> str:
    return f"compressed-blobs/zstd/{digest.function.segment}{digest}"


def upload_name(digest: Digest, upload: str = "u") -> str:
    return f"uploads/{upload}/{read_name(digest)}"


def told_by(tool: str) -> list[tuple[str, str | bytes]]:
    """The metadata of a client."""
    details = reapi.ToolDetails(tool_name=tool)
    return [(HEADER, reapi.RequestMetadata(tool_details=details).SerializeToString())]


# --- ByteStream


@pytest.mark.parametrize("size", SIZES)
async def test_what_goes_in_compressed_comes_out_both_ways(client: Client, size: int) -> None:
    for data in (zstd_streams.text(size), os.urandom(size)):
        digest = SHA256.digest(data)
        stream = zstd_streams.compress(data)
        assert await client.write(chunks(upload_name(digest), stream, 100_000)) == size
        assert await client.read(f"blobs/{digest}") == data  # BSR-15
        assert zstd_streams.decompress(await client.read(read_name(digest))) == data  # BSR-10


async def test_other_functions_are_compressed_too(client: Client) -> None:
    data = zstd_streams.text(10_000)
    digest = BLAKE3.digest(data)
    stream = zstd_streams.compress(data)
    assert await client.write(chunks(upload_name(digest), stream, 1_000)) == len(data)
    assert zstd_streams.decompress(await client.read(read_name(digest))) == data


async def test_what_went_in_plain_comes_out_compressed(client: Client) -> None:
    data = zstd_streams.text(2 << 20)  # BSR-15
    digest = SHA256.digest(data)
    await client.write(chunks(f"uploads/u/blobs/{digest}", data, 1 << 20))
    request = bytestream.ReadRequest(resource_name=read_name(digest))
    responses = await client.stream(BYTESTREAM + "Read", request, bytestream.ReadResponse)
    assert max(len(response.data) for response in responses) <= 2 << 20  # BSR-16
    stream = b"".join(response.data for response in responses)
    assert len(stream) < len(data) / 2
    assert zstd_streams.decompress(stream) == data


async def test_ranges_of_compressed_blobs(client: Client) -> None:
    data = zstd_streams.text(3_000_000)
    digest = SHA256.digest(data)
    await client.write(chunks(upload_name(digest), zstd_streams.compress(data), 1 << 20))
    for offset in (0, 1, 1_048_576, 2_999_999, 3_000_000):  # BSR-12, BSR-20
        stream = await client.read(read_name(digest), offset)
        assert zstd_streams.decompress(stream) == data[offset:]
    assert await code_of(client.read(read_name(digest), 0, 5)) is INVALID  # BSR-11
    out_of_range = grpc.StatusCode.OUT_OF_RANGE
    for offset in (-1, 3_000_001):
        assert await code_of(client.read(read_name(digest), offset)) is out_of_range  # BSR-04
    assert await code_of(client.read(read_name(SHA256.digest(b"absent")))) is NOT_FOUND  # BSR-06


async def test_the_empty_blob_compressed(client: Client) -> None:
    stream = await client.read(read_name(SHA256.empty))
    assert stream  # BSR-13
    assert zstd_streams.decompress(stream) == b""
    name = upload_name(SHA256.empty)
    frame = zstd_streams.FRAME_OF_NOTHING
    assert await client.write(chunks(name, frame, 100)) == -1  # BSW-11, BSW-22
    assert await client.write(chunks(name, b"", 100)) == -1


@pytest.mark.parametrize(
    ("tool", "counts_sent"),
    [("bazel", True), ("Buck2", True), ("siso", False), ("re-client", False), ("", False)],
)
async def test_committed_size_is_what_the_tool_expects(
    client: Client, tool: str, counts_sent: bool
) -> None:
    data = zstd_streams.text(10_000)  # BSW-15
    digest = SHA256.digest(data)
    stream = zstd_streams.compress(data)
    committed = await client.write(chunks(upload_name(digest), stream, 999), told_by(tool))
    assert committed == (len(stream) if counts_sent else len(data))
    again = await client.write(chunks(upload_name(digest), stream, 999), told_by(tool))
    assert again == -1  # BSW-11
    plain = chunks(f"uploads/u/blobs/{digest}", data, 999)
    assert await client.write(plain, told_by(tool)) == len(data)  # BSW-10, BSW-20


async def test_frames_of_an_upload_may_follow_on_each_other(client: Client) -> None:
    data = zstd_streams.text(300_000)  # BSW-16
    digest = SHA256.digest(data)
    pieces = [data[:1], data[1:200_000], b"", data[200_000:]]
    stream = b"".join(zstd_streams.compress(piece) for piece in pieces)
    assert await client.write(chunks(upload_name(digest), stream, 1_000)) == len(data)


DATA = zstd_streams.text(5_000)
STREAM = zstd_streams.compress(DATA)


@pytest.mark.parametrize(
    ("stream", "because"),
    [
        (DATA, "not a zstd stream"),  # BSW-16
        (STREAM + b"garbage", "not a zstd stream"),
        (STREAM[:-1], "inside of a frame"),
        (STREAM + STREAM, "more than the 5000 bytes"),
        (zstd_streams.compress(bytes(100 << 20)), "more than the 5000 bytes"),  # BUB-09
        (zstd_streams.compress(DATA[:-1]), "4999 bytes were written"),  # BSW-09
        (zstd_streams.compress(DATA[:-1] + b"?"), "hashes to"),
        (b"", "0 bytes were written"),
    ],
)
async def test_streams_that_are_not_the_blob(client: Client, stream: bytes, because: str) -> None:
    digest = SHA256.digest(DATA)
    error = await failure_of(client.write(chunks(upload_name(digest), stream, 1_000)))
    assert error.code() is INVALID
    assert because in error.details()
    assert str(digest) in error.details()  # GEN-22
    assert await client.missing(digest) == {digest.hash}  # BSW-26
    assert await client.write(chunks(upload_name(digest), STREAM, 1_000)) == len(DATA)


async def test_offsets_of_compressed_uploads_count_what_is_sent(client: Client) -> None:
    digest = SHA256.digest(DATA)  # BSW-14
    requests = chunks(upload_name(digest), STREAM, 500)
    requests[2].write_offset += 1
    assert await code_of(client.write(requests)) is INVALID
    behind = chunks(upload_name(digest), STREAM[5:], 500, offset=5)
    assert await code_of(client.write(behind)) is INVALID  # BSW-19


async def test_compressed_uploads_begin_again(client: Client) -> None:
    digest = SHA256.digest(DATA)  # BSQ-04
    half = chunks(upload_name(digest), STREAM, 500)[:-1]
    assert await client.write(half) == 0  # BSW-08
    assert await client.write_status(upload_name(digest)) == (0, False)
    assert await client.write(chunks(upload_name(digest), STREAM, 500)) == len(DATA)
    assert await client.write_status(upload_name(digest)) == (len(DATA), True)


@pytest.mark.parametrize("compressor", ["identity", "deflate", "brotli", "ZSTD", ""])
async def test_compressors_that_are_not_offered(client: Client, compressor: str) -> None:
    name = f"compressed-blobs/{compressor}/{SHA256.digest(DATA)}"
    assert await code_of(client.read(name)) is INVALID  # BSR-14
    upload = chunks(f"uploads/u/{name}", STREAM, 500)
    assert await code_of(client.write(upload)) is INVALID  # BSW-28


# --- batches


async def update(
    client: Client, *updates: tuple[Digest, bytes, int]
) -> list[reapi.BatchUpdateBlobsResponse.Response]:
    request = reapi.BatchUpdateBlobsRequest(
        requests=[
            reapi.BatchUpdateBlobsRequest.Request(
                digest=digest.to_proto(),
                data=data,
                compressor=compressor,  # type: ignore[arg-type] # numbers as on the wire
            )
            for digest, data, compressor in updates
        ]
    )
    response = await client.unary(CAS + "BatchUpdateBlobs", request, reapi.BatchUpdateBlobsResponse)
    return list(response.responses)


async def read_batch(
    client: Client, *digests: Digest, accept: list[int]
) -> list[reapi.BatchReadBlobsResponse.Response]:
    request = reapi.BatchReadBlobsRequest(
        digests=[digest.to_proto() for digest in digests],
        acceptable_compressors=accept,  # type: ignore[arg-type] # numbers as on the wire
    )
    response = await client.unary(CAS + "BatchReadBlobs", request, reapi.BatchReadBlobsResponse)
    return list(response.responses)


async def test_batches_take_zstd(client: Client) -> None:
    large = zstd_streams.text(2 << 20)  # BUB-07
    blobs = [DATA, large, b"plain", b""]
    digests = [SHA256.digest(blob) for blob in blobs]
    responses = await update(
        client,
        (digests[0], STREAM, ZSTD),
        (digests[1], zstd_streams.compress(large), ZSTD),
        (digests[2], b"plain", IDENTITY),
        (digests[3], zstd_streams.FRAME_OF_NOTHING, ZSTD),
    )
    assert [response.status.code for response in responses] == [0, 0, 0, 0]
    read = await read_batch(client, *digests, accept=[])
    assert [response.data for response in read] == blobs
    assert {response.compressor for response in read} == {IDENTITY}  # BRB-03


async def test_batches_judge_each_compressed_blob(client: Client) -> None:
    digest, other = SHA256.digest(DATA), SHA256.digest(b"other")
    wrong = [  # BUB-08
        (digest, STREAM + b"x", ZSTD),
        (digest, STREAM[:-1], ZSTD),
        (digest, DATA, ZSTD),
        (digest, zstd_streams.compress(bytes(100 << 20)), ZSTD),  # BUB-09
        (digest, zstd_streams.compress(b"short"), ZSTD),
        (digest, zstd_streams.compress(DATA[::-1]), ZSTD),
        (digest, DATA, reapi.Compressor.DEFLATE),  # BUB-07
        (digest, DATA, 4711),
    ]
    for bad in wrong:
        [first, second] = await update(client, bad, (other, b"other", IDENTITY))
        assert (first.status.code, second.status.code) == (3, 0)  # BUB-02
        assert str(digest) in first.status.message  # GEN-22
        assert "instance ''" in first.status.message
    assert await client.missing(digest, other) == {digest.hash}


async def test_limit_of_a_batch_counts_what_comes_out(client: Client) -> None:
    large = bytes(MAX_BATCH_BYTES + 1)  # BUB-03
    over = (SHA256.digest(large), zstd_streams.compress(large), ZSTD)
    assert await code_of(update(client, over)) is INVALID
    exact = large[:-1]  # BUB-04
    [response] = await update(client, (SHA256.digest(exact), zstd_streams.compress(exact), ZSTD))
    assert response.status.code == 0


async def test_batches_give_zstd_to_those_who_take_it(client: Client) -> None:
    random_bytes = os.urandom(5_000)
    blobs = [DATA, random_bytes, b"", b"short"]
    digests = await client.put(*blobs)
    absent = SHA256.digest(b"absent")
    responses = await read_batch(client, *digests, absent, accept=[IDENTITY, ZSTD])
    assert [r.compressor for r in responses[:4]] == [ZSTD, *[IDENTITY] * 3]  # BRB-03, BRB-04
    assert zstd_streams.decompress(responses[0].data) == DATA
    assert [r.data for r in responses[1:4]] == blobs[1:]
    assert responses[4].status.code == grpc.StatusCode.NOT_FOUND.value[0]  # BRB-01
    others = await read_batch(client, digests[0], accept=[reapi.Compressor.DEFLATE])
    assert (others[0].compressor, others[0].data) == (IDENTITY, DATA)
