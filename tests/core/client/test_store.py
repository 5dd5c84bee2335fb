"""Another server as a store: the laws, which are the front door's too, and what is its alone."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from stoker import spi
from stoker.client.far_side import RemoteSettings
from stoker.client.result_cache import RemoteActionCacheSettings, open_remote_action_cache
from stoker.client.store import open_remote_blob_store
from stoker.errors import ConfigurationError, DataLoss, FailedPrecondition, StorageFull, Unavailable
from stoker.protos import provenance_pb2
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Method, Server, ServerCall, Service, unary_unary
from stoker.spi import SHA256, ActionCache, ActionKey, ActionResult, BlobStore, Digest
from stoker.storage.existence import ExistenceBlobStore
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.tiered import TieredBlobStoreSettings, open_tiered_blob_store
from stoker.storage.verifying import VerifyingBlobStore
from stoker.testing.action_cache_laws import ActionCacheLaws
from stoker.testing.blob_store_laws import BlobStoreLaws, blob, read, write
from stoker.testing.server import MEMORY_ONLY, open_test_server

KEY = ActionKey("", SHA256.digest(b"an action"))


def open_store(address: str, **settings: Any) -> AbstractAsyncContextManager[BlobStore]:
    context = spi.Context("remote", Path(), {})
    return open_remote_blob_store(RemoteSettings(target=address, **settings), context)


def open_cache(address: str, **settings: Any) -> AbstractAsyncContextManager[ActionCache]:
    context = spi.Context("remote", Path(), {})
    return open_remote_action_cache(RemoteActionCacheSettings(target=address, **settings), context)


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    async with open_test_server(MEMORY_ONLY, tmp_path) as server:
        yield server.address


@pytest.fixture
async def remote(address: str) -> AsyncIterator[BlobStore]:
    async with open_store(address) as store:
        yield store


# --- the laws


class TestFrontDoor(BlobStoreLaws):
    """A bare remote store: client, gRPC, services, memory."""

    @pytest.fixture
    async def store(self, remote: BlobStore) -> BlobStore:
        return remote


class TestVerified(BlobStoreLaws):
    @pytest.fixture
    async def store(self, remote: BlobStore) -> BlobStore:
        return VerifyingBlobStore(remote)


class TestTieredOverRemote(BlobStoreLaws):
    @pytest.fixture
    async def store(self, remote: BlobStore) -> AsyncIterator[BlobStore]:
        far = ExistenceBlobStore(remote, seconds=60.0, max_digests=1_000)
        context = spi.Context(
            "both", Path(), {"blob_stores": {"near": MemoryBlobStore(), "far": far}}
        )
        settings = TieredBlobStoreSettings(near="near", far="far")
        async with open_tiered_blob_store(settings, context) as store:
            yield store


class AsFiled(ActionCache):
    """Undoes what the server may do to a result: REAPI lets it normalise what it takes."""

    def __init__(self, inner: ActionCache, blobs: BlobStore) -> None:
        self._inner = inner
        self._blobs = blobs

    async def get(self, key: ActionKey) -> ActionResult | None:
        result = await self._inner.get(key)
        if result is None:
            return None
        if result.HasField("stdout_digest"):
            digest = SHA256.parse(result.stdout_digest)
            result.stdout_raw = (await self._blobs.read_many([digest]))[digest]
            result.ClearField("stdout_digest")
        metadata = result.execution_metadata
        [stamp] = metadata.auxiliary_metadata
        assert stamp.Is(provenance_pb2.Provenance.DESCRIPTOR)
        del metadata.auxiliary_metadata[:]
        if metadata.worker in ("", "unknown"):
            result.ClearField("execution_metadata")
        return result

    async def update(self, key: ActionKey, result: ActionResult) -> None:
        await self._inner.update(key, result)


class TestFrontDoorOfTheActionCache(ActionCacheLaws):
    @pytest.fixture
    async def cache(self, address: str, remote: BlobStore) -> AsyncIterator[ActionCache]:
        # What one of the laws names as an output.
        await remote.write_many({SHA256.digest(b"x"): b"x"})
        async with open_cache(address) as cache:
            yield AsFiled(cache, remote)


# --- what is its alone


async def test_messages_keep_within_the_limits_of_the_server(remote: BlobStore) -> None:
    # FMB-05, BUB-03
    many = dict(blob(f"tiny {number}", 3) for number in range(30_000))
    assert await remote.find_missing(many) == many.keys()
    assert await remote.write_many(many) == {}
    assert await remote.find_missing(many) == set()
    assert await remote.read_many(many) == many
    mixed = dict(blob(f"mixed {size}", size) for size in (1, 700_000, 1_500_000, 3_000_000))
    assert await remote.write_many(mixed) == {}
    assert await remote.read_many(mixed) == mixed


async def test_nothing_is_read_where_nothing_is_asked_for(remote: BlobStore) -> None:
    digest, data = blob("limits", 100)
    await write(remote, digest, data)
    assert await read(remote, digest, 10, 0) == b""
    assert await read(remote, digest, 100) == b""


async def test_a_server_comes_and_goes(tmp_path: Path) -> None:
    # STO-04
    digest, data = blob("patience", 2_000_000)
    address = f"127.0.0.1:{free_port()}"
    toml = MEMORY_ONLY + f'[server]\nlisten = ["{address}"]\ndrain_seconds = 0.0\n'
    async with open_store(address) as store, open_cache(address) as cache:
        await assert_unavailable(store, cache, digest, data)
        for number in range(2):
            async with open_test_server(toml, tmp_path / str(number)):
                await wait_served(store)
                await write(store, digest, data)
                assert await read(store, digest) == data
                await wait_served(cache)
                await cache.update(KEY, ActionResult(exit_code=0))
                assert await cache.get(KEY) is not None
            await assert_unavailable(store, cache, digest, data)


async def test_server_lost_in_the_middle_of_a_read(tmp_path: Path) -> None:
    # STO-04
    digest, data = blob("torn", 60_000_000)
    async with trio.open_nursery() as nursery:
        toml = MEMORY_ONLY + "[server]\ndrain_seconds = 0.0\n"
        stop, stopped = trio.Event(), trio.Event()
        addresses: list[str] = []

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            async with open_test_server(toml, tmp_path) as server:
                addresses.append(server.address)
                task_status.started()
                await stop.wait()
            stopped.set()

        await nursery.start(serve)
        async with open_store(addresses[0]) as store:
            await write(store, digest, data)
            async with store.open_read(digest) as reader:
                await reader.read(10)
                stop.set()
                await stopped.wait()
                with pytest.raises(Unavailable):
                    await read_on(reader)


async def read_on(reader: spi.BlobReader) -> None:
    while await reader.read(1_000_000):
        pass


async def assert_unavailable(
    store: BlobStore, cache: ActionCache, digest: Digest, data: bytes
) -> None:
    small, _ = blob("small", 10)
    for ask in (
        store.find_missing([digest]),
        store.read_many([small]),
        read(store, digest),
        write(store, digest, data),
        cache.get(KEY),
        cache.update(KEY, ActionResult()),
    ):
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
            await ask
    failures = await store.write_many({digest: data, small: data[:10]})
    assert {type(error) for error in failures.values()} == {Unavailable}
    assert failures.keys() == {digest, small}


async def wait_served(far: BlobStore | ActionCache) -> None:
    """Ask until the channel has found the server again, which gRPC tries once in a while."""
    while True:
        try:
            await (far.get(KEY) if isinstance(far, ActionCache) else far.find_missing([KEY.action]))
        except Unavailable:
            await trio.sleep(0.1)
        else:
            return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_CAS = "build.bazel.remote.execution.v2.ContentAddressableStorage"
_CAPABILITIES = "build.bazel.remote.execution.v2.Capabilities"


async def announce(_: reapi.GetCapabilitiesRequest, __: ServerCall) -> reapi.ServerCapabilities:
    return reapi.ServerCapabilities()


@asynccontextmanager
async def open_odd_server(**methods: Method) -> AsyncIterator[str]:
    """A server of these methods of the CAS alone."""
    capabilities = unary_unary(announce, reapi.GetCapabilitiesRequest, reapi.ServerCapabilities)
    services = [Service(_CAS, methods), Service(_CAPABILITIES, {"GetCapabilities": capabilities})]
    async with trio.open_nursery() as nursery:
        server = Server(services)
        port = server.add_listener("127.0.0.1:0")
        await nursery.start(server.serve)
        yield f"127.0.0.1:{port}"
        await server.stop(0)


async def test_server_that_is_silent_is_not_available() -> None:
    # STO-04
    async def never(_: reapi.FindMissingBlobsRequest, __: ServerCall) -> Any:
        await trio.sleep_forever()

    method = unary_unary(never, reapi.FindMissingBlobsRequest, reapi.FindMissingBlobsResponse)
    async with (
        open_odd_server(FindMissingBlobs=method) as address,
        open_store(address, timeout_seconds=0.1) as store,
    ):
        with pytest.raises(Unavailable, match="does not answer in time"):
            await store.find_missing([KEY.action])


async def test_server_that_names_no_blob_is_at_fault_and_not_the_client() -> None:
    # STO-04
    async def name_nonsense(_: reapi.FindMissingBlobsRequest, __: ServerCall) -> Any:
        return reapi.FindMissingBlobsResponse(missing_blob_digests=[reapi.Digest(hash="zz")])

    method = unary_unary(
        name_nonsense, reapi.FindMissingBlobsRequest, reapi.FindMissingBlobsResponse
    )
    async with (
        open_odd_server(FindMissingBlobs=method) as address,
        open_store(address) as store,
    ):
        with pytest.raises(Unavailable, match=address):
            await store.find_missing([KEY.action])


async def test_what_a_server_passes_over_is_neither_absent_nor_written() -> None:
    # STO-04
    digest, data = blob("passed over", 100)

    async def read_none(_: reapi.BatchReadBlobsRequest, __: ServerCall) -> Any:
        return reapi.BatchReadBlobsResponse()

    async def write_none(_: reapi.BatchUpdateBlobsRequest, __: ServerCall) -> Any:
        return reapi.BatchUpdateBlobsResponse()

    async with (
        open_odd_server(
            BatchReadBlobs=unary_unary(
                read_none, reapi.BatchReadBlobsRequest, reapi.BatchReadBlobsResponse
            ),
            BatchUpdateBlobs=unary_unary(
                write_none, reapi.BatchUpdateBlobsRequest, reapi.BatchUpdateBlobsResponse
            ),
        ) as address,
        open_store(address) as store,
    ):
        # It is asked for once more by Read, which this server does not have.
        with pytest.raises(FailedPrecondition, match="UNIMPLEMENTED"):
            await store.read_many([digest])
        assert isinstance((await store.write_many({digest: data}))[digest], Unavailable)
        with pytest.raises(Unavailable):
            await write(store, digest, data)


async def test_a_blob_cut_short_is_damaged() -> None:
    digest, data = blob("cut short", 100)

    async def read_half(_: reapi.BatchReadBlobsRequest, __: ServerCall) -> Any:
        half = reapi.BatchReadBlobsResponse.Response(digest=digest.to_proto(), data=data[:50])
        return reapi.BatchReadBlobsResponse(responses=[half])

    method = unary_unary(read_half, reapi.BatchReadBlobsRequest, reapi.BatchReadBlobsResponse)
    async with (
        open_odd_server(BatchReadBlobs=method) as address,
        open_store(address) as store,
    ):
        with pytest.raises(DataLoss):
            await store.read_many([digest])


async def test_tls_on_both_sides(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, certificate in (
        ("server", authority.issue_cert("127.0.0.1")),
        ("client", authority.issue_cert("client")),
    ):
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    toml = f"""{MEMORY_ONLY}
[server]
tls_certificate = "server.pem"
tls_key = "server.key"
tls_client_ca = "ca.pem"
"""
    digest, data = blob("secret", 100)
    context = spi.Context("remote", tmp_path, {})
    async with open_test_server(toml, tmp_path) as server:
        target = f"grpcs://{server.address}"
        known = RemoteSettings(
            target=target, tls_ca="ca.pem", tls_certificate="client.pem", tls_key="client.key"
        )
        async with open_remote_blob_store(known, context) as store:
            await write(store, digest, data)
            assert await read(store, digest) == data
        unknown = RemoteSettings(target=target, tls_ca="ca.pem")
        async with open_remote_blob_store(unknown, context) as store:
            with pytest.raises(Unavailable):
                await store.find_missing([digest])


async def test_refusals_are_told_as_such(address: str) -> None:
    digest, data = blob("unwelcome", 10)
    async with open_store(address, instance_name="nope") as store:
        for ask in (store.find_missing([digest]), read(store, digest), store.read_many([digest])):
            with pytest.raises(FailedPrecondition, match="no instance named 'nope'"):
                await ask
        assert isinstance((await store.write_many({digest: data}))[digest], FailedPrecondition)


async def test_a_full_server_is_full(tmp_path: Path) -> None:
    toml = MEMORY_ONLY.replace('kind = "memory"', 'kind = "memory"\nmax_bytes = 1000', 1)
    async with open_test_server(toml, tmp_path) as server, open_store(server.address) as store:
        for size_bytes in (1_001, 3_000_000):
            digest, data = blob("too large", size_bytes)
            with pytest.raises(StorageFull):
                await write(store, digest, data)
            assert isinstance((await store.write_many({digest: data}))[digest], StorageFull)


async def test_results_are_shared_with_clients_of_the_same_instance_only(address: str) -> None:
    # ACG-10
    key = ActionKey("team", KEY.action)
    async with open_cache(address) as plain, open_cache(address, namespace="team") as team:
        await team.update(key, ActionResult(stderr_digest=SHA256.empty.to_proto()))
        assert await plain.get(KEY) is not None
        assert await plain.get(key) is None
        assert await team.get(key) is not None
        assert await team.get(KEY) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"target": "http://x:1"},
        {"target": "nowhere"},
        {"target": "grpc://x:1", "tls_ca": __file__},
        {"target": "grpcs://x:1", "tls_key": __file__},
    ],
)
async def test_settings_that_cannot_work(settings: dict[str, Any]) -> None:
    context = spi.Context("remote", Path(), {})
    with pytest.raises(ConfigurationError):
        async with open_remote_blob_store(RemoteSettings(**settings), context):
            pass
