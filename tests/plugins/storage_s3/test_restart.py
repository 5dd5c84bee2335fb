"""A server that is killed in mid-transfer and started again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import SHA256, ActionKey, BlobReader, BlobStore, Digest, Unavailable
from stoker.testing.blob_store_laws import MIB, assert_absent, blob, read, same, write
from stoker_storage_s3 import S3BlobSettings, S3Settings, stoker_action_caches, stoker_blob_stores

from .conftest import context, settings, write_credentials
from .proxy import Hold, Proxy
from .seaweed import Seaweed

PART = 5 * MIB
KEY = ActionKey("main", SHA256.digest(b"an action"))
RESULT = reapi.ActionResult(stdout_raw=b"kept")


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Seaweed]:
    server = Seaweed(tmp_path / "mortal")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.mark.slow
async def test_killed_in_mid_transfer(mortal: Seaweed, tmp_path: Path) -> None:
    # STO-02, STO-04
    proxy = Proxy(mortal.port)
    plain = settings(mortal, "restart", write_credentials(tmp_path / "credentials"))
    plain |= {"retries": 1, "retry_seconds": 2, "presence_seconds": 0}
    small = dict(blob(f"small {number}", 3_000) for number in range(50))
    large, data = blob("large", 20 * MIB)
    broken, unfinished = blob("broken", 4 * PART)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.serve)
        plain["endpoint"] = proxy.endpoint
        blobs = S3BlobSettings(**plain, part_bytes=PART)
        async with (
            stoker_blob_stores()["s3"].open(blobs, context()) as store,
            stoker_action_caches()["s3"].open(
                S3Settings(**_without_blobs(plain)), context()
            ) as cache,
        ):
            assert await store.write_many(small) == {}
            await write(store, large, data)
            await cache.update(KEY, RESULT)
            async with trio.open_nursery() as clients:
                clients.start_soon(_write_in_vain, store, broken, unfinished)
                killed = trio.Event()
                clients.start_soon(_read_in_vain, store, large, data, killed)
                await _kill_behind_a_part(mortal, proxy)
                killed.set()
            for call in (
                lambda: store.find_missing([large]),
                lambda: store.read_many(small),
                lambda: read(store, large),
                lambda: cache.get(KEY),
            ):
                with pytest.raises(Unavailable):
                    await call()
            await trio.to_thread.run_sync(mortal.start)
            await assert_absent(store, broken)
            assert await store.read_many(small) == small
            assert same(await read(store, large), data)
            assert await cache.get(KEY) == RESULT
            await write(store, broken, unfinished)
            assert same(await read(store, broken), unfinished)
        nursery.cancel_scope.cancel()


async def _kill_behind_a_part(mortal: Seaweed, proxy: Proxy) -> None:
    held = Hold(trio.Event())
    proxy.choose = lambda request: held if "partNumber=2" in request.path else None
    await proxy.begun.wait()
    mortal.kill()
    proxy.choose = lambda request: None
    held.released.set()


async def _write_in_vain(store: BlobStore, digest: Digest, data: bytes) -> None:
    with pytest.raises(Unavailable):
        await write(store, digest, data)


async def _read_in_vain(store: BlobStore, digest: Digest, data: bytes, killed: trio.Event) -> None:
    async with store.open_read(digest) as reader:
        pieces = [await reader.read(1)]
        await killed.wait()
        with pytest.raises(Unavailable):
            await _read_on(reader, pieces)
    assert data.startswith(b"".join(pieces))


async def _read_on(reader: BlobReader, pieces: list[bytes]) -> None:
    while piece := await reader.read(MIB):
        pieces.append(piece)
    pytest.fail("short data passed as whole")


def _without_blobs(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key != "presence_seconds"}
