"""Large outputs that a store gets as files: which are moved, and which only copied."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from stoker.digest import SHA256, Digest
from stoker.errors import FailedPrecondition, StorageFull
from stoker.execution.output_limits import OutputBudget
from stoker.execution.outputs import collect_outputs
from stoker.execution.uploads import Uploads
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobStore, BlobWriter, Context, ExecutionStrategy
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.verifying import VerifyingBlobStore
from stoker_storage_disk import DiskSettings, stoker_blob_stores

SIZE_BYTES = 3 * 2**20
CONTENT = bytes(range(256)) * (SIZE_BYTES // 256)
DIGEST = SHA256.digest(CONTENT)
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files to another user")


@asynccontextmanager
async def open_disk(folder: Path, **settings: Any) -> AsyncIterator[BlobStore]:
    provider = stoker_blob_stores()["disk"]
    settings_ = DiskSettings(path="store", **settings)
    async with provider.open(settings_, Context("disk", folder, {})) as store:
        yield VerifyingBlobStore(store)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[BlobStore]:
    async with open_disk(tmp_path) as opened:
        yield opened
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "f").write_bytes(CONTENT)
    return folder


async def collect(
    blobs: BlobStore, root: Path, *paths: str, gives_files: bool = True
) -> reapi.ActionResult:
    uploads = Uploads(SHA256, blobs, gives_files=gives_files)
    budget = OutputBudget(executor="executor-1", max_files=1000, max_bytes=2**30)
    command = reapi.Command(output_paths=paths or ["f"])
    collected = await collect_outputs(root, command, uploads, budget)
    await uploads.publish()
    return collected.result


def facts(path: Path) -> tuple[int, ...]:
    """All that is known of a file, but for when it was read."""
    found = path.stat()
    whose = found.st_ino, found.st_mode, found.st_uid, found.st_nlink
    return (*whose, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


async def status_of_blob(store: BlobStore) -> os.stat_result:
    async with store.open_paths([DIGEST]) as paths:
        assert paths[DIGEST].read_bytes() == CONTENT
        return paths[DIGEST].stat()


async def test_a_large_output_is_moved(store: BlobStore, root: Path) -> None:
    # OUT-22: hashed once, and never read again.
    inode = (root / "f").stat().st_ino
    result = await collect(store, root)
    assert result.output_files[0].digest == DIGEST.to_proto()
    blob = await status_of_blob(store)
    assert blob.st_ino == inode
    assert blob.st_mode & 0o777 == 0o444
    assert not (root / "f").exists()


async def test_what_a_worker_left_stays_where_it_is(store: BlobStore, root: Path) -> None:
    inode = (root / "f").stat().st_ino
    await collect(store, root, gives_files=False)
    assert (root / "f").read_bytes() == CONTENT
    assert (await status_of_blob(store)).st_ino != inode


async def test_an_output_with_two_names_is_copied(store: BlobStore, root: Path) -> None:
    os.link(root / "f", root / "g")
    inode = (root / "f").stat().st_ino
    result = await collect(store, root, "f", "g")
    assert [file.digest for file in result.output_files] == [DIGEST.to_proto()] * 2
    assert (await status_of_blob(store)).st_ino != inode


def by_descriptor(path: Path) -> Callable[[], object]:
    descriptor = os.open(path, os.O_RDWR)

    def write() -> None:
        os.pwrite(descriptor, b"!", 0)
        os.close(descriptor)

    return write


def by_mapping(path: Path) -> Callable[[], object]:
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)

    def write() -> None:
        mapping[0] = ord("!")
        mapping.close()

    return write


@pytest.mark.parametrize("hold", [by_descriptor, by_mapping])
async def test_what_somebody_can_still_write_to_is_never_a_blob(
    store: BlobStore, root: Path, hold: Callable[[Path], Callable[[], object]]
) -> None:
    # The action is dead; but it may have handed the open file to another action's process.
    write = hold(root / "f")
    await collect(store, root)
    write()
    await status_of_blob(store)


@as_root
@pytest.mark.parametrize("mode", [0o000, 0o600, 0o666, 0o4777])
async def test_another_users_output_becomes_the_servers(
    store: BlobStore, root: Path, mode: int
) -> None:
    # OUT-09, OUT-20
    os.chown(root / "f", NOBODY, NOBODY)
    (root / "f").chmod(mode)
    inode = (root / "f").stat().st_ino
    result = await collect(store, root)
    assert result.output_files[0].is_executable is bool(mode & 0o100)
    blob = await status_of_blob(store)
    assert (blob.st_ino, blob.st_uid, blob.st_gid) == (inode, os.geteuid(), os.getegid())
    assert blob.st_mode & 0o7777 == 0o444


@as_root
async def test_another_user_loses_an_output_before_it_is_hashed(root: Path) -> None:
    os.chown(root / "f", NOBODY, NOBODY)
    (root / "f").chmod(0o666)
    seen: list[os.stat_result] = []
    blobs = InterferingStore(lambda: seen.append((root / "f").stat()))
    await collect(VerifyingBlobStore(blobs), root)
    assert seen[0].st_uid == os.geteuid()
    assert seen[0].st_mode & 0o022 == 0
    assert blobs.given == [root / "f"]


async def test_unchanged_inputs_that_are_links_to_blobs(store: BlobStore, root: Path) -> None:
    # OUT-09, OUT-17
    assert not await store.write_many({DIGEST: CONTENT})
    async with store.open_paths([DIGEST]) as paths:
        os.link(paths[DIGEST], root / "plain")
    async with store.open_executable_paths([DIGEST]) as paths:
        os.link(paths[DIGEST], root / "program")
    before = [facts(root / name) for name in ("plain", "program")]
    result = await collect(store, root, "plain", "program")
    assert [(file.digest, file.is_executable) for file in result.output_files] == [
        (DIGEST.to_proto(), False),
        (DIGEST.to_proto(), True),
    ]
    assert [facts(root / name) for name in ("plain", "program")] == before


async def test_an_input_that_links_into_another_store_is_copied(
    store: BlobStore, root: Path, tmp_path: Path
) -> None:
    # OUT-17: as if the blob had been evicted while the action ran, but for its other name.
    (tmp_path / "elsewhere").mkdir()
    async with open_disk(tmp_path / "elsewhere") as other:
        assert not await other.write_many({DIGEST: CONTENT})
        async with other.open_paths([DIGEST]) as paths:
            os.link(paths[DIGEST], root / "input")
        before = facts(root / "input")
        await collect(store, root, "input")
        assert facts(root / "input") == before
    assert (await status_of_blob(store)).st_ino != before[0]


async def test_an_output_on_another_file_system_is_copied(store: BlobStore, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    root = memory / f"stoker-{os.getpid()}"
    root.mkdir()
    try:
        (root / "f").write_bytes(CONTENT)
        await collect(store, root)
        await status_of_blob(store)
    finally:
        for path in root.iterdir():
            path.unlink()
        root.rmdir()


class InterferingStore(MemoryBlobStore):
    """Calls `interfere` when an output has been hashed and is about to be sent."""

    def __init__(self, interfere: Callable[[], object]) -> None:
        super().__init__()
        self._interfere = interfere
        self.given: list[Path] = []

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        self._interfere()
        return await super().find_missing(digests)

    async def write_file(self, digest: Digest, path: Path) -> None:
        self.given.append(path)
        await super().write_file(digest, path)


@pytest.mark.parametrize("data", [b"", CONTENT[:-1], CONTENT[:-1] + b"!", CONTENT + b"!"])
async def test_a_file_that_changes_while_it_is_stored(root: Path, data: bytes) -> None:
    blobs = VerifyingBlobStore(InterferingStore(lambda: (root / "f").write_bytes(data)))
    with pytest.raises(FailedPrecondition, match="changed while"):
        await collect(blobs, root, gives_files=False)
    assert await blobs.read_many([DIGEST, SHA256.digest(data)]) == {
        digest: b"" for digest in [SHA256.digest(data)] if not data
    }


async def test_a_file_that_is_replaced_once_it_is_hashed(root: Path) -> None:
    def replace() -> None:
        (root / "other").write_bytes(CONTENT[:-1] + b"!")
        (root / "other").rename(root / "f")

    blobs = VerifyingBlobStore(InterferingStore(replace))
    result = await collect(blobs, root)
    assert await blobs.read_many([SHA256.parse(result.output_files[0].digest)]) == {DIGEST: CONTENT}


async def test_a_file_that_is_opened_for_writing_once_it_is_hashed(root: Path) -> None:
    def open_() -> None:
        with pytest.raises(BlockingIOError):
            os.open(root / "f", os.O_RDWR | os.O_NONBLOCK)

    inner = InterferingStore(open_)
    await collect(VerifyingBlobStore(inner), root)
    assert inner.given == [], "its bytes were sent, and hashed once more"
    assert await inner.read_many([DIGEST]) == {DIGEST: CONTENT}
    quiet = InterferingStore(lambda: None)
    await collect(VerifyingBlobStore(quiet), root)
    assert quiet.given == [root / "f"]


@pytest.mark.parametrize("gives_files", [True, False])
async def test_a_store_without_room(root: Path, tmp_path: Path, gives_files: bool) -> None:
    # RUN-24
    async with open_disk(tmp_path, max_bytes=2 * 2**20, min_life_seconds=0) as store:
        with pytest.raises(StorageFull):
            await collect(store, root, gives_files=gives_files)
        assert await store.find_missing([DIGEST]) == {DIGEST}
        assert list((tmp_path / "store" / "incoming").iterdir()) == []
        # All of its room is there as before.
        data = os.urandom(2 * 2**20)
        async with store.open_write(SHA256.digest(data)) as writer:
            await writer.write(data)


class CancelledStore(MemoryBlobStore):
    """Has somebody cancel the first write to `inner`, when some of it is on the disk."""

    def __init__(self, inner: BlobStore, scope: trio.CancelScope) -> None:
        super().__init__()
        self._inner = inner
        self._scope = scope

    @asynccontextmanager
    async def open_write(self, digest: Digest) -> AsyncIterator[BlobWriter]:
        async with self._inner.open_write(digest) as writer:
            await writer.write(CONTENT[:2_000_000])
            self._scope.cancel()
            yield writer

    async def write_file(self, digest: Digest, path: Path) -> None:
        self._scope.cancel()
        await self._inner.write_file(digest, path)


@pytest.mark.parametrize("gives_files", [True, False])
async def test_cancellation_leaves_no_part(
    store: BlobStore, root: Path, tmp_path: Path, gives_files: bool
) -> None:
    with trio.CancelScope() as scope:
        await collect(CancelledStore(store, scope), root, gives_files=gives_files)
    assert scope.cancelled_caught
    assert list((tmp_path / "store" / "incoming").iterdir()) == []
    assert await store.find_missing([DIGEST]) == {DIGEST}


async def test_the_first_failure_ends_the_others_and_comes_alone(
    store: BlobStore, root: Path
) -> None:
    names = [f"f{number}" for number in range(20)]
    for number, name in enumerate(names):
        (root / name).write_bytes(CONTENT + b"%d" % number)
    async with open_disk(root, max_bytes=8 * 2**20, min_life_seconds=3600) as small:
        with pytest.raises(StorageFull):
            await collect(small, root, *names)
        assert list((root / "store" / "incoming").iterdir()) == []
    await collect(store, root)
    await status_of_blob(store)


async def test_a_folder_that_a_worker_puts_a_link_in_place_of(store: BlobStore, root: Path) -> None:
    # Its processes live, and a server that is root can read what they cannot.
    (root / "d").mkdir()
    (root / "d" / "f").write_bytes(b"mine")
    (root / "secret").mkdir()
    (root / "secret" / "f").write_bytes(b"not yours")

    class Swapping(OutputBudget):
        def count(self, name: str, size_bytes: int = 0) -> None:
            if "d/f" in name:
                (root / "d").rename(root / "was-d")
                (root / "d").symlink_to("secret")
            super().count(name, size_bytes)

    uploads = Uploads(SHA256, store)
    swapping = Swapping(executor="executor-1", max_files=1000, max_bytes=2**30)
    with pytest.raises(FailedPrecondition, match="moved while"):
        await collect_outputs(root, reapi.Command(output_paths=["d"]), uploads, swapping)


async def test_outputs_and_streams_of_an_action_are_moved(
    store: BlobStore,
    cas: Any,
    strategy: ExecutionStrategy,
    tmp_path: Path,
    open_rig: Callable[..., AbstractAsyncContextManager[Any]],
) -> None:
    # OUT-22, RUN-13
    cas.blobs = store
    script = (
        "head -c 1000000 /dev/zero > f; head -c 2000000 /dev/zero;"
        "stat -L -c %i f /dev/fd/3 3>&1 >&2"
    )
    async with open_rig(cas, strategy, tmp_path / "executor") as rig:
        result = await rig.shell(script, output_paths=["f"])
    inodes = (await cas.get(result.stderr_digest)).decode().split()
    digests = [SHA256.digest(bytes(1_000_000)), SHA256.digest(bytes(2_000_000))]
    assert [result.output_files[0].digest, result.stdout_digest] == [d.to_proto() for d in digests]
    async with store.open_paths(digests) as paths:
        assert [str(paths[digest].stat().st_ino) for digest in digests] == inodes


def run_program(name: str, *arguments: object, enclosed: list[str] | None = None) -> None:
    """Run a program beside this file, which has to say that all is well."""
    run = subprocess.run(
        [*(enclosed or []), sys.executable, "-m", f"{__package__}.{name}", *map(str, arguments)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "all is well\n"), run.stderr


def test_a_full_disk_under_the_store(tmp_path: Path) -> None:
    # RUN-24: on a file system of 40 MiB, which only a namespace of its own lets us mount.
    small, root = tmp_path / "small", tmp_path / "root"
    small.mkdir()
    root.mkdir()
    mount = 'mount -t tmpfs -o size=40m tmpfs "$1" && shift && exec "$@"'
    enclosed = ["unshare", "-Urm", "sh", "-c", mount, "sh", str(small)]
    try:
        probe = subprocess.run([*enclosed, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if probe.returncode != 0:
        pytest.skip(f"no mount namespace: {probe.stderr.decode().strip()}")
    run_program("full_store", small, root, enclosed=enclosed)


@as_root
def test_a_server_without_privileges() -> None:
    # Not in pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "foreign").write_bytes(CONTENT)
        os.chown(folder, NOBODY, NOBODY)
        run_program("unprivileged_outputs", folder)
