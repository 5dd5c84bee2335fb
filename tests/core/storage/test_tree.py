"""Reading trees: what is there, what is missing, and what is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import pytest
import trio

from stoker.errors import BlobNotFound, InputsMissing, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import SHA256, BlobStore, Digest
from stoker.storage.input_tree import InputFile
from stoker.storage.memory import MemoryBlobStore
from stoker.storage.tree import walk_directories
from stoker.storage.tree_cache import CHECK_AGAIN_SECONDS, InputTrees, read_input_tree

FILE = SHA256.digest(b"file")


@pytest.fixture
async def store() -> BlobStore:
    store = MemoryBlobStore()
    await store.write_many({FILE: b"file"})
    return store


def file(name: str, digest: Digest = FILE) -> reapi.FileNode:
    return reapi.FileNode(name=name, digest=digest.to_proto())


def folder(name: str, digest: Digest) -> reapi.DirectoryNode:
    return reapi.DirectoryNode(name=name, digest=digest.to_proto())


def link(name: str, target: str = "t") -> reapi.SymlinkNode:
    return reapi.SymlinkNode(name=name, target=target)


async def keep(store: BlobStore, directory: reapi.Directory) -> Digest:
    digest = digest_of(directory)
    assert not await store.write_many({digest: directory.SerializeToString()})
    return digest


def digest_of(directory: reapi.Directory) -> Digest:
    return SHA256.digest(directory.SerializeToString())


async def chain(store: BlobStore, depth: int) -> Digest:
    digest = SHA256.empty
    blobs = {}
    for _ in range(depth):
        data = reapi.Directory(directories=[folder("d", digest)]).SerializeToString()
        digest = SHA256.digest(data)
        blobs[digest] = data
    assert not await store.write_many(blobs)
    return digest


async def walk(store: BlobStore, root: Digest) -> list[Digest]:
    return [digest async for level in walk_directories(store, [root]) for digest, _ in level]


async def turns_during(work: Callable[[], Awaitable[object]]) -> int:
    """How many turns another task gets until `work` has ended."""
    turns = 0
    async with trio.open_nursery() as nursery:

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(take_turns)
        await work()
        nursery.cancel_scope.cancel()
    return turns


async def test_a_large_directory_holds_up_nobody_else(store: BlobStore) -> None:
    # GEN-29: nothing below is there, so that all turns but a few are those of the parsing.
    names = (f"{number:08}" for number in range(50_000))
    absent = SHA256.digest(b"absent")
    directory = reapi.Directory(directories=[folder(name, absent) for name in names])
    root = await keep(store, directory)
    with trio.fail_after(60):
        assert await turns_during(lambda: walk(store, root)) > 100


# --- input trees


async def test_every_path_in_order(store: BlobStore) -> None:
    leaf = await keep(store, reapi.Directory(files=[file("x"), file("a")]))
    middle = await keep(
        store,
        reapi.Directory(
            symlinks=[link("up", "../b"), link("off", "/usr")],
            directories=[folder("leaf", leaf), folder("empty", SHA256.empty)],
        ),
    )
    root = await keep(
        store,
        reapi.Directory(
            files=[file("z"), file("b", SHA256.empty)],
            directories=[folder("m", middle), folder("again", leaf)],
        ),
    )
    tree = await read_input_tree(store, root)
    assert list(tree.files) == ["again/a", "again/x", "b", "m/leaf/a", "m/leaf/x", "z"]
    assert all(tree.files[path].path == path for path in tree.files)
    assert tree.files["b"].digest == SHA256.empty
    assert tree.files["z"].digest == FILE
    assert list(tree.directories) == ["again", "m", "m/empty", "m/leaf"]
    assert list(tree.symlinks.items()) == [("m/off", "/usr"), ("m/up", "../b")]


async def test_properties_of_a_file(store: BlobStore) -> None:
    # PWK-01: the value of the property may be empty.
    node = file("tool")
    node.is_executable = True
    node.node_properties.properties.add(name="bazel_tool_input")
    node.node_properties.mtime.seconds = 12
    node.node_properties.mtime.nanos = 345
    node.node_properties.unix_mode.value = 0o755
    root = await keep(store, reapi.Directory(files=[node, file("plain")]))
    tree = await read_input_tree(store, root)
    assert tree.files == {
        "tool": InputFile("tool", FILE, True, True, 12_000_000_345, 0o755),
        "plain": InputFile("plain", FILE, False, False, None, None),
    }


async def test_empty_root_needs_no_upload() -> None:
    tree = await read_input_tree(MemoryBlobStore(), SHA256.empty)
    assert (dict(tree.files), list(tree.directories), dict(tree.symlinks)) == ({}, [], {})


async def test_everything_missing_is_found_at_once(store: BlobStore) -> None:
    gone = SHA256.digest(b"a file that is gone")
    gone_too = SHA256.digest(b"another")
    absent = SHA256.digest(b"a directory that is gone")
    leaf = await keep(store, reapi.Directory(files=[file("f", gone_too), file("g", gone)]))
    root = await keep(
        store,
        reapi.Directory(
            files=[file("h", gone), file("i"), file("j", SHA256.empty)],
            directories=[folder("k", leaf), folder("l", absent), folder("m", absent)],
        ),
    )
    with pytest.raises(InputsMissing) as caught:
        await read_input_tree(store, root)
    assert sorted(caught.value.digests) == sorted([absent, gone, gone_too])


async def test_missing_root(store: BlobStore) -> None:
    absent = SHA256.digest(b"nowhere")
    with pytest.raises(InputsMissing) as caught:
        await read_input_tree(store, absent)
    assert caught.value.digests == (absent,)


class _Counting(MemoryBlobStore):
    def __init__(self) -> None:
        super().__init__()
        self.read: list[Digest] = []
        self.found: list[Digest] = []
        self.calls = 0

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        self.read += digests
        self.calls += 1
        return await super().read_many(digests)

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        self.found += digests
        self.calls += 1
        return await super().find_missing(digests)


async def test_each_directory_is_read_once_and_each_level_at_once() -> None:
    store = _Counting()
    await store.write_many({FILE: b"file"})
    leaves = [await keep(store, reapi.Directory(files=[file(f"f{n}")])) for n in range(50)]
    middle = await keep(
        store, reapi.Directory(directories=[folder(f"l{n}", leaf) for n, leaf in enumerate(leaves)])
    )
    root = await keep(
        store, reapi.Directory(directories=[folder(f"m{n}", middle) for n in range(10)])
    )
    tree = await read_input_tree(store, root)
    assert len(tree.files) == 500
    assert sorted(store.read) == sorted([root, middle, *leaves])
    assert store.calls == 3 + 1


async def test_wide_level() -> None:
    store = MemoryBlobStore()
    await store.write_many({FILE: b"file"})
    leaves = [await keep(store, reapi.Directory(files=[file(f"f{n}")])) for n in range(2_500)]
    root = await keep(
        store, reapi.Directory(directories=[folder(f"d{n}", leaf) for n, leaf in enumerate(leaves)])
    )
    assert len((await read_input_tree(store, root)).files) == 2_500
    assert await walk(store, root) == [root, *leaves]


async def test_depth_of_ten_thousand(store: BlobStore) -> None:
    # GTR-11
    root = await chain(store, 10_000)
    tree = await read_input_tree(store, root)
    assert len(tree.directories) == 10_000
    assert len(await walk(store, root)) == 10_001


async def test_depth_whose_paths_would_fill_the_memory(store: BlobStore) -> None:
    with pytest.raises(InvalidRequest, match="too long"):
        await read_input_tree(store, await chain(store, 30_000))


async def test_expansion_is_bounded(store: BlobStore) -> None:
    # Thirty directories that stand for 2^30.
    digest = SHA256.empty
    for _ in range(30):
        digest = await keep(
            store, reapi.Directory(directories=[folder("l", digest), folder("r", digest)])
        )
    with pytest.raises(InvalidRequest, match=f"input root {digest} has more than 1000000 entries"):
        await read_input_tree(store, digest)
    # GTR-08
    assert len(await walk(store, digest)) == 31


async def test_bound_on_entries_is_exact(store: BlobStore) -> None:
    root = await keep(
        store,
        reapi.Directory(
            files=[file("a"), file("b")],
            directories=[folder("c", SHA256.empty)],
            symlinks=[link("d")],
        ),
    )
    assert len((await read_input_tree(store, root, max_entries=4)).files) == 2
    with pytest.raises(InvalidRequest, match="more than 3 entries"):
        await read_input_tree(store, root, max_entries=3)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "/etc", "a\0b", "../x"])
@pytest.mark.parametrize("kind", ["files", "directories", "symlinks"])
async def test_illegal_names(store: BlobStore, kind: str, name: str) -> None:
    # EXE-26
    nodes = {"files": file(name), "directories": folder(name, SHA256.empty), "symlinks": link(name)}
    bad = reapi.Directory()
    getattr(bad, kind).append(nodes[kind])
    below = await keep(store, bad)
    root = await keep(store, reapi.Directory(directories=[folder("sub", below)]))
    with pytest.raises(InvalidRequest) as caught:
        await read_input_tree(store, root)
    assert str(below) in str(caught.value)
    assert f"entry {name!r} is not a single path segment" in str(caught.value)


@pytest.mark.parametrize(
    "directory",
    [
        reapi.Directory(files=[file("same"), file("x"), file("same")]),
        reapi.Directory(files=[file("same")], directories=[folder("same", SHA256.empty)]),
        reapi.Directory(files=[file("same")], symlinks=[link("same")]),
        reapi.Directory(directories=[folder("same", SHA256.empty)], symlinks=[link("same")]),
    ],
)
async def test_names_that_occur_twice(store: BlobStore, directory: reapi.Directory) -> None:
    # EXE-26
    root = await keep(store, directory)
    with pytest.raises(InvalidRequest, match=f"directory {root}: entry 'same' occurs twice"):
        await read_input_tree(store, root)


@pytest.mark.parametrize("target", ["", "a\0b"])
async def test_links_to_nothing(store: BlobStore, target: str) -> None:
    root = await keep(store, reapi.Directory(symlinks=[link("l", target)]))
    with pytest.raises(InvalidRequest, match=f"directory {root}: symlink 'l'"):
        await read_input_tree(store, root)


@pytest.mark.parametrize(
    "directory",
    [
        reapi.Directory(files=[reapi.FileNode(name="f")]),
        reapi.Directory(
            files=[reapi.FileNode(name="f", digest=reapi.Digest(hash="XY", size_bytes=1))]
        ),
        reapi.Directory(
            directories=[
                reapi.DirectoryNode(name="f", digest=reapi.Digest(hash="a" * 64, size_bytes=-1))
            ]
        ),
    ],
)
async def test_malformed_digests(store: BlobStore, directory: reapi.Directory) -> None:
    root = await keep(store, directory)
    with pytest.raises(InvalidRequest, match=f"directory {root}: entry 'f'"):
        await read_input_tree(store, root)


@pytest.mark.parametrize("name", ["root", "below"])
async def test_blob_that_is_no_directory(store: BlobStore, name: str) -> None:
    # GTR-10
    garbage = SHA256.digest(b"\xff\xff")
    await store.write_many({garbage: b"\xff\xff"})
    below = await keep(store, reapi.Directory(directories=[folder("d", garbage)]))
    root = {"root": garbage, "below": below}[name]
    with pytest.raises(InvalidRequest, match=f"blob {garbage} is not a Directory"):
        await read_input_tree(store, root)
    with pytest.raises(InvalidRequest, match=f"blob {garbage} is not a Directory"):
        await walk(store, root)


async def test_digest_that_claims_an_absurd_size(store: BlobStore) -> None:
    absurd = SHA256.named("a" * 64, 1 << 40)
    root = await keep(store, reapi.Directory(directories=[folder("d", absurd)]))
    with pytest.raises(InvalidRequest, match=str(absurd)):
        await read_input_tree(store, root)


# --- GetTree's walk


async def test_walk_is_breadth_first(store: BlobStore) -> None:
    # GTR-01
    low = await keep(store, reapi.Directory(files=[file("low")]))
    left = await keep(store, reapi.Directory(directories=[folder("low", low)]))
    right = await keep(store, reapi.Directory(files=[file("right")]))
    root = await keep(
        store,
        reapi.Directory(directories=[folder("l", left), folder("r", right), folder("s", low)]),
    )
    levels = [level async for level in walk_directories(store, [root])]
    assert [[digest for digest, _ in level] for level in levels] == [[root], [left, right, low]]
    assert all(digest_of(directory) == digest for level in levels for digest, directory in level)


async def test_walk_skips_what_is_absent(store: BlobStore) -> None:
    # GTR-03
    low = await keep(store, reapi.Directory(files=[file("low")]))
    absent = SHA256.digest(b"absent")
    root = await keep(store, reapi.Directory(directories=[folder("a", absent), folder("l", low)]))
    assert await walk(store, root) == [root, low]


async def test_walk_of_an_absent_root(store: BlobStore) -> None:
    # GTR-02
    absent = SHA256.digest(b"absent")
    with pytest.raises(BlobNotFound):
        await walk(store, absent)


async def test_walk_of_the_empty_root() -> None:
    # GTR-09
    levels = [level async for level in walk_directories(MemoryBlobStore(), [SHA256.empty])]
    assert levels == [[(SHA256.empty, reapi.Directory())]]


async def test_walk_may_be_abandoned(store: BlobStore) -> None:
    async for level in walk_directories(store, [await chain(store, 5)]):
        assert len(level) == 1
        break


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(253_402_300_800, 0), (-62_135_596_801, 0), (2**62, 0), (0, -5), (0, 2**31 - 1)],
)
async def test_a_time_that_is_none_is_refused(store: BlobStore, seconds: int, nanos: int) -> None:
    # RUN-04
    node = file("late")
    node.node_properties.mtime.seconds = seconds
    node.node_properties.mtime.nanos = nanos
    root = await keep(store, reapi.Directory(files=[node]))
    with pytest.raises(InvalidRequest, match=rf"{root.hash}.*'late'.*mtime"):
        await read_input_tree(store, root)


async def test_a_tree_that_doubles_is_refused_at_its_first_directory_that_is_too_large(
    store: BlobStore,
) -> None:
    # The sizes of all of it would have 18,000 digits, and take minutes to add up.
    digest = SHA256.empty
    blobs = {}
    for _ in range(60_000):
        directory = reapi.Directory(directories=[folder("a", digest), folder("b", digest)])
        data = directory.SerializeToString()
        digest = SHA256.digest(data)
        blobs[digest] = data
    assert not await store.write_many(blobs)
    with pytest.raises(InvalidRequest, match="more than 1000000 entries"):
        await read_input_tree(store, digest)


async def test_a_directory_named_often_is_measured_once(store: BlobStore) -> None:
    # Measured again for each of its places, it would take some 10^10 steps.
    child = await keep(store, reapi.Directory(symlinks=[link(str(n)) for n in range(100_000)]))
    parent = reapi.Directory(directories=[folder(str(n), child) for n in range(100_000)])
    with pytest.raises(InvalidRequest, match="more than 1000000 entries"):
        await read_input_tree(store, await keep(store, parent))


# --- a cache of trees


async def test_a_tree_that_is_kept_costs_no_call() -> None:
    store = _Counting()
    await store.write_many({FILE: b"file"})
    leaf = await keep(store, reapi.Directory(files=[file("a")]))
    root = await keep(store, reapi.Directory(directories=[folder("d", leaf)]))
    trees = InputTrees(store)
    first = await trees.read(root)
    calls = store.calls
    assert (await trees.read(root)).root is first.root
    assert store.calls == calls


async def test_only_new_directories_are_read() -> None:
    store = _Counting()
    await store.write_many({FILE: b"file"})
    same = await keep(store, reapi.Directory(files=[file("a")]))
    trees = InputTrees(store)
    await trees.read(await keep(store, reapi.Directory(directories=[folder("d", same)])))
    store.read.clear()
    other = await keep(store, reapi.Directory(directories=[folder("e", same)]))
    tree = await trees.read(other)
    assert store.read == [other]
    assert list(tree.files) == ["e/a"]


async def test_what_is_missing_is_named_whole_though_some_is_known(store: BlobStore) -> None:
    # EXE-04
    assert isinstance(store, MemoryBlobStore)
    leaf = await keep(store, reapi.Directory(files=[file("a")]))
    trees = InputTrees(store)
    kept = await trees.read(await keep(store, reapi.Directory(directories=[folder("d", leaf)])))
    absent, gone = SHA256.digest(b"absent"), SHA256.digest(b"gone")
    root = await keep(
        store,
        reapi.Directory(
            files=[file("f", gone)], directories=[folder("d", leaf), folder("x", absent)]
        ),
    )
    with pytest.raises(InputsMissing) as caught:
        await trees.read(root)
    assert set(caught.value.digests) == {absent, gone}
    assert list(kept.files) == ["d/a"]


async def test_no_more_entries_are_kept_than_may_be() -> None:
    store = _Counting()
    await store.write_many({FILE: b"file"})
    trees = InputTrees(store, kept_entries=2)
    roots = [await keep(store, reapi.Directory(files=[file(name)])) for name in "abc"]
    for root in roots:
        await trees.read(root)
    store.read.clear()
    for root in reversed(roots):
        await trees.read(root)
    assert store.read == roots[:1]


async def test_files_of_a_kept_tree_are_looked_for_again_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    # STO-06: what is in use must not be evicted as if it were not.
    store = _Counting()
    await store.write_many({FILE: b"file"})
    root = await keep(store, reapi.Directory(files=[file("a")]))
    trees = InputTrees(store)
    await trees.read(root)
    calls = store.calls
    await trio.sleep(CHECK_AGAIN_SECONDS)
    await trees.read(root)
    assert store.calls == calls + 1


async def test_only_new_files_are_looked_for(autojump_clock: trio.testing.MockClock) -> None:
    store = _Counting()
    other = SHA256.digest(b"other")
    await store.write_many({FILE: b"file", other: b"other"})
    before = await keep(store, reapi.Directory(files=[file("a")]))
    after = await keep(store, reapi.Directory(files=[file("a"), file("b", other)]))
    trees = InputTrees(store)
    await trees.read(before)
    await trio.sleep(CHECK_AGAIN_SECONDS / 2)
    store.found.clear()
    await trees.read(after)
    assert store.found == [other]
    # STO-06: the one that was not looked for was there so long ago.
    await trio.sleep(CHECK_AGAIN_SECONDS / 2)
    await trees.read(after)
    assert set(store.found[1:]) == {FILE, other}


async def test_what_is_missing_is_named_though_it_was_there_a_moment_ago() -> None:
    # EXE-04
    store = MemoryBlobStore()
    await store.write_many({FILE: b"file"})
    trees = InputTrees(store)
    await trees.read(await keep(store, reapi.Directory(files=[file("a")])))
    absent = SHA256.digest(b"absent")
    root = await keep(store, reapi.Directory(files=[file("a"), file("b", absent)]))
    del store._blobs[FILE]
    with pytest.raises(InputsMissing) as caught:
        await trees.read(root)
    assert set(caught.value.digests) == {FILE, absent}
