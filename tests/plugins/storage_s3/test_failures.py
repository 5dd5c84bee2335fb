"""Buckets that are slow, broken, dead or refuse: STO-04. Nothing is missing because of it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import obstore
import pytest
import trio
import trustme
from obstore.exceptions import GenericError
from structlog.testing import capture_logs

from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import (
    SHA256,
    ActionKey,
    BlobNotFound,
    BlobReader,
    BlobStore,
    ConfigurationError,
    DataLoss,
    StokerError,
    StorageFull,
    Unavailable,
)
from stoker.testing.blob_store_laws import MIB, assert_absent, blob, read, same, write
from stoker_storage_s3.failures import unavailable

from .conftest import OpenBlobs, OpenResults, write_credentials
from .proxy import Answer, Cut, Drop, Fault, Hang, Proxy
from .seaweed import BUCKET, SECRET_KEY, Seaweed

# Two attempts, and little patience with each.
HURRIED = {
    "retries": 1,
    "retry_seconds": 2,
    "request_seconds": 0.3,
    "upload_seconds": 0.5,
    "connect_seconds": 0.3,
    "part_bytes": 5 * MIB,
    "presence_seconds": 0,
}
KEY = ActionKey("main", SHA256.digest(b"an action"))
FAULTS = [
    Answer("500 Internal Server Error", "InternalError"),
    Answer("503 Service Unavailable", "SlowDown"),
    Answer("429 Too Many Requests"),
    Answer("403 Forbidden", "AccessDenied"),
    Answer("401 Unauthorized"),
    Answer("400 Bad Request", "ExpiredToken"),
    Answer("301 Moved Permanently", "PermanentRedirect"),
    Answer("404 Not Found", "NoSuchBucket"),
    Answer("404 Not Found"),
    Answer("409 Conflict", "OperationAborted"),
    Drop(),
    Cut(20),
]
TAKES_LONG = pytest.param(Hang(), marks=pytest.mark.slow)


@pytest.fixture
async def store(open_blobs: OpenBlobs, proxy: Proxy) -> AsyncIterator[BlobStore]:
    async with open_blobs(endpoint=proxy.endpoint, **HURRIED) as store:
        yield store


async def read_on(reader: BlobReader, pieces: list[bytes]) -> None:
    """Read until it breaks: the end is not to be reached."""
    while piece := await reader.read(MIB):
        pieces.append(piece)
    pytest.fail("short data passed as whole")


def key_of(name: str, size_bytes: int) -> str:
    digest, _ = blob(name, size_bytes)
    return f"cas/sha256/{digest.hash[:2]}/{digest.hash}-{size_bytes}"


@pytest.mark.parametrize("fault", [*FAULTS, TAKES_LONG], ids=str)
async def test_every_call_is_unavailable(store: BlobStore, proxy: Proxy, fault: Fault) -> None:
    # STO-04
    present, data = blob("present", 1_000)
    absent, other = blob("absent", 1_000)
    large, much = blob("large", 6 * MIB)
    await write(store, present, data)
    proxy.fail_all(fault)
    for asked in ([present], [absent], [present, absent]):
        with pytest.raises(Unavailable, match=BUCKET):
            await store.find_missing(asked)
    for digest in (present, absent):
        with pytest.raises(Unavailable, match=BUCKET):
            await read(store, digest)
        with pytest.raises(Unavailable, match=BUCKET):
            await store.read_many([digest])
    for digest, content in ((absent, other), (large, much)):
        with pytest.raises(Unavailable, match=BUCKET):
            await write(store, digest, content)
    failures = await store.write_many({absent: other})
    assert {digest: type(error) for digest, error in failures.items()} == {absent: Unavailable}
    proxy.choose = lambda request: None
    assert await store.find_missing([present, absent, large]) == {absent, large}
    assert same(await read(store, present), data)
    await write(store, absent, other)


@pytest.mark.parametrize("fault", [*FAULTS, TAKES_LONG], ids=str)
async def test_every_call_of_the_action_cache_is_unavailable(
    open_results: OpenResults, proxy: Proxy, fault: Fault
) -> None:
    # STO-04
    hurried = {k: v for k, v in HURRIED.items() if k not in ("part_bytes", "presence_seconds")}
    result, other = (reapi.ActionResult(stdout_raw=text) for text in (b"x", b"y"))
    async with open_results(endpoint=proxy.endpoint, **hurried) as cache:
        await cache.update(KEY, result)
        proxy.fail_all(fault)
        with pytest.raises(Unavailable, match=BUCKET):
            await cache.get(KEY)
        with pytest.raises(Unavailable, match=BUCKET):
            await cache.update(KEY, other)
        with pytest.raises(Unavailable, match=BUCKET):
            async with cache.open_entries() as entries:
                assert [entry async for entry in entries] == []
        proxy.choose = lambda request: None
        # Where the answer was cut off, the update itself was not.
        assert await cache.get(KEY) in (result, other)


@pytest.mark.parametrize(
    "fault", [Answer("503 Service Unavailable", "SlowDown"), Drop(), Hang()], ids=str
)
async def test_what_fails_once_is_repeated(store: BlobStore, proxy: Proxy, fault: Fault) -> None:
    # STO-04
    digest, data = blob("second attempt", 1_000)
    await write(store, digest, data)

    def fail_the_next() -> None:
        before = len(proxy.requests)
        proxy.choose = lambda request: fault if len(proxy.requests) == before + 1 else None

    fail_the_next()
    assert await store.find_missing([digest]) == set()
    fail_the_next()
    assert same(await read(store, digest), data)
    other, content = blob("second attempt to write", 1_000)
    if fault != Hang():  # whether a put that hangs was done is not known, so it is not repeated
        assert await store.find_missing([other]) == {other}
        fail_the_next()
        await write(store, other, content)
        assert same(await read(store, other), content)


async def test_full_bucket(store: BlobStore, proxy: Proxy) -> None:
    # STO-10
    digest, data = blob("too much", 1_000)
    for fault in (Answer("507 Insufficient Storage"), Answer("403 Forbidden", "QuotaExceeded")):
        proxy.fail_all(fault, "PUT")
        with pytest.raises(StorageFull, match=BUCKET):
            await write(store, digest, data)
    await assert_absent(store, digest)


async def test_broken_read_is_resumed(store: BlobStore, proxy: Proxy) -> None:
    # BSR-12, STO-04: by range, and unseen.
    digest, data = blob("resumed", 4 * MIB)
    await write(store, digest, data)
    gets = proxy.count("GET")
    broken = iter([True, False, True, False])
    proxy.choose = lambda request: (
        Cut(300_000) if request.method == "GET" and next(broken, False) else None
    )
    assert same(await read(store, digest), data)
    assert proxy.count("GET") == gets + 4


async def test_read_that_breaks_for_good(store: BlobStore, proxy: Proxy) -> None:
    digest, data = blob("breaks", 4 * MIB)
    await write(store, digest, data)
    pieces = []
    async with store.open_read(digest) as reader:
        proxy.fail_all(Cut(300_000))
        pieces.append(await reader.read(MIB))
        with pytest.raises(Unavailable):
            await read_on(reader, pieces)
    assert data.startswith(b"".join(pieces))


async def test_blob_removed_while_it_is_read(
    store: BlobStore, seaweed: Seaweed, prefix: str
) -> None:
    digest, data = blob("removed", 20 * MIB)
    await write(store, digest, data)
    async with store.open_read(digest) as reader:
        assert await reader.read(MIB)
        obstore.delete(seaweed.client(prefix), key_of("removed", 20 * MIB))
        with pytest.raises(Unavailable, match="removed"):
            await read_on(reader, [])
    with pytest.raises(BlobNotFound):
        await read(store, digest)


async def test_blob_removed_by_hand(open_blobs: OpenBlobs, seaweed: Seaweed, prefix: str) -> None:
    # STO-03: what was believed is forgotten with the first read.
    async with open_blobs() as store:
        digest, data = blob("by hand", 100)
        await write(store, digest, data)
        obstore.delete(seaweed.client(prefix), key_of("by hand", 100))
        with pytest.raises(BlobNotFound):
            await read(store, digest)
        await assert_absent(store, digest)
        await write(store, digest, data)
        assert await read(store, digest) == data


@pytest.mark.parametrize("damaged", [b"", b"short", b"longer than it was"])
async def test_object_of_another_size(
    open_blobs: OpenBlobs, seaweed: Seaweed, prefix: str, damaged: bytes
) -> None:
    # STO-03: absent to every question, and repaired by the next upload.
    digest, data = blob("damaged", 10)
    client = seaweed.client(prefix)
    obstore.put(client, key_of("damaged", 10), damaged, use_multipart=False)
    async with open_blobs() as store:
        with capture_logs() as logs:
            await assert_absent(store, digest)
        assert {entry["key"] for entry in logs} == {key_of("damaged", 10)}
        with pytest.raises(BlobNotFound):
            await read(store, digest, 7, 1)
        await write(store, digest, data)
        assert await read(store, digest) == data


async def test_short_object_is_never_passed_as_whole(
    store: BlobStore, seaweed: Seaweed, prefix: str
) -> None:
    digest, data = blob("cut", 20 * MIB)
    await write(store, digest, data)
    async with store.open_read(digest) as reader:
        assert await reader.read(1)
        client = seaweed.client(prefix)
        obstore.put(client, key_of("cut", 20 * MIB), data[: 15 * MIB], use_multipart=False)
        with pytest.raises(DataLoss):
            await read_on(reader, [])


async def test_conflict_is_not_taken_for_presence(store: BlobStore, proxy: Proxy) -> None:
    # S3 answers 409 to a conditional put while another request removes the object.
    digest, data = blob("conflict", 100)
    conflict = iter([Answer("409 Conflict", "ConditionalRequestConflict")])
    proxy.choose = lambda request: next(conflict, None) if request.method == "PUT" else None
    await write(store, digest, data)
    assert await store.find_missing([digest]) == set()
    assert await read(store, digest) == data


async def test_cancellation_does_not_wait_for_a_dead_server(
    open_blobs: OpenBlobs, proxy: Proxy
) -> None:
    # GEN-26
    digest, _ = blob("waited for", 100)
    async with open_blobs(endpoint=proxy.endpoint, request_seconds=1, retries=0) as store:
        proxy.fail_all(Hang())
        with trio.fail_after(0.9), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.find_missing, [digest])
                nursery.start_soon(read, store, digest)
                await proxy.begun.wait()
                scope.cancel()
        assert scope.cancelled_caught


# --- opening


async def test_absent_bucket_is_a_configuration_error(open_blobs: OpenBlobs) -> None:
    # STO-04
    with pytest.raises(ConfigurationError, match=r"s3://nowhere.*no such bucket"):
        async with open_blobs(bucket="nowhere"):
            pytest.fail("a bucket that does not exist was opened")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Answer("403 Forbidden", "AccessDenied"), ConfigurationError),
        (Answer("301 Moved Permanently"), ConfigurationError),
        (Answer("503 Service Unavailable", "SlowDown"), Unavailable),
        (Answer("404 Not Found"), Unavailable),
        (Drop(), Unavailable),
        (Hang(), Unavailable),
    ],
    ids=str,
)
async def test_opening_a_bucket_that_fails(
    open_blobs: OpenBlobs,
    open_results: OpenResults,
    proxy: Proxy,
    fault: Fault,
    error: type[StokerError],
) -> None:
    proxy.fail_all(fault)
    hurried = {"retries": 1, "retry_seconds": 1, "request_seconds": 0.3}
    for open_ in (open_blobs, open_results):
        with pytest.raises(error, match=f"s3://{BUCKET}/"):
            async with open_(endpoint=proxy.endpoint, **hurried):
                pytest.fail("a bucket that fails was opened")


async def test_dead_server(open_blobs: OpenBlobs) -> None:
    with pytest.raises(Unavailable, match=BUCKET):
        async with open_blobs(endpoint="http://127.0.0.1:1", retries=1):
            pytest.fail("a bucket that is not there was opened")


@pytest.mark.parametrize("change", [{"prefix": "a//b"}, {"prefix": "../b"}], ids=str)
async def test_settings_that_cannot_work(open_blobs: OpenBlobs, change: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=BUCKET):
        async with open_blobs(**change):
            pytest.fail("settings that cannot work were accepted")


async def test_certificate_of_ones_own(
    open_blobs: OpenBlobs, seaweed: Seaweed, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    proxy = Proxy(seaweed.port, tls)
    digest, data = blob("private", 1_000)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.serve)
        certificate = str(tmp_path / "ca.pem")
        async with open_blobs(endpoint=proxy.endpoint, ca_certificate=certificate) as store:
            await write(store, digest, data)
            assert await read(store, digest) == data
        with pytest.raises(Unavailable):
            async with open_blobs(endpoint=proxy.endpoint, retries=0):
                pytest.fail("a certificate that nobody vouches for was accepted")
        nursery.cancel_scope.cancel()


# --- secrets


async def test_wrong_secret_is_told_without_it(open_blobs: OpenBlobs, tmp_path: Path) -> None:
    # SEC-07
    file = write_credentials(tmp_path / "wrong", secret_key="wrong" + SECRET_KEY)
    with capture_logs() as logs, pytest.raises(ConfigurationError) as caught:
        async with open_blobs(credentials_file=str(file)):
            pytest.fail("a wrong secret was accepted")
    assert "the secret key does not fit" in str(caught.value)
    assert caught.value.__suppress_context__
    assert SECRET_KEY not in f"{caught.value!r} {logs}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        ("[other]\n", r"no section \[default\]"),
        (f"aws_secret_access_key = {SECRET_KEY}", "not a file of credentials"),
        (f"[default]\naws_secret_access_key = {SECRET_KEY}\n", "lacks aws_access_key_id"),
    ],
)
async def test_unusable_credentials_file(
    open_blobs: OpenBlobs, tmp_path: Path, content: str | None, problem: str
) -> None:
    file = tmp_path / "unusable"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        async with open_blobs(credentials_file=str(file)):
            pytest.fail("unusable credentials were accepted")
    assert str(file) in str(caught.value)
    assert SECRET_KEY not in str(caught.value)


async def test_no_credentials_at_all(
    open_blobs: OpenBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither the environment nor the machine has any: nobody is where the latter is asked for.
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="no credentials"):
        async with open_blobs(credentials_file=None, retries=0, connect_seconds=0.3):
            pytest.fail("a bucket was opened without credentials")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Azure: GET https://a.example/c?sig=hush in 1s - HTTP error: odd", "HTTP error: odd"),
        ("Azure: asking - see https://a.example/c?sig=hush for more", "see … for more"),
        ("S3: - status code: 403 Forbidden: <Error><Sig>hush</Sig></Error>", "403"),
        ("S3: broken - <Error><Sig>hush</Sig></Error>\nDebug: hush", ""),
        ("S3: error sending request\nhush", "it does not answer"),
    ],
)
def test_reasons_quote_neither_addresses_nor_bodies(text: str, told: str) -> None:
    message = str(unavailable(GenericError(text), "s3://b", "reading x"))
    assert message == f"bucket s3://b: reading x failed: {told}"


async def test_credentials_from_the_environment(
    open_blobs: OpenBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTSOFSTOKER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    digest, data = blob("from the environment", 10)
    async with open_blobs(credentials_file=None) as store:
        await write(store, digest, data)
        assert await read(store, digest) == data
