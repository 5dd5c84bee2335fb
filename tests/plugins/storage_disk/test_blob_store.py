"""What the disk store does beyond the laws: files, locks, damage and full disks."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from stoker import spi
from stoker.spi import (
    SHA256,
    BlobNotFound,
    BlobStore,
    ConfigurationError,
    DataLoss,
    Digest,
    Unavailable,
)
from stoker.testing.blob_store_laws import assert_absent, blob, read, write
from stoker_storage_disk import (
    DiskActionCacheSettings,
    DiskSettings,
    stoker_action_caches,
    stoker_blob_stores,
)
from stoker_storage_disk.room import Bounds
from stoker_storage_disk.upkeep import Content, open_bounded_folder

CONTEXT = spi.Context("mine", Path("/nonexistent"), {})


def open_store(path: Path, *, fsync: bool = False) -> AbstractAsyncContextManager[BlobStore]:
    provider = stoker_blob_stores()["disk"]
    return provider.open(DiskSettings(path=str(path), fsync=fsync), CONTEXT)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[BlobStore]:
    async with open_store(tmp_path) as store:
        yield store


def file_of(folder: Path, digest: Digest) -> Path:
    return folder / "sha256" / digest.hash[:2] / f"{digest.hash}-{digest.size_bytes}"


def incoming(folder: Path) -> list[Path]:
    return list((folder / "incoming").iterdir())


# --- files


@pytest.mark.parametrize("fsync", [False, True])
@pytest.mark.parametrize("size_bytes", [0, 10, 300_000])
async def test_files_are_named_by_digest_and_read_only(
    tmp_path: Path, size_bytes: int, fsync: bool
) -> None:
    digest, data = blob("kept", size_bytes)
    umask = os.umask(0o077)
    try:
        async with open_store(tmp_path / "new" / "folder", fsync=fsync) as store:
            await write(store, digest, data)
    finally:
        os.umask(umask)
    file = file_of(tmp_path / "new" / "folder", digest)
    assert file.read_bytes() == data
    assert stat.S_IMODE(file.stat().st_mode) == 0o444


async def test_blobs_outlive_the_store(tmp_path: Path) -> None:
    digest, data = blob("kept", 100_000)
    async with open_store(tmp_path) as store:
        await write(store, digest, data)
    async with open_store(tmp_path) as store:
        assert await store.find_missing([digest]) == set()
        assert await read(store, digest) == data


async def test_paths_are_the_files(store: BlobStore, tmp_path: Path) -> None:
    blobs = dict(blob(f"{number}", 50 + number) for number in range(100))
    absent, _ = blob("absent", 10)
    await store.write_many(blobs)
    async with store.open_paths([*blobs, absent]) as paths:
        assert paths == {digest: file_of(tmp_path, digest) for digest in blobs}


async def test_writing_again_keeps_the_file(store: BlobStore, tmp_path: Path) -> None:
    # BUB-06: inputs may be linked to it.
    digest, data = blob("twice", 300_000)
    await write(store, digest, data)
    before = file_of(tmp_path, digest).stat()
    await write(store, digest, data)
    await store.write_many({digest: data})
    after = file_of(tmp_path, digest).stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


async def test_cancelled_upload_gives_its_space_back(store: BlobStore, tmp_path: Path) -> None:
    # GEN-26
    digest, data = blob("cancelled", 1_000_000)
    with trio.CancelScope() as scope:
        async with store.open_write(digest) as writer:
            await writer.write(data)
            assert len(incoming(tmp_path)) == 1
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert incoming(tmp_path) == []


async def test_parts_of_an_earlier_server_are_swept(tmp_path: Path) -> None:
    # BSW-24
    async with open_store(tmp_path):
        pass
    (tmp_path / "incoming" / "0.part").write_bytes(b"half")
    (tmp_path / "incoming" / "77.part").write_bytes(b"")
    async with open_store(tmp_path) as store:
        assert incoming(tmp_path) == []
        digest, data = blob("after", 300_000)
        await write(store, digest, data)
        assert await read(store, digest) == data


async def test_removal_while_a_blob_is_read(store: BlobStore, tmp_path: Path) -> None:
    # BSR-18
    digest, data = blob("removed", 1_000_000)
    await write(store, digest, data)
    async with store.open_read(digest) as reader:
        pieces = [await reader.read(10)]
        file_of(tmp_path, digest).unlink()
        while piece := await reader.read(200_000):
            pieces.append(piece)
    assert b"".join(pieces) == data
    await assert_absent(store, digest)


async def test_descriptors_are_given_back(store: BlobStore) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20):
        digest, data = blob(f"{number}", 300_000)
        await write(store, digest, data)
        await read(store, digest)
        await store.read_many([digest])
        with pytest.raises(BlobNotFound):
            await read(store, SHA256.named(digest.hash, 5))
    # Fewer where something of an earlier test was collected meanwhile.
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


async def test_batches_at_once_need_few_descriptors(store: BlobStore) -> None:
    batches = [dict(blob(f"{batch} {n}", 100) for n in range(300)) for batch in range(8)]
    outcomes = []

    async def write_batch(blobs: dict[Digest, bytes]) -> None:
        outcomes.append(await store.write_many(blobs))

    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 100, hard))
    try:
        async with trio.open_nursery() as nursery:
            for blobs in batches:
                nursery.start_soon(write_batch, blobs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert outcomes == [{}] * 8


# --- damage


@pytest.mark.parametrize("found", [b"", b"too short", b"x" * 300_001])
@pytest.mark.parametrize("asked", ["find_missing", "read_many", "open_read", "open_paths"])
async def test_file_of_a_wrong_size_is_absent_and_removed(
    store: BlobStore, tmp_path: Path, asked: str, found: bytes
) -> None:
    # STO-03, FMB-09
    digest, data = blob("damaged", 300_000)
    await write(store, digest, data)
    file = file_of(tmp_path, digest)
    file.unlink()
    file.write_bytes(found)
    with capture_logs() as logs:
        await _ask(store, digest, asked)
    assert not file.exists()
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert logs[0]["path"] == str(file)
    await write(store, digest, data)
    assert await read(store, digest) == data


async def _ask(store: BlobStore, digest: Digest, how: str) -> None:
    if how == "find_missing":
        assert await store.find_missing([digest]) == {digest}
    elif how == "read_many":
        assert await store.read_many([digest]) == {}
    elif how == "open_read":
        with pytest.raises(BlobNotFound):
            await read(store, digest)
    else:
        async with store.open_paths([digest]) as paths:
            assert paths == {}


@pytest.mark.parametrize("many", [False, True])
async def test_damaged_file_is_replaced_by_a_write(
    store: BlobStore, tmp_path: Path, many: bool
) -> None:
    digest, data = blob("damaged", 300_000)
    file = file_of(tmp_path, digest)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half")
    if many:
        assert await store.write_many({digest: data}) == {}
    else:
        await write(store, digest, data)
    assert await read(store, digest) == data


async def test_sound_file_that_took_a_damaged_ones_place_stays(tmp_path: Path) -> None:
    # As when a write ends between the look at the damaged file and its removal.
    async with open_bounded_folder(
        tmp_path, fsync=False, bounds=Bounds(), content=Content(size_is_in_name=True)
    ) as upkeep:
        files = upkeep.files
        file = tmp_path / "file"
        file.write_bytes(b"damaged")
        with file.open("rb") as damaged:  # open, so that its inode number is not given away
            found = file.stat()
            with files.part() as part:
                files.append(part, b"sound")
                assert files.publish({"file": part}) == {}
            files.remove_damaged("file", found, "too long")
            assert file.read_bytes() == b"sound"
            assert damaged.read() == b"damaged"


async def test_sound_file_with_the_number_of_a_damaged_one_stays(tmp_path: Path) -> None:
    # A file system gives the number of a file that is gone to the next one.
    async with open_bounded_folder(
        tmp_path, fsync=False, bounds=Bounds(), content=Content(size_is_in_name=True)
    ) as upkeep:
        file = tmp_path / "file"
        file.write_bytes(b"damaged")
        os.utime(file, ns=(0, 0))
        found = file.stat()
        file.write_bytes(b"healthy")
        assert file.stat().st_ino == found.st_ino
        upkeep.files.remove_damaged("file", found, "its bytes are wrong")
        assert file.read_bytes() == b"healthy"


async def test_file_that_is_replaced_while_it_is_copied(tmp_path: Path) -> None:
    # As when a scrub finds it damaged, and a write brings a sound one: the copy is of the first.
    async with open_bounded_folder(
        tmp_path, fsync=False, bounds=Bounds(), content=Content(size_is_in_name=True)
    ) as upkeep:
        files = upkeep.files
        (tmp_path / "file").write_bytes(b"damaged")
        (tmp_path / "sound").write_bytes(b"healthy")
        made: list[bool] = []

        async def copy() -> None:
            made.append(await trio.to_thread.run_sync(files.make_copy, "file", 7))

        async with trio.open_nursery() as nursery:
            with files.ledger.claimed(["file"]):
                nursery.start_soon(copy)
                while not [p for p in incoming(tmp_path) if p.stat().st_mode & 0o111]:
                    await trio.sleep(0.001)  # until it has copied all, and waits for the name
                (tmp_path / "sound").replace(tmp_path / "file")
        assert made == [False]
        assert not list(tmp_path.glob("*.executable"))
        assert not incoming(tmp_path)
        assert files.make_copy("file", 7)
        assert (tmp_path / "file.executable").read_bytes() == b"healthy"


async def test_file_that_shrinks_while_it_is_read(store: BlobStore, tmp_path: Path) -> None:
    # BSR-19
    digest, data = blob("shrinks", 500_000)
    await write(store, digest, data)
    async with store.open_read(digest) as reader:
        await reader.read(1_000)
        os.truncate(file_of(tmp_path, digest), 2_000)
        with pytest.raises(DataLoss) as caught:
            await reader.read(10_000)
    assert caught.value.digest == digest


async def test_blobs_deleted_by_hand_are_missing(store: BlobStore, tmp_path: Path) -> None:
    # STO-03
    blobs = dict(blob(f"{number}", 30) for number in range(50))
    await store.write_many(blobs)
    gone = set(list(blobs)[::2])
    for digest in gone:
        file_of(tmp_path, digest).unlink()
    assert await store.find_missing(list(blobs)) == gone
    assert (await store.read_many(list(blobs))).keys() == blobs.keys() - gone


# --- the lock


async def test_folder_has_one_owner(tmp_path: Path) -> None:
    async with open_store(tmp_path):
        with pytest.raises(ConfigurationError, match="in use already") as caught:
            async with open_store(tmp_path):
                pytest.fail("opened twice")
        assert str(tmp_path) in str(caught.value)
        cache = stoker_action_caches()["disk"]
        with pytest.raises(ConfigurationError, match="in use already"):
            async with cache.open(DiskActionCacheSettings(path=str(tmp_path)), CONTEXT):
                pytest.fail("opened twice")
    async with open_store(tmp_path):
        pass


async def test_folder_of_another_process(tmp_path: Path) -> None:
    script = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w');"
        "fcntl.flock(lock, fcntl.LOCK_EX); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigurationError, match="in use already"):
            async with open_store(tmp_path):
                pytest.fail("opened twice")
        other.kill()
    async with open_store(tmp_path):
        pass


async def test_path_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="file"):
        async with open_store(tmp_path / "file"):
            pytest.fail("opened a file")


async def test_folders_of_others_are_synced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As when another writer has made them a moment ago, and has not synced them yet.
    digest, data = blob("lasting", 100)
    folder = file_of(tmp_path, digest).parent
    folder.mkdir(parents=True)
    synced: list[Path] = []

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    async with open_store(tmp_path, fsync=True) as store:
        monkeypatch.setattr(os, "fsync", note)
        await write(store, digest, data)
        assert synced == [folder, folder.parent, tmp_path]
        synced.clear()
        await write(store, digest, data)
        assert synced == [folder]


# --- trouble


@pytest.mark.parametrize(("program", "size"), [("full_disk.py", "1m"), ("full_index.py", "32m")])
def test_full_disk_refuses_writes_and_goes_on_reading(
    tmp_path: Path, program: str, size: str
) -> None:
    # STO-10, BUB-10: on a small file system, which only a namespace of its own lets us mount.
    mount = f'mount -t tmpfs -o size={size} tmpfs "$1" && shift && exec "$@"'
    enclosed = ["unshare", "-Urm", "sh", "-c"]
    try:
        probe = subprocess.run(
            [*enclosed, mount, "sh", str(tmp_path), "true"], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if probe.returncode != 0:
        pytest.skip(f"no mount namespace: {probe.stderr.decode().strip()}")
    script = Path(__file__).with_name(program)
    command = [*enclosed, mount, "sh", *map(str, (tmp_path, sys.executable, script, tmp_path))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("all is well\n")  # behind what is logged of the full disk


async def test_trouble_is_named_and_passes(store: BlobStore, tmp_path: Path) -> None:
    digest, data = blob("unlucky", 300_000)
    (tmp_path / "incoming").rmdir()
    with pytest.raises(Unavailable, match="incoming"):
        await write(store, digest, data)
    failures = await store.write_many({digest: data})
    assert isinstance(failures[digest], Unavailable)
    (tmp_path / "incoming").mkdir()
    await write(store, digest, data)
    assert await read(store, digest) == data


async def test_unreadable_is_not_missing(store: BlobStore, tmp_path: Path) -> None:
    # STO-04: a folder in the way is neither a blob nor the absence of one.
    digest, _ = blob("in the way", 4096)
    (tmp_path / "sha256").mkdir()
    (tmp_path / "sha256" / digest.hash[:2]).write_bytes(b"no folder")
    with pytest.raises(Unavailable, match=digest.hash):
        await store.find_missing([digest])
    with pytest.raises(Unavailable, match=digest.hash):
        await read(store, digest)
    with pytest.raises(Unavailable, match=digest.hash):
        await store.read_many([digest])


async def test_fifo_in_a_blobs_place_holds_up_no_reader(store: BlobStore, tmp_path: Path) -> None:
    digest, _ = blob("a fifo", 100)
    # Filling the index of a new folder removes what has not the size of its name.
    async with store.scrub() as findings:
        assert [finding async for finding in findings] == []
    file = file_of(tmp_path, digest)
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    # With its other end open, a reader that does wait is let in at least.
    other_end = os.open(file, os.O_RDWR)
    try:
        with pytest.raises(Unavailable, match="not a regular file"):
            await read(store, digest)
    finally:
        os.close(other_end)


async def test_disk_that_hangs_holds_up_nobody_else(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GEN-29: as with a network file system whose server does not answer.
    sound, data = blob("sound", 100_000)
    hanging, other_data = blob("hanging", 100_000)
    await write(store, sound, data)
    await write(store, hanging, other_data)
    answers = threading.Event()
    open_file = os.open

    def open_late(path: str, flags: int, *rest: int, **folder: int) -> int:
        if path == str(file_of(tmp_path, hanging)):
            answers.wait()
        return open_file(path, flags, *rest, **folder)

    monkeypatch.setattr(os, "open", open_late)
    found: list[dict[Digest, bytes]] = []

    async def read_late() -> None:
        found.append(await store.read_many([hanging]))

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(read_late)
            await trio.testing.wait_all_tasks_blocked(0.01)
            # This task goes on, and so do those who read or write other blobs.
            assert await read(store, sound) == data
            await write(store, *blob("another", 300_000))
            assert not found
            answers.set()
    finally:
        answers.set()
    assert found == [{hanging: other_data}] * 10
