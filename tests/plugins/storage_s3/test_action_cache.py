"""What the bucket action cache does beyond the laws: listing, removal and damage."""

from __future__ import annotations

from collections.abc import AsyncIterator

import obstore
import pytest
from structlog.testing import capture_logs

from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import SHA256, ActionCache, ActionKey
from stoker_storage_s3.action_cache import decode, encode
from stoker_storage_s3.bucket import Bucket

from .conftest import OpenResults
from .seaweed import Seaweed

RESULT = reapi.ActionResult(stdout_raw=b"x" * 100)
NAMESPACES = ["", "main", "../../x", "ä/b", "\udcff", "n" * 1000]


@pytest.fixture
async def cache(open_results: OpenResults) -> AsyncIterator[ActionCache]:
    async with open_results() as cache:
        yield cache


def action(number: int) -> ActionKey:
    return ActionKey("main", SHA256.digest(b"%d" % number))


async def listed(cache: ActionCache) -> list[ActionKey]:
    async with cache.open_entries() as entries:
        return [key async for key in entries]


async def test_entries_of_all_namespaces_are_listed(cache: ActionCache) -> None:
    keys = {ActionKey(name, SHA256.digest(b"%d" % n)) for name in NAMESPACES for n in range(3)}
    assert await listed(cache) == []
    for key in keys:
        await cache.update(key, RESULT)
    found = await listed(cache)
    assert set(found) == keys
    assert len(found) == len(keys)


async def test_removed_entries_are_gone(cache: ActionCache) -> None:
    keys = [action(number) for number in range(20)]
    for key in keys:
        await cache.update(key, RESULT)
    await cache.remove([*keys[:15], action(99)])
    assert set(await listed(cache)) == set(keys[15:])
    assert await cache.get(keys[0]) is None
    assert await cache.get(keys[19]) == RESULT
    await cache.remove([])


async def test_listing_may_be_left_early(cache: ActionCache) -> None:
    for number in range(5):
        await cache.update(action(number), RESULT)
    async with cache.open_entries() as entries:
        assert await anext(entries) in [action(number) for number in range(5)]
    assert len(await listed(cache)) == 5


@pytest.mark.parametrize("kept", [0, 10, 60, 100, -1])
async def test_entry_cut_short_is_absent(
    cache: ActionCache, seaweed: Seaweed, prefix: str, kept: int
) -> None:
    # ACG-11
    await cache.update(action(1), RESULT)
    [key] = seaweed.keys(prefix)
    client = seaweed.client(prefix)
    whole = bytes(obstore.get(client, key).bytes())
    obstore.put(client, key, whole[:kept], use_multipart=False)
    with capture_logs() as logs:
        assert await cache.get(action(1)) is None
    assert [entry["key"] for entry in logs] == [key]
    assert await listed(cache) == []
    await cache.update(action(1), RESULT)
    assert await cache.get(action(1)) == RESULT


async def test_entry_of_another_namespace_is_absent(
    cache: ActionCache, seaweed: Seaweed, prefix: str
) -> None:
    # ACG-10: a copy by hand does not carry a result over.
    await cache.update(action(1), RESULT)
    [key] = seaweed.keys(prefix)
    client = seaweed.client(prefix)
    obstore.put(client, key, encode("other", RESULT), use_multipart=False)
    assert await cache.get(action(1)) is None


async def test_foreign_objects_are_not_listed(
    cache: ActionCache, seaweed: Seaweed, prefix: str
) -> None:
    client = seaweed.client(prefix)
    for key in ("ac/readme", "ac/x/sha256/ab/abc-x", "ac/x/md5000/ab/abc-1", "acx/y", "cas/z"):
        obstore.put(client, key, b"foreign", use_multipart=False)
    await cache.update(action(1), RESULT)
    assert await listed(cache) == [action(1)]


async def test_renewal_never_undoes_an_update(seaweed: Seaweed, prefix: str) -> None:
    # ACU-05: what changed since it was read is left as it is.
    client = seaweed.client(prefix)
    bucket = Bucket("s3://test", client, client, max_connections=4)
    await bucket.put("entry", b"old")
    old = await bucket.get_whole("entry")
    assert old is not None
    await bucket.put("entry", b"new!")
    await bucket.put_unchanged("entry", b"old", old.found)
    assert bytes(obstore.get(client, "entry").bytes()) == b"new!"


def test_encoding_holds_namespace_and_result() -> None:
    for name in NAMESPACES:
        assert decode(encode(name, RESULT)) == (name, RESULT)
    assert decode(b"") is None
    assert decode(encode("x", RESULT)[:-1]) is None
