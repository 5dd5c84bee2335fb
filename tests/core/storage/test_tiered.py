"""A near store in front of a far one: the laws in every mode, and what is theirs alone (STO-07)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from stoker import spi
from stoker.errors import (
    BlobNotFound,
    ConfigurationError,
    DataLoss,
    DigestMismatch,
    FailedPrecondition,
    StokerError,
    StorageFull,
    Unavailable,
)
from stoker.spi import BlobReader, BlobStore, BlobUpload, BlobWriter, Digest
from stoker.storage.existence import ExistenceBlobStore
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.tiered import TieredBlobStoreSettings, open_tiered_blob_store
from stoker.storage.verifying import VerifyingBlobStore
from stoker.storage.write_back import Journal
from stoker.testing.blob_store_laws import (
    BlobStoreLaws,
    assert_absent,
    blob,
    read,
    upload_rest,
    write,
)

MODES = ("through", "back", "near-only")


class Far(MemoryBlobStore):
    """A far store that counts, fails, waits and lies when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[set[Digest]] = []
        self.reads = 0
        self.writes = 0
        self.down = False
        self.open_gate = trio.Event()
        self.open_gate.set()
        self.fail_at_end: StokerError | None = None

    def lie(self, digest: Digest, data: bytes) -> None:
        self._blobs[digest] = data

    def forget(self, digest: Digest) -> None:
        del self._blobs[digest]

    async def _pass(self) -> None:
        await self.open_gate.wait()
        if self.down:
            raise Unavailable("the far store is down")

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        await self._pass()
        self.asked.append(set(digests))
        return await super().find_missing(digests)

    @asynccontextmanager
    async def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[BlobReader]:
        self.reads += 1
        await self._pass()
        async with super().open_read(digest, offset, limit) as reader:
            yield reader

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        await self._pass()
        async with super().open_write(digest) as writer:
            yield writer
            self.writes += 1
            if self.fail_at_end:
                raise self.fail_at_end

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        self.reads += 1
        await self._pass()
        return await super().read_many(digests)

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        if self.down:
            return dict.fromkeys(blobs, Unavailable("the far store is down"))
        return await super().write_many(blobs)


class Unstoppable(MemoryBlobStore):
    """A far store whose writes end well though they are cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.at_the_end = trio.Event()

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        async with super().open_write(digest) as writer:
            yield writer
            self.at_the_end.set()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()


class Near(MemoryBlobStore):
    """A near store that can lose blobs, and refuses to lose one that is open."""

    def __init__(self, max_bytes: int | None = None) -> None:
        super().__init__(max_bytes)
        self.open: dict[Digest, int] = {}
        self.broken: StokerError | None = None
        self.open_gate = trio.Event()
        self.open_gate.set()

    @asynccontextmanager
    async def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[BlobReader]:
        await self.open_gate.wait()
        if self.broken:
            raise self.broken
        async with super().open_read(digest, offset, limit) as reader:
            self.open[digest] = self.open.get(digest, 0) + 1
            try:
                yield reader
            finally:
                self.open[digest] -= 1

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        if self.broken:
            raise self.broken
        return await super().read_many(digests)

    def evict(self, digest: Digest) -> None:
        if not self.open.get(digest):
            del self._blobs[digest]


def open_tiered(
    near: BlobStore, far: BlobStore, folder: Path = Path(), **settings: Any
) -> AbstractAsyncContextManager[BlobStore]:
    context = spi.Context("both", folder, {"blob_stores": {"near": near, "far": far}})
    return open_tiered_blob_store(
        TieredBlobStoreSettings(near="near", far="far", **settings), context
    )


@pytest.fixture
def near() -> Near:
    return Near()


@pytest.fixture
def far() -> Far:
    return Far()


@pytest.fixture
async def store(near: Near, far: Far) -> AsyncIterator[BlobStore]:
    async with open_tiered(near, far) as store:
        yield store


# --- the laws


class TestThrough(BlobStoreLaws):
    @pytest.fixture
    async def store(self) -> AsyncIterator[BlobStore]:
        async with open_tiered(MemoryBlobStore(), MemoryBlobStore()) as store:
            yield store


class TestBack(BlobStoreLaws):
    @pytest.fixture
    async def store(self) -> AsyncIterator[BlobStore]:
        async with open_tiered(MemoryBlobStore(), MemoryBlobStore(), writes="back") as store:
            yield store


class TestNearOnly(BlobStoreLaws):
    @pytest.fixture
    async def store(self) -> AsyncIterator[BlobStore]:
        async with open_tiered(MemoryBlobStore(), MemoryBlobStore(), writes="near-only") as store:
            yield store


class TestNearWithoutRoom(BlobStoreLaws):
    """Everything is served from far; the near store takes nothing, and writes go there alone."""

    @pytest.fixture
    async def store(self) -> AsyncIterator[BlobStore]:
        far = MemoryBlobStore()
        async with open_tiered(MemoryBlobStore(max_bytes=0), far) as both:
            yield _WritesTo(both, far)


class TestNested(BlobStoreLaws):
    @pytest.fixture
    async def store(self) -> AsyncIterator[BlobStore]:
        known = ExistenceBlobStore(MemoryBlobStore(), seconds=60.0, max_digests=100)
        async with (
            open_tiered(MemoryBlobStore(), known) as inner,
            open_tiered(MemoryBlobStore(), inner, writes="back") as outer,
        ):
            yield VerifyingBlobStore(outer)


class _WritesTo(BlobStore):
    """Reads of one store, writes of another."""

    def __init__(self, reads: BlobStore, writes: BlobStore) -> None:
        self._reads = reads
        self._writes = writes

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._reads.find_missing(digests)

    def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AbstractAsyncContextManager[BlobReader]:
        return self._reads.open_read(digest, offset, limit)

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        return await self._reads.read_many(digests)

    def open_write(self, digest: Digest) -> AbstractAsyncContextManager[BlobWriter]:
        return self._writes.open_write(digest)


# --- reading


async def test_reading_fills_the_near_store(store: BlobStore, near: Near, far: Far) -> None:
    large, data = blob("large", 3_000_000)
    small, few = blob("small", 100)
    await write(far, large, data)
    await write(far, small, few)
    assert await read(store, large, 1_000, 50) == data[1_000:1_050]
    assert await store.read_many([small]) == {small: few}
    assert await near.read_many([large, small]) == {large: data, small: few}
    far.down = True
    assert await read(store, large) == data
    assert await store.read_many([large, small]) == {large: data, small: few}


async def test_near_is_asked_first_and_far_for_the_rest_at_once(
    store: BlobStore, near: Near, far: Far
) -> None:
    # FMB-10
    both = dict(blob(f"both {number}", 10) for number in range(30))
    distant = dict(blob(f"far {number}", 10) for number in range(40))
    absent = {blob(f"absent {number}", 10)[0] for number in range(50)}
    await near.write_many(both)
    await far.write_many(distant)
    assert await store.find_missing([*both, *distant, *absent]) == absent
    assert far.asked == [{*distant, *absent}]
    assert await store.find_missing(both) == set()
    assert len(far.asked) == 1


async def test_concurrent_readers_cost_one_far_read(store: BlobStore, near: Near, far: Far) -> None:
    digest, data = blob("wanted by all", 500_000)
    await write(far, digest, data)
    far.open_gate = trio.Event()
    got = []

    async def read_whole() -> None:
        got.append(await read(store, digest))

    async def read_batch() -> None:
        got.append((await store.read_many([digest]))[digest])

    async with trio.open_nursery() as nursery:
        for work in (read_whole, read_batch) * 10:
            nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        far.open_gate.set()
    assert got == [data] * 20
    assert far.reads == 1


async def test_a_batch_is_fetched_once_for_all(store: BlobStore, far: Far) -> None:
    blobs = dict(blob(f"small {number}", 100) for number in range(30))
    absent, _ = blob("absent", 100)
    await far.write_many(blobs)
    far.open_gate = trio.Event()
    got: list[Mapping[Digest, bytes]] = []

    async def read_all() -> None:
        got.append(await store.read_many([*blobs, absent]))

    async def read_one() -> None:
        digest = next(iter(blobs))
        got.append(blobs | {digest: await read(store, digest)})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read_one)
        await trio.testing.wait_all_tasks_blocked()
        far.open_gate.set()
    assert got == [blobs] * 2
    assert far.reads == 1


async def test_reader_that_leaves_does_not_take_the_others_with_it(
    store: BlobStore, near: Near, far: Far
) -> None:
    digest, data = blob("shared", 100_000)
    await write(far, digest, data)
    far.open_gate = trio.Event()
    got = []

    async def read_it(scope: trio.CancelScope) -> None:
        with scope:
            got.append(await read(store, digest))

    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_it, first)
        nursery.start_soon(read_it, second)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        far.open_gate.set()
    assert got == [data]


async def test_fill_that_nobody_waits_for_is_given_up(
    store: BlobStore, near: Near, far: Far
) -> None:
    # GEN-26
    digest, data = blob("given up", 100_000)
    await write(far, digest, data)
    far.open_gate = trio.Event()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, store, digest)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    far.open_gate.set()
    await trio.testing.wait_all_tasks_blocked()
    await assert_absent(near, digest)
    assert await read(store, digest) == data


@pytest.mark.parametrize("mode", MODES)
async def test_failing_far_store_is_never_an_absent_blob(near: Near, far: Far, mode: str) -> None:
    # STO-04
    digest, _ = blob("nobody knows", 100)
    far.down = True
    async with open_tiered(near, far, writes=mode, drain_seconds=0) as store:
        for ask in (read(store, digest), store.read_many([digest]), store.find_missing([digest])):
            with pytest.raises(Unavailable, match="down"):
                await ask


@pytest.mark.parametrize("trouble", [Unavailable("near is away"), DataLoss(blob("x", 1)[0], "bad")])
async def test_near_trouble_is_survived_where_far_can(
    store: BlobStore, near: Near, far: Far, trouble: StokerError
) -> None:
    digest, data = blob("far", 100)
    absent, _ = blob("absent", 100)
    await write(far, digest, data)
    near.broken = trouble
    assert await read(store, digest) == data
    assert await store.read_many([digest]) == {digest: data}
    # What far does not hold may still be near: it is not called absent.
    for ask in (read(store, absent), store.read_many([digest, absent])):
        with pytest.raises(type(trouble)):
            await ask


async def test_near_without_room_is_passed_over(far: Far) -> None:
    digest, data = blob("too large", 1_000)
    await write(far, digest, data)
    near = Near(max_bytes=999)
    async with open_tiered(near, far) as store:
        assert await read(store, digest, 10, 20) == data[10:30]
        assert await store.read_many([digest]) == {digest: data}
    assert near.used_bytes == 0


@pytest.mark.parametrize("size_bytes", [100, 99, 101])
async def test_what_far_makes_up_is_neither_kept_nor_served(
    store: BlobStore, near: Near, far: Far, size_bytes: int
) -> None:
    digest, _ = blob("truth", 100)
    _, lie = blob("lie", size_bytes)
    far.lie(digest, lie)
    for ask in (read(store, digest), store.read_many([digest])):
        with pytest.raises(DataLoss):
            await ask
    await assert_absent(near, digest)


# --- writing through


async def test_write_through_reaches_both(store: BlobStore, near: Near, far: Far) -> None:
    one, data = blob("one", 300_000)
    many = dict(blob(f"many {number}", 10) for number in range(5))
    await write(store, one, data)
    assert await store.write_many(many) == {}
    for each in (near, far):
        assert await each.read_many([one, *many]) == {one: data, **many}


@pytest.mark.parametrize("at_end", [False, True])
async def test_write_that_far_did_not_take_has_failed(
    store: BlobStore, near: Near, far: Far, at_end: bool
) -> None:
    digest, data = blob("half", 1_000)
    far.down = not at_end
    far.fail_at_end = Unavailable("the far store went down") if at_end else None
    with pytest.raises(Unavailable):
        await write(store, digest, data)
    await assert_absent(near, digest)
    far.down = True
    assert isinstance((await store.write_many({digest: data}))[digest], Unavailable)
    await assert_absent(near, digest)


async def test_write_that_near_did_not_take_has_failed(far: Far) -> None:
    digest, data = blob("large", 1_000)
    async with open_tiered(Near(max_bytes=10), far) as store:
        with pytest.raises(StorageFull):
            await write(store, digest, data)
        assert isinstance((await store.write_many({digest: data}))[digest], StorageFull)


class _Keeping(MemoryBlobStore):
    """Keeps one upload that was broken off."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = b""

    @asynccontextmanager
    async def open_upload(self, digest: Digest, upload: str) -> AsyncIterator[BlobUpload]:
        writer = _KeptUpload(self.kept)
        try:
            yield writer
        except DigestMismatch:
            self.kept = b""
            raise
        except BaseException:
            self.kept = bytes(writer.data)
            raise
        await self.write_many({digest: bytes(writer.data)})

    async def uploaded_bytes(self, digest: Digest, upload: str) -> int:
        return len(self.kept)


class _KeptUpload(BlobUpload):
    def __init__(self, kept: bytes) -> None:
        self.data = bytearray(kept)
        self.offset = len(kept)

    async def write(self, data: bytes | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.data += data

    async def read_kept(self, offset: int, max_bytes: int) -> bytes:
        return bytes(self.data[: self.offset][offset : offset + max_bytes])

    async def restart(self) -> None:
        self.data.clear()
        self.offset = 0


async def break_off(store: BlobStore, digest: Digest, data: bytes) -> None:
    async with store.open_upload(digest, "u") as upload:
        await upload.write(data)
        raise RuntimeError("broken off")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["continued", "restarted", "all there"])
async def test_broken_upload_goes_on_in_both(far: Far, mode: str, how: str) -> None:
    # BSW-17
    near = _Keeping()
    digest, data = blob("in two parts", 3_000_000)
    kept = len(data) if how == "all there" else 2_500_000
    async with open_tiered(near, far, writes=mode) as store:
        with pytest.raises(RuntimeError, match="broken off"):
            await break_off(store, digest, data[:kept])
        assert await store.uploaded_bytes(digest, "u") == kept
        await assert_absent(far, digest)
        async with store.open_upload(digest, "u") as upload:
            assert upload.offset == kept
            assert await upload.read_kept(10, 20) == data[10:30]
            if how == "restarted":
                await upload.restart()
            if upload.offset < len(data):
                await upload.write(data[upload.offset :])
    assert await near.read_many([digest]) == {digest: data}
    assert await far.read_many([digest]) == ({} if mode == "near-only" else {digest: data})


async def test_paths_and_near_only(near: Near, far: Far) -> None:
    digest, data = blob("here", 10)
    async with open_tiered(near, far, writes="near-only") as store:
        await write(store, digest, data)
        async with store.open_paths([digest]) as paths, store.open_executable_paths([digest]) as x:
            assert paths == x == {}
    await assert_absent(far, digest)


# --- writing back


async def test_write_back_answers_before_far_has_it(near: Near, far: Far) -> None:
    far.open_gate = trio.Event()
    one, data = blob("one", 300_000)
    many = dict(blob(f"many {number}", 10) for number in range(5))
    async with open_tiered(near, far, writes="back") as store:
        await write(store, one, data)
        assert await store.write_many(many) == {}
        await write(store, one, data)
        assert await store.find_missing([one, *many]) == set()
        assert await near.read_many([one]) == {one: data}
        far.open_gate.set()
    assert await far.read_many([one, *many]) == {one: data, **many}
    assert far.writes == 6


async def test_what_far_has_already_is_not_sent_again(near: Near, far: Far) -> None:
    # STO-05
    digest, data = blob("known", 100)
    await far.write_many({digest: data})
    async with open_tiered(near, far, writes="back") as store:
        await write(store, digest, data)
    assert far.writes == 0


async def test_waiting_blob_is_pinned_and_tried_again(
    near: Near, far: Far, autojump_clock: trio.testing.MockClock
) -> None:
    digest, data = blob("patient", 1_000)
    far.down = True
    async with open_tiered(near, far, writes="back") as store:
        with capture_logs() as logs:
            await write(store, digest, data)
            await trio.sleep(100)
            near.evict(digest)
            assert await near.read_many([digest]) == {digest: data}
            far.down = False
            await trio.sleep(100)
        assert [entry["event"] for entry in logs] == ["uploads fail and are tried again"]
        assert await far.read_many([digest]) == {digest: data}
        near.evict(digest)
        await assert_absent(near, digest)
        assert await read(store, digest) == data


async def test_full_queue_holds_writers_up(near: Near, far: Far) -> None:
    far.open_gate = trio.Event()
    first, second, third = (blob(name, 10) for name in ("first", "second", "third"))
    async with open_tiered(near, far, writes="back", max_pending=2) as store:
        await write(store, *first)
        await write(store, *second)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, store, *third)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        await write(store, *second)
        far.open_gate.set()
        await write(store, *third)
    assert len(await far.read_many([first[0], second[0], third[0]])) == 3


async def test_a_blob_is_queued_although_another_of_its_writers_is_cancelled(
    near: Near, far: Far
) -> None:
    digest, data = blob("of two", 10)
    async with open_tiered(near, far, writes="back") as store:
        near.open_gate = trio.Event()
        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()

            async def write_first() -> None:
                with first:
                    await write(store, digest, data)

            nursery.start_soon(write_first)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(write, store, digest, data)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            await trio.testing.wait_all_tasks_blocked()
            near.open_gate.set()
    assert await read(far, digest) == data


async def test_full_queue_before_a_failing_far_store_refuses(
    near: Near, far: Far, autojump_clock: trio.testing.MockClock
) -> None:
    far.down = True
    first, second = blob("first", 10), blob("second", 10)
    async with open_tiered(near, far, writes="back", max_pending=1, drain_seconds=1) as store:
        await write(store, *first)
        with pytest.raises(Unavailable, match="1 blobs wait to be uploaded"):
            await write(store, *second)
        assert isinstance((await store.write_many(dict([second])))[second[0]], Unavailable)
        with pytest.raises(Unavailable, match="1 blobs wait to be uploaded"):
            await upload_rest(store, *second)
        # Or nobody would write it again, and far never get it.
        await assert_absent(near, second[0])


async def test_blob_that_far_refuses_is_given_up(near: Near, far: Far) -> None:
    digest, data = blob("unwelcome", 10)
    far.fail_at_end = FailedPrecondition("not this one")
    with capture_logs() as logs:
        async with open_tiered(near, far, writes="back") as store:
            await write(store, digest, data)
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("blob is not uploaded", "not this one")
    ]
    assert await near.read_many([digest]) == {digest: data}


async def test_journal_remembers_over_a_restart(near: Near, far: Far, tmp_path: Path) -> None:
    waiting, done, lost = (blob(name, 1_000) for name in ("waiting", "done", "lost"))
    settings = {"writes": "back", "journal": "state/uploads", "drain_seconds": 0}
    async with open_tiered(near, far, tmp_path, **settings) as store:
        await write(store, *done)
        while await far.find_missing([done[0]]):
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        far.open_gate = trio.Event()
        await write(store, *waiting)
        await write(store, *lost)
    near.evict(lost[0])
    far.open_gate.set()
    await assert_absent(far, waiting[0])
    # As a kill leaves it: the last line was cut short.
    with (tmp_path / "state/uploads").open("a") as file:
        file.write(f"+SHA256 {done[0].hash[:10]}")
    with capture_logs() as logs:
        async with open_tiered(near, far, tmp_path, **settings | {"drain_seconds": 60}):
            pass
    assert await read(far, waiting[0]) == waiting[1]
    assert [entry["digest"] for entry in logs if "lost" in entry["event"]] == [str(lost[0])]
    journal = Journal(tmp_path / "state/uploads")
    assert journal.pending() == []
    journal.close()


async def test_journal_keeps_short_while_some_always_wait(tmp_path: Path) -> None:
    digests = [blob(f"{number}", 10)[0] for number in range(2_000)]
    always = digests[:2]
    journal = Journal(tmp_path / "uploads")
    for digest in always:
        journal.add(digest)
    for digest in digests[2:]:
        journal.add(digest)
        journal.remove(digest, always)
        assert (tmp_path / "uploads").stat().st_size < 300 * 100
    journal.close()
    journal = Journal(tmp_path / "uploads")
    assert journal.pending() == always
    journal.close()


async def test_a_store_is_not_its_own_far_side(near: Near) -> None:
    context = spi.Context("both", Path(), {"blob_stores": {"near": near}})
    with pytest.raises(ConfigurationError):
        async with open_tiered_blob_store(
            TieredBlobStoreSettings(near="near", far="near"), context
        ):
            pass


async def test_absent_everywhere(store: BlobStore) -> None:
    digest, _ = blob("nowhere", 10)
    with pytest.raises(BlobNotFound):
        await read(store, digest)
    await assert_absent(store, digest)


async def test_upload_that_ends_with_the_store_is_noted(near: Near, tmp_path: Path) -> None:
    # What a thread has begun, as that of a put to a bucket, ends in spite of cancellation.
    far, (digest, data) = Unstoppable(), blob("late", 1_000)
    settings = {"writes": "back", "journal": "uploads", "drain_seconds": 0}
    async with open_tiered(near, far, tmp_path, **settings) as store:
        await write(store, digest, data)
        await far.at_the_end.wait()
    assert await far.find_missing([digest]) == set()
    journal = Journal(tmp_path / "uploads")
    assert journal.pending() == []
    journal.close()


async def test_journal_remembers_those_behind_a_lost_one(
    near: Near, far: Far, tmp_path: Path
) -> None:
    lost, waiting = (blob(name, 1_000) for name in ("lost", "waiting"))
    settings = {"writes": "back", "journal": "uploads", "drain_seconds": 0}
    far.open_gate = trio.Event()
    async with open_tiered(near, far, tmp_path, **settings) as store:
        await write(store, *lost)
        await write(store, *waiting)
    near.evict(lost[0])
    for _ in range(2):
        with capture_logs():
            async with open_tiered(near, far, tmp_path, **settings):
                # Read as another process would after a kill at this moment.
                copy = tmp_path / "copy"
                copy.write_bytes((tmp_path / "uploads").read_bytes())
                journal = Journal(copy)
                assert journal.pending() == [waiting[0]]
                journal.close()


async def test_readers_who_fail_together_have_errors_of_their_own(
    store: BlobStore, far: Far
) -> None:
    # What is noted on the way out names the instance that one of them asks, and not the other.
    digest, _ = blob("nowhere at all", 10)
    far.open_gate = trio.Event()
    caught: list[BlobNotFound] = []

    async def read_and_note(name: str) -> None:
        with pytest.raises(BlobNotFound) as info:
            await read(store, digest)
        info.value.add_note(name)
        caught.append(info.value)

    async with trio.open_nursery() as nursery:
        for name in ("one", "two"):
            nursery.start_soon(read_and_note, name)
        await trio.testing.wait_all_tasks_blocked()
        far.open_gate.set()
    assert far.reads == 1
    assert sorted(error.__notes__ for error in caught) == [["one"], ["two"]]
    assert {(error.digest, str(error)) for error in caught} == {(digest, str(BlobNotFound(digest)))}


# --- files that are given away


async def test_a_given_file_goes_through_far_first(
    store: BlobStore, near: Near, far: Far, tmp_path: Path
) -> None:
    digest, data = blob("given", 100_000)
    (tmp_path / "given").write_bytes(data)
    far.down = True
    with pytest.raises(Unavailable):
        await store.write_file(digest, tmp_path / "given")
    await assert_absent(near, digest)
    assert (tmp_path / "given").read_bytes() == data, "the client may try again"
    far.down = False
    await store.write_file(digest, tmp_path / "given")
    assert await read(near, digest) == await read(far, digest) == data


async def test_a_given_file_is_uploaded_later(near: Near, far: Far, tmp_path: Path) -> None:
    digest, data = blob("given", 100_000)
    (tmp_path / "given").write_bytes(data)
    far.open_gate = trio.Event()
    async with open_tiered(near, far, writes="back") as store:
        await store.write_file(digest, tmp_path / "given")
        assert await read(near, digest) == data
        far.open_gate.set()
    assert await read(far, digest) == data
