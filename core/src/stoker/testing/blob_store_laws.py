"""What every blob store promises, one law a test."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from stoker.spi import (
    SHA256,
    BlobNotFound,
    BlobStore,
    Digest,
    InvalidRequest,
    UploadInProgress,
)

KIB = 1024
MIB = 1024 * 1024
SIZES = (1, 2, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 5 * MIB)
RANGES = (
    (0, None),
    (0, 1),
    (1, None),
    (99_999, None),
    (100_000, None),
    (100_000, 5),
    (70_000, 10),
    (70_000, 1_000_000),
    (500, 66_000),
)


class BlobStoreLaws:
    """Inherit it in a class named ``Test…`` and override the fixture `store`.

    The fixture yields an empty, open store, a new one for each test, with room for 64 MiB. The
    laws never write bytes that are not their digest, so that they hold for a bare store, which
    never hashes, and for one in a VerifyingBlobStore alike: try both. The empty blob, which a
    bare store need not know, may be absent; but if it is present, then as nothing.
    """

    @pytest.fixture
    async def store(self) -> BlobStore:
        """Override this: an empty, open store."""
        raise NotImplementedError("a subclass of BlobStoreLaws has to define a fixture `store`")

    # --- one blob

    @pytest.mark.parametrize("size_bytes", SIZES)
    async def test_what_is_written_is_read(self, store: BlobStore, size_bytes: int) -> None:
        # BSR-01, BSW-05
        digest, data = blob("round trip", size_bytes)
        await write(store, digest, data)
        assert await store.find_missing([digest]) == set()
        assert same(await read(store, digest), data)

    async def test_empty_blob_is_absent_or_nothing(self, store: BlobStore) -> None:
        await write(store, SHA256.empty, b"")
        if not await store.find_missing([SHA256.empty]):
            assert await read(store, SHA256.empty) == b""
            assert await store.read_many([SHA256.empty]) == {SHA256.empty: b""}

    @pytest.mark.parametrize(("offset", "limit"), RANGES)
    async def test_ranges(self, store: BlobStore, offset: int, limit: int | None) -> None:
        # BSR-04, BSR-05
        digest, data = blob("ranges", 100_000)
        await write(store, digest, data)
        end = len(data) if limit is None else offset + limit
        assert same(await read(store, digest, offset, limit), data[offset:end])

    async def test_read_gives_at_most_what_is_asked_for(self, store: BlobStore) -> None:
        digest, data = blob("pieces", 200_000)
        await write(store, digest, data)
        pieces = []
        async with store.open_read(digest) as reader:
            for max_bytes in (1, 10, 65_537, 3):
                pieces.append(await reader.read(max_bytes))
                assert 1 <= len(pieces[-1]) <= max_bytes
            while piece := await reader.read(50_000):
                assert len(piece) <= 50_000
                pieces.append(piece)
            assert await reader.read(1) == b"", "the end of a blob stays the end"
        assert same(b"".join(pieces), data)

    async def test_absent_blob_is_found_out_on_entering(self, store: BlobStore) -> None:
        # BSR-06
        digest, _ = blob("never written", 10)
        with pytest.raises(BlobNotFound) as caught:
            async with store.open_read(digest):
                pytest.fail("the context of an absent blob was entered")
        assert caught.value.digest == digest

    async def test_same_hash_with_another_size_is_another_blob(self, store: BlobStore) -> None:
        # GEN-03, BSR-07
        digest, data = blob("two sizes", 1_000)
        await write(store, digest, data)
        for size_bytes in (0, 999, 1_001):
            other = SHA256.named(digest.hash, size_bytes)
            assert await store.find_missing([other, digest]) == {other}
            assert await store.read_many([other, digest]) == {digest: data}
            with pytest.raises(BlobNotFound):
                await read(store, other)

    # --- pieces

    async def test_blob_in_pieces_of_one_byte(self, store: BlobStore) -> None:
        # BSW-30
        digest, data = blob("one by one", 5_000)
        async with store.open_write(digest) as writer:
            for index in range(len(data)):
                await writer.write(data[index : index + 1])
        assert same(await read(store, digest), data)

    @pytest.mark.parametrize("piece_bytes", [1_000, 64 * KIB, 256 * KIB, 300_001, MIB])
    async def test_buffer_may_be_reused_after_a_write(
        self, store: BlobStore, piece_bytes: int
    ) -> None:
        digest, data = blob("one buffer", 2 * MIB + 17)
        buffer = bytearray(piece_bytes)
        async with store.open_write(digest) as writer:
            for start in range(0, len(data), piece_bytes):
                piece = data[start : start + piece_bytes]
                buffer[: len(piece)] = piece
                await writer.write(memoryview(buffer)[: len(piece)])
                buffer[:] = bytes(piece_bytes)
        assert same(await read(store, digest), data)

    async def test_empty_pieces_change_nothing(self, store: BlobStore) -> None:
        digest, data = blob("with nothing between", 300_000)
        async with store.open_write(digest) as writer:
            for piece in (b"", data[:7], b"", data[7:290_000], b"", data[290_000:], b""):
                await writer.write(piece)
        assert same(await read(store, digest), data)

    # --- nothing half done

    @pytest.mark.parametrize("size_bytes", [10, 64 * KIB, 3 * MIB])
    async def test_blob_is_not_seen_before_it_is_whole(
        self, store: BlobStore, size_bytes: int
    ) -> None:
        # FMB-06, BSW-26
        digest, data = blob("in flight", size_bytes)
        async with store.open_write(digest) as writer:
            await writer.write(data[:-1])
            await assert_absent(store, digest)
            await writer.write(data[-1:])
            await assert_absent(store, digest)
        assert same(await read(store, digest), data)

    @pytest.mark.parametrize("size_bytes", [10, 64 * KIB, 3 * MIB])
    async def test_exception_leaves_nothing(self, store: BlobStore, size_bytes: int) -> None:
        digest, data = blob("fails", size_bytes)
        with pytest.raises(_Failure):
            await fail_to_write(store, digest, data)
        await assert_absent(store, digest)
        await write(store, digest, data)
        assert same(await read(store, digest), data)

    @pytest.mark.parametrize("size_bytes", [10, 64 * KIB, 3 * MIB])
    async def test_cancellation_leaves_nothing(self, store: BlobStore, size_bytes: int) -> None:
        # GEN-26
        digest, data = blob("cancelled", size_bytes)
        with trio.CancelScope() as scope:
            async with store.open_write(digest) as writer:
                await writer.write(data[: size_bytes // 2])
                scope.cancel()
                await writer.write(data[size_bytes // 2 :])
                await trio.sleep_forever()
        await assert_absent(store, digest)
        await write(store, digest, data)
        assert same(await read(store, digest), data)

    async def test_failed_rewrite_leaves_the_blob(self, store: BlobStore) -> None:
        digest, data = blob("rewritten in vain", 400_000)
        await write(store, digest, data)
        with pytest.raises(_Failure):
            await fail_to_write(store, digest, data[:300_000])
        assert same(await read(store, digest), data)

    # --- overlapping calls

    async def test_writing_again_is_no_error(self, store: BlobStore) -> None:
        # BUB-06
        digest, data = blob("twice", 70_000)
        for _ in range(3):
            await write(store, digest, data)
            assert await store.write_many({digest: data}) == {}
        assert same(await read(store, digest), data)

    @pytest.mark.parametrize("size_bytes", [100, 700_000])
    async def test_concurrent_writers_of_one_blob(self, store: BlobStore, size_bytes: int) -> None:
        # BSW-21
        digest, data = blob("contended", size_bytes)
        async with trio.open_nursery() as nursery:
            for piece_bytes in (size_bytes, size_bytes // 2, size_bytes // 3, 77_777):
                nursery.start_soon(write, store, digest, data, piece_bytes)
                nursery.start_soon(store.write_many, {digest: data})
        assert same(await read(store, digest), data)

    async def test_one_of_two_writers_fails(self, store: BlobStore) -> None:
        digest, data = blob("one of two", 400_000)
        async with store.open_write(digest) as writer:
            await writer.write(data[:300_000])
            with pytest.raises(_Failure):
                await fail_to_write(store, digest, data)
            await writer.write(data[300_000:])
        assert same(await read(store, digest), data)

    async def test_reader_survives_a_rewrite(self, store: BlobStore) -> None:
        # BSR-18
        digest, data = blob("read and written", 2 * MIB)
        await write(store, digest, data)
        pieces = []
        async with store.open_read(digest) as reader:
            pieces.append(await reader.read(1_000))
            await write(store, digest, data)
            while piece := await reader.read(500_000):
                pieces.append(piece)
                await store.write_many({digest: data})
        assert same(b"".join(pieces), data)

    async def test_many_readers_each_at_its_own_place(self, store: BlobStore) -> None:
        digest, data = blob("popular", 400_000)
        await write(store, digest, data)
        got: dict[int, bytes] = {}

        async def read_from(offset: int) -> None:
            got[offset] = await read(store, digest, offset)

        async with trio.open_nursery() as nursery:
            for offset in range(0, 400_000, 40_000):
                nursery.start_soon(read_from, offset)
        assert all(same(got[offset], data[offset:]) for offset in range(0, 400_000, 40_000))

    async def test_cancelled_read_may_be_repeated(self, store: BlobStore) -> None:
        digest, data = blob("read in spite", 300_000)
        await write(store, digest, data)
        pieces = []
        async with store.open_read(digest) as reader:
            while True:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    pieces.append(await reader.read(100_000))
                if not (piece := await reader.read(100_000)):
                    break
                pieces.append(piece)
        assert same(b"".join(pieces), data)

    # --- many blobs

    @pytest.mark.parametrize("count", [1, 20, 1_500])
    async def test_missing_are_exactly_the_absent_ones(self, store: BlobStore, count: int) -> None:
        # FMB-01
        present = dict(blob(f"present {number}", 20) for number in range(count))
        absent = {blob(f"absent {number}", 20)[0] for number in range(count)}
        assert await store.write_many(present) == {}
        assert await store.find_missing([*present, *absent]) == absent
        assert await store.find_missing({*present}) == set()
        assert await store.find_missing(absent) == absent

    async def test_nothing_is_asked(self, store: BlobStore) -> None:
        # FMB-04, BUB-15
        assert await store.find_missing([]) == set()
        assert await store.read_many([]) == {}
        assert await store.write_many({}) == {}

    async def test_digest_asked_for_twice(self, store: BlobStore) -> None:
        present, data = blob("here", 20)
        absent, _ = blob("not here", 20)
        await write(store, present, data)
        assert await store.find_missing([present, absent, absent, present]) == {absent}
        assert await store.read_many([present, absent, absent, present]) == {present: data}

    @pytest.mark.parametrize("size_bytes", [20, 5_000, 300_000])
    async def test_many_at_once(self, store: BlobStore, size_bytes: int) -> None:
        # BRB-01, BUB-01
        blobs = dict(blob(f"many {number}", size_bytes) for number in range(40))
        absent, _ = blob("not among them", size_bytes)
        assert await store.write_many(blobs) == {}
        got = await store.read_many([*blobs, absent])
        assert got.keys() == blobs.keys()
        assert all(same(got[digest], data) for digest, data in blobs.items())
        for digest in list(blobs)[:3]:
            assert same(await read(store, digest), blobs[digest])

    async def test_paths_hold_the_blobs(self, store: BlobStore) -> None:
        blobs = dict(blob(f"path {number}", 30_000) for number in range(5))
        absent, _ = blob("without a path", 10)
        await store.write_many(blobs)
        async with store.open_paths([*blobs, absent]) as paths:
            assert paths.keys() <= blobs.keys()
            for digest, path in paths.items():
                assert same(await trio.Path(path).read_bytes(), blobs[digest])

    async def test_executable_paths_hold_the_blobs(self, store: BlobStore) -> None:
        blobs = dict(blob(f"program {number}", 30_000) for number in range(5))
        absent, _ = blob("no program", 10)
        await store.write_many(blobs)
        for _ in range(2):
            async with store.open_executable_paths([*blobs, absent]) as paths:
                assert paths.keys() <= blobs.keys()
                for digest, path in paths.items():
                    file = trio.Path(path)
                    assert same(await file.read_bytes(), blobs[digest])
                    assert (await file.stat()).st_mode & 0o111 == 0o111
        # What they are asked for as otherwise stays as it was.
        async with store.open_paths(blobs) as paths:
            for path in paths.values():
                assert not (await trio.Path(path).stat()).st_mode & 0o111

    # --- files that are given away

    @pytest.mark.parametrize("size_bytes", [1, 64 * KIB, 5 * MIB])
    async def test_given_file_is_read(
        self, store: BlobStore, tmp_path: Path, size_bytes: int
    ) -> None:
        # OUT-22
        digest, data = blob("given", size_bytes)
        path = trio.Path(tmp_path, "given")
        await path.write_bytes(data)
        await store.write_file(digest, Path(path))
        assert await store.find_missing([digest]) == set()
        assert same(await read(store, digest), data)
        assert not await path.exists() or same(await path.read_bytes(), data)

    async def test_given_file_with_another_name(self, store: BlobStore, tmp_path: Path) -> None:
        digest, data = blob("given by one of two names", 300_000)
        path, other = trio.Path(tmp_path, "given"), trio.Path(tmp_path, "kept")
        await path.write_bytes(data)
        await other.hardlink_to(path)
        await store.write_file(digest, Path(path))
        # The other name is not the store's: what is written there must not get into the blob.
        await other.write_bytes(bytes(300_000))
        assert same(await read(store, digest), data)

    async def test_given_file_of_a_blob_that_is_present(
        self, store: BlobStore, tmp_path: Path
    ) -> None:
        # BUB-06
        digest, data = blob("given again", 300_000)
        path = trio.Path(tmp_path, "given")
        for _ in range(2):
            await path.write_bytes(data)
            await store.write_file(digest, Path(path))
            await write(store, digest, data)
            assert same(await read(store, digest), data)

    async def test_many_given_files_at_once(self, store: BlobStore, tmp_path: Path) -> None:
        blobs = dict(blob(f"given {number}", 200_000) for number in range(10))
        async with trio.open_nursery() as nursery:
            for digest, data in blobs.items():
                for name in ("one", "two"):
                    path = trio.Path(tmp_path, f"{digest.hash}-{name}")
                    await path.write_bytes(data)
                    nursery.start_soon(store.write_file, digest, Path(path))
                nursery.start_soon(write, store, digest, data)
        for digest, data in blobs.items():
            assert same(await read(store, digest), data)

    async def test_given_file_that_is_absent(self, store: BlobStore, tmp_path: Path) -> None:
        digest, _ = blob("not given", 300_000)
        with pytest.raises(FileNotFoundError):
            await store.write_file(digest, tmp_path / "nothing")
        await assert_absent(store, digest)

    async def test_cancelled_giving_leaves_all_or_nothing(
        self, store: BlobStore, tmp_path: Path
    ) -> None:
        # GEN-26
        digest, data = blob("given in vain", 3 * MIB)
        path = trio.Path(tmp_path, "given")
        await path.write_bytes(data)
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.write_file(digest, Path(path))
        if await store.find_missing([digest]):
            await assert_absent(store, digest)
            assert same(await path.read_bytes(), data)
        else:
            assert same(await read(store, digest), data)

    # --- uploads that may be continued; a store that keeps nothing keeps these laws too

    @pytest.mark.parametrize("size_bytes", [10, 64 * KIB, 3 * MIB])
    async def test_upload_at_one_go(self, store: BlobStore, size_bytes: int) -> None:
        digest, data = blob("uploaded", size_bytes)
        assert await store.uploaded_bytes(digest, "one") == 0
        async with store.open_upload(digest, "one") as upload:
            assert upload.offset == 0
            assert await upload.read_kept(0, 100) == b""
            await upload.write(data[: size_bytes // 2])
            await assert_absent(store, digest)
            await upload.write(data[size_bytes // 2 :])
            await assert_absent(store, digest)
        assert same(await read(store, digest), data)

    @pytest.mark.parametrize("size_bytes", [10, 64 * KIB, 3 * MIB])
    async def test_upload_goes_on_behind_what_was_kept(
        self, store: BlobStore, size_bytes: int
    ) -> None:
        # BSW-17, BSQ-02
        digest, data = blob("continued", size_bytes)
        committed = 0
        for end in (size_bytes // 3, size_bytes // 2, size_bytes):
            with pytest.raises(_Failure):
                await _upload_and_fail(store, digest, data[:end])
            await assert_absent(store, digest)
            uploaded = await store.uploaded_bytes(digest, "one")
            assert committed <= uploaded <= end, "what is held never shrinks"
            committed = uploaded
        await upload_rest(store, digest, data)
        assert same(await read(store, digest), data)
        assert await store.uploaded_bytes(digest, "one") == 0

    @pytest.mark.parametrize("size_bytes", [10, 3 * MIB])
    async def test_cancelled_upload_goes_on(self, store: BlobStore, size_bytes: int) -> None:
        # GEN-26, BSW-17
        digest, data = blob("cancelled and continued", size_bytes)
        with trio.CancelScope() as scope:
            async with store.open_upload(digest, "one") as upload:
                await upload.write(data[: size_bytes // 2])
                scope.cancel()
                await trio.sleep_forever()
        await assert_absent(store, digest)
        assert await store.uploaded_bytes(digest, "one") <= size_bytes // 2
        await upload_rest(store, digest, data)
        assert same(await read(store, digest), data)

    async def test_uploads_have_names(self, store: BlobStore) -> None:
        # BSW-03, BSW-21
        digest, data = blob("by two", 400_000)
        other, more = blob("another", 400_000)
        with pytest.raises(_Failure):
            await _upload_and_fail(store, digest, data[:300_000])
        for name in ("two", "../one", "", "\udcff", "n" * 1_000):
            assert await store.uploaded_bytes(digest, name) == 0
            async with store.open_upload(digest, name) as upload:
                assert upload.offset == 0
                await upload.write(data)
        assert await store.uploaded_bytes(other, "one") == 0
        await upload_rest(store, other, more)
        await upload_rest(store, digest, data)
        assert same(await read(store, digest), data)
        assert same(await read(store, other), more)

    async def test_upload_may_begin_again(self, store: BlobStore) -> None:
        # BSW-18
        digest, data = blob("begun again", 700_000)
        with pytest.raises(_Failure):
            await _upload_and_fail(store, digest, bytes(600_000))
        async with store.open_upload(digest, "one") as upload:
            if upload.offset:
                await upload.restart()
            assert upload.offset == 0
            assert await upload.read_kept(0, 10) == b""
            await upload.write(data)
        assert same(await read(store, digest), data)

    @pytest.mark.parametrize("size_bytes", [10, 3 * MIB])
    async def test_bad_upload_is_discarded(self, store: BlobStore, size_bytes: int) -> None:
        # BSW-09
        digest, data = blob("bad at first", size_bytes)
        with pytest.raises(InvalidRequest, match="no good"):
            await _upload_badly(store, digest, bytes(size_bytes))
        assert await store.uploaded_bytes(digest, "one") == 0
        await assert_absent(store, digest)
        async with store.open_upload(digest, "one") as upload:
            assert upload.offset == 0
            await upload.write(data)
        assert same(await read(store, digest), data)

    async def test_same_upload_twice_at_once(self, store: BlobStore) -> None:
        # BSW-21: turned away, or each on its own; never mixed.
        digest, data = blob("contended upload", 500_000)
        async with store.open_upload(digest, "one") as upload:
            await upload.write(data[:300_000])
            with suppress(UploadInProgress):
                async with store.open_upload(digest, "one") as second:
                    assert second.offset == 0
                    await second.write(data)
            await upload.write(data[300_000:])
        assert same(await read(store, digest), data)

    async def test_upload_of_a_blob_that_is_present(self, store: BlobStore) -> None:
        # BUB-06
        digest, data = blob("present already", 300_000)
        await write(store, digest, data)
        await upload_rest(store, digest, data)
        assert await store.uploaded_bytes(digest, "one") == 0
        assert same(await read(store, digest), data)


class _Failure(Exception):
    """Stands for whatever may go wrong in somebody else's code."""


def blob(name: str, size_bytes: int) -> tuple[Digest, bytes]:
    """Bytes that look random, the same for the same name, and their digest."""
    data = hashlib.shake_128(name.encode()).digest(size_bytes)
    return SHA256.digest(data), data


async def write(
    store: BlobStore, digest: Digest, data: bytes, piece_bytes: int = 256 * KIB
) -> None:
    """Write `data` in pieces."""
    async with store.open_write(digest) as writer:
        for start in range(0, len(data), piece_bytes):
            await writer.write(data[start : start + piece_bytes])


async def fail_to_write(store: BlobStore, digest: Digest, data: bytes) -> None:
    """Write `data`, and raise before the writer's context is left."""
    async with store.open_write(digest) as writer:
        await writer.write(data)
        raise _Failure


async def upload_rest(
    store: BlobStore, digest: Digest, data: bytes, name: str = "one", piece_bytes: int = 100 * KIB
) -> int:
    """Upload what is missing of `data`. Returns how much was there."""
    async with store.open_upload(digest, name) as upload:
        start = upload.offset
        kept = b""
        while piece := await upload.read_kept(len(kept), piece_bytes):
            kept += piece
        assert same(kept, data[:start])
        for position in range(start, len(data), piece_bytes):
            await upload.write(data[position : position + piece_bytes])
        return start


async def _upload_and_fail(store: BlobStore, digest: Digest, data: bytes) -> None:
    """Go on until `data` is uploaded, and raise before the context is left."""
    async with store.open_upload(digest, "one") as upload:
        await upload.write(data[upload.offset :])
        raise _Failure


async def _upload_badly(store: BlobStore, digest: Digest, data: bytes) -> None:
    async with store.open_upload(digest, "one") as upload:
        await upload.write(data)
        raise InvalidRequest("it is no good")


async def read(
    store: BlobStore, digest: Digest, offset: int = 0, limit: int | None = None
) -> bytes:
    """Read to the end."""
    pieces = []
    async with store.open_read(digest, offset, limit) as reader:
        while piece := await reader.read(256 * KIB):
            pieces.append(piece)
    return b"".join(pieces)


async def assert_absent(store: BlobStore, digest: Digest) -> None:
    """No way of asking finds `digest`."""
    assert await store.find_missing([digest]) == {digest}
    assert await store.read_many([digest]) == {}
    async with store.open_paths([digest]) as paths:
        assert not paths
    with pytest.raises(BlobNotFound):
        await read(store, digest)


def same(left: bytes, right: bytes) -> bool:
    """Equality, without megabytes in the message of a failed assertion."""
    return left == right
