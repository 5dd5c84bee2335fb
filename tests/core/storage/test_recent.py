"""Small blobs that are held in memory for a while."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from stoker.errors import DigestMismatch
from stoker.spi import HELD_SECONDS
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.recent import MAX_BLOB_BYTES, RecentBlobs, read_soon
from stoker.storage.verifying import VerifyingBlobStore
from stoker.testing.blob_store_laws import blob, read, write


async def test_what_goes_in_or_out_is_held_and_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    inner = MemoryBlobStore()
    store = VerifyingBlobStore(inner)
    blobs = dict(blob(name, 10) for name in ("alone", "upload", "batch", "read", "streamed"))
    alone, upload, batch, out, streamed = blobs
    large, large_data = blob("large", MAX_BLOB_BYTES + 1)
    await inner.write_many({digest: blobs[digest] for digest in (out, streamed)})
    await write(store, alone, blobs[alone], piece_bytes=3)
    async with store.open_upload(upload, "name") as writer:
        await writer.write(memoryview(blobs[upload]))
    assert not await store.write_many({batch: blobs[batch], large: large_data})
    await store.read_many([out])
    await read(store, streamed)
    within = {digest: blobs[digest] for digest in (alone, upload, batch, out)}
    assert store.held([*blobs, large]) == within
    assert await read_soon(store, [*blobs, large]) == {**blobs, large: large_data}
    await trio.sleep(HELD_SECONDS)
    assert not store.held([*blobs, large])


async def test_what_is_not_its_digest_is_not_held() -> None:
    store = VerifyingBlobStore(MemoryBlobStore(max_bytes=100))
    digest, data = blob("right", 10)
    with pytest.raises(DigestMismatch):
        await write(store, digest, data[::-1])
    assert await store.write_many({digest: data[::-1]})
    too_much, bytes_ = blob("too much", 101)
    assert await store.write_many({too_much: bytes_}), "the store has no room"
    assert not store.held([digest, too_much])


async def test_an_upload_that_is_continued_is_not_held() -> None:
    # Its beginning never came by here.
    inner = MemoryBlobStore()
    digest, data = blob("in two", 10)
    with trio.CancelScope() as scope:
        async with VerifyingBlobStore(inner).open_upload(digest, "name") as writer:
            await writer.write(data[:4])
            scope.cancel()
            await trio.sleep_forever()
    store = VerifyingBlobStore(inner)
    async with store.open_upload(digest, "name") as writer:
        assert writer.offset == 4
        await writer.write(data[4:])
    assert not store.held([digest])
    assert await read(store, digest) == data


async def test_the_longest_held_makes_room() -> None:
    recent = RecentBlobs(max_bytes=2_000)
    blobs = dict(blob(str(number), 400) for number in range(3))
    for digest, data in blobs.items():
        recent.add({digest: data})
    first, *rest = blobs
    assert recent.find(list(blobs)) == {digest: blobs[digest] for digest in rest}
    recent.add({rest[0]: blobs[rest[0]]})
    recent.add({first: blobs[first]})
    assert recent.find(list(blobs)) == {digest: blobs[digest] for digest in (first, rest[0])}
