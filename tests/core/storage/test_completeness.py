"""Results are served while everything that they name is there, and only then."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from structlog.testing import capture_logs

from stoker.errors import DataLoss, InvalidRequest, StorageFull, Unavailable
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import SHA256, ActionKey, ActionResult, Digest
from stoker.storage.completeness import CompleteActionCache
from stoker.storage.memory import MemoryActionCache, MemoryBlobStore

KEY = ActionKey("main", SHA256.digest(b"an action"))
BAD = reapi.Digest(hash="NOT A HASH", size_bytes=1)
NEGATIVE = reapi.Digest(hash="a" * 64, size_bytes=-1)


class _Counting(MemoryBlobStore):
    """Counts the calls, and forgets a blob when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        self.calls.append(("find_missing", len(digests)))
        return await super().find_missing(digests)

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        self.calls.append(("read_many", len(digests)))
        return await super().read_many(digests)

    def forget(self, digest: Digest) -> None:
        del self._blobs[digest]


@pytest.fixture
def blobs() -> _Counting:
    return _Counting()


@pytest.fixture
def filed() -> MemoryActionCache:
    return MemoryActionCache()


@pytest.fixture
def cache(filed: MemoryActionCache, blobs: _Counting) -> CompleteActionCache:
    return CompleteActionCache(filed, blobs)


async def keep(blobs: MemoryBlobStore, data: bytes) -> Digest:
    digest = SHA256.digest(data)
    assert not await blobs.write_many({digest: data})
    return digest


def node(name: str, digest: Digest) -> reapi.FileNode:
    return reapi.FileNode(name=name, digest=digest.to_proto())


async def whole_result(blobs: MemoryBlobStore) -> tuple[ActionResult, dict[str, Digest]]:
    """A result that names blobs in every way there is, and those blobs by role."""
    named = {
        role: await keep(blobs, role.encode())
        for role in ("file", "inlined", "in tree root", "in tree child", "in closure", "out", "err")
    }
    child = reapi.Directory(files=[node("c", named["in tree child"])])
    child_digest = SHA256.digest(child.SerializeToString())
    root = reapi.Directory(
        files=[node("r", named["in tree root"]), node("empty", SHA256.empty)],
        directories=[reapi.DirectoryNode(name="d", digest=child_digest.to_proto())],
    )
    tree = reapi.Tree(root=root, children=[child])
    below = reapi.Directory(files=[node("b", named["in closure"])])
    named["directory below"] = await keep(blobs, below.SerializeToString())
    top = reapi.Directory(
        directories=[
            reapi.DirectoryNode(name="below", digest=named["directory below"].to_proto()),
            reapi.DirectoryNode(name="empty", digest=SHA256.empty.to_proto()),
        ]
    )
    named["root directory"] = await keep(blobs, top.SerializeToString())
    named["tree"] = await keep(blobs, tree.SerializeToString())
    result = ActionResult(
        output_files=[
            reapi.OutputFile(path="f", digest=named["file"].to_proto()),
            # ACG-04
            reapi.OutputFile(path="i", digest=named["inlined"].to_proto(), contents=b"inlined"),
            # ACG-05
            reapi.OutputFile(path="e", digest=SHA256.empty.to_proto()),
        ],
        output_directories=[
            reapi.OutputDirectory(path="t", tree_digest=named["tree"].to_proto()),
            reapi.OutputDirectory(
                path="d", root_directory_digest=named["root directory"].to_proto()
            ),
        ],
        stdout_digest=named["out"].to_proto(),
        stderr_digest=named["err"].to_proto(),
    )
    return result, named


ROLES = (
    "file",
    "inlined",
    "in tree root",
    "in tree child",
    "in closure",
    "out",
    "err",
    "directory below",
    "root directory",
    "tree",
)


async def test_unknown_action(cache: CompleteActionCache) -> None:
    assert await cache.get(KEY) is None


async def test_whole_result_is_served(cache: CompleteActionCache, blobs: _Counting) -> None:
    # ACG-02, ACG-05
    result, _ = await whole_result(blobs)
    await cache.update(KEY, result)
    with capture_logs() as logs:
        assert await cache.get(KEY) == result
    assert logs == []


@pytest.mark.parametrize("role", ROLES)
async def test_anything_missing_hides_the_result(
    cache: CompleteActionCache, blobs: _Counting, role: str
) -> None:
    # ACG-02, ACG-04
    result, named = await whole_result(blobs)
    assert named.keys() == set(ROLES)
    await cache.update(KEY, result)
    blobs.forget(named[role])
    assert await cache.get(KEY) is None


async def test_one_existence_call_covers_everything(
    cache: CompleteActionCache, blobs: _Counting
) -> None:
    # ACG-03, ACG-13
    files = [await keep(blobs, b"%d" % number) for number in range(5_000)]
    trees = [
        await keep(
            blobs,
            reapi.Tree(
                root=reapi.Directory(files=[node(f"{n}", f) for n, f in enumerate(part)])
            ).SerializeToString(),
        )
        for part in (files[:4_000], files[4_000:])
    ]
    await cache.update(
        KEY,
        ActionResult(
            output_directories=[reapi.OutputDirectory(tree_digest=t.to_proto()) for t in trees]
        ),
    )
    assert await cache.get(KEY) is not None
    assert blobs.calls == [("read_many", 2), ("find_missing", 5_002)]


async def test_result_without_outputs_asks_nothing(
    cache: CompleteActionCache, blobs: _Counting
) -> None:
    await cache.update(KEY, ActionResult(stdout_raw=b"hello"))
    assert await cache.get(KEY) == ActionResult(stdout_raw=b"hello")
    assert blobs.calls == []


async def test_empty_tree_needs_no_upload(cache: CompleteActionCache) -> None:
    # ACG-05
    result = ActionResult(
        output_directories=[
            reapi.OutputDirectory(
                tree_digest=SHA256.empty.to_proto(), root_directory_digest=SHA256.empty.to_proto()
            )
        ],
        stdout_digest=SHA256.empty.to_proto(),
    )
    await cache.update(KEY, result)
    assert await cache.get(KEY) == result


async def test_failed_action_is_not_served(cache: CompleteActionCache) -> None:
    # ACG-12
    await cache.update(KEY, ActionResult(exit_code=1))
    assert await cache.get(KEY) is None


async def test_failed_action_is_served_where_it_may_be(
    filed: MemoryActionCache, blobs: _Counting
) -> None:
    # ACG-12
    strict = CompleteActionCache(filed, blobs)
    await strict.update(KEY, ActionResult(exit_code=1))
    assert await filed.get(KEY) is None
    lenient = CompleteActionCache(filed, blobs, cache_failures=True)
    await lenient.update(KEY, ActionResult(exit_code=1))
    assert await lenient.get(KEY) == ActionResult(exit_code=1)
    assert await strict.get(KEY) is None


@pytest.mark.parametrize("size_bytes", [100, 300_000])
async def test_tree_that_does_not_parse(
    cache: CompleteActionCache, blobs: _Counting, size_bytes: int
) -> None:
    # ACG-15
    tree = await keep(blobs, b"\xff" * size_bytes)
    await cache.update(
        KEY, ActionResult(output_directories=[reapi.OutputDirectory(tree_digest=tree.to_proto())])
    )
    with capture_logs() as logs:
        assert await cache.get(KEY) is None
    assert f"blob {tree} is not a Tree message" in logs[0]["reason"]
    assert logs[0]["action"] == str(KEY.action)


async def test_root_directory_that_does_not_parse(
    cache: CompleteActionCache, blobs: _Counting
) -> None:
    root = await keep(blobs, b"\xff\xff")
    output = reapi.OutputDirectory(root_directory_digest=root.to_proto())
    await cache.update(KEY, ActionResult(output_directories=[output]))
    with capture_logs() as logs:
        assert await cache.get(KEY) is None
    assert str(root) in logs[0]["reason"]


async def test_trees_beyond_the_bound_are_not_read(
    filed: MemoryActionCache, blobs: _Counting
) -> None:
    # ACG-13
    tree = await keep(
        blobs, reapi.Tree(root=reapi.Directory()).SerializeToString() + b"\x12\x00" * 9
    )
    result = ActionResult(
        output_directories=[
            reapi.OutputDirectory(path=path, tree_digest=tree.to_proto()) for path in ("a", "b")
        ]
    )
    exact = CompleteActionCache(filed, blobs, max_tree_bytes=2 * tree.size_bytes)
    await exact.update(KEY, result)
    assert await exact.get(KEY) == result
    blobs.calls.clear()
    small = CompleteActionCache(filed, blobs, max_tree_bytes=2 * tree.size_bytes - 1)
    with capture_logs() as logs:
        assert await small.get(KEY) is None
    assert "more than" in logs[0]["reason"]
    assert blobs.calls == []


async def test_nested_root_directories_are_read_once(
    filed: MemoryActionCache, blobs: _Counting
) -> None:
    # ACG-02, OUT-16: outputs may be within each other, as `a`, `a/a`, `a/a/a` are here.
    depth = 30
    roots = [SHA256.empty]
    for _ in range(depth):
        below = reapi.DirectoryNode(name="a", digest=roots[-1].to_proto())
        data = reapi.Directory(directories=[below]).SerializeToString()
        roots.append(await keep(blobs, data))
    outputs = [
        reapi.OutputDirectory(path=str(n), root_directory_digest=root.to_proto())
        for n, root in enumerate(roots)
    ]
    await filed.update(KEY, ActionResult(output_directories=outputs))
    blobs.calls.clear()
    assert await CompleteActionCache(filed, blobs).get(KEY) is not None
    assert sum(count for call, count in blobs.calls if call == "read_many") == depth
    blobs.forget(roots[1])
    assert await CompleteActionCache(filed, blobs).get(KEY) is None


async def test_closure_beyond_the_bound(filed: MemoryActionCache, blobs: _Counting) -> None:
    # ACG-13
    result, named = await whole_result(blobs)
    del result.output_directories[0]
    size_bytes = named["root directory"].size_bytes + named["directory below"].size_bytes
    await filed.update(KEY, result)
    exact = CompleteActionCache(filed, blobs, max_tree_bytes=size_bytes)
    assert await exact.get(KEY) == result
    small = CompleteActionCache(filed, blobs, max_tree_bytes=size_bytes - 1)
    with capture_logs() as logs:
        assert await small.get(KEY) is None
    assert "more than" in logs[0]["reason"]


MALFORMED = {
    "file": ActionResult(output_files=[reapi.OutputFile(digest=BAD)]),
    "file without digest": ActionResult(output_files=[reapi.OutputFile(path="f")]),
    "tree": ActionResult(output_directories=[reapi.OutputDirectory(tree_digest=NEGATIVE)]),
    "root": ActionResult(output_directories=[reapi.OutputDirectory(root_directory_digest=BAD)]),
    "directory without digest": ActionResult(output_directories=[reapi.OutputDirectory(path="d")]),
    "stdout": ActionResult(stdout_digest=NEGATIVE),
    "stderr": ActionResult(stderr_digest=BAD),
}


@pytest.mark.parametrize("kind", MALFORMED)
async def test_malformed_digest_is_refused(
    cache: CompleteActionCache, filed: MemoryActionCache, kind: str
) -> None:
    # ACU-11
    with pytest.raises(InvalidRequest):
        await cache.update(KEY, MALFORMED[kind])
    assert await filed.get(KEY) is None


@pytest.mark.parametrize("kind", MALFORMED)
async def test_malformed_digest_that_was_filed_hides_the_result(
    cache: CompleteActionCache, filed: MemoryActionCache, kind: str
) -> None:
    await filed.update(KEY, MALFORMED[kind])
    with capture_logs() as logs:
        assert await cache.get(KEY) is None
    assert len(logs) == 1


async def test_malformed_digest_inside_of_a_tree(
    cache: CompleteActionCache, blobs: _Counting
) -> None:
    message = reapi.Tree(root=reapi.Directory(files=[reapi.FileNode(name="f", digest=BAD)]))
    tree = await keep(blobs, message.SerializeToString())
    await cache.update(
        KEY, ActionResult(output_directories=[reapi.OutputDirectory(tree_digest=tree.to_proto())])
    )
    with capture_logs() as logs:
        assert await cache.get(KEY) is None
    assert len(logs) == 1


async def test_stream_with_an_empty_digest_message(cache: CompleteActionCache) -> None:
    result = ActionResult(stdout_digest=reapi.Digest(), stdout_raw=b"x")
    await cache.update(KEY, result)
    assert await cache.get(KEY) == result


async def test_filed_message_is_never_empty(
    cache: CompleteActionCache, filed: MemoryActionCache
) -> None:
    # ACU-08
    given = ActionResult()
    await cache.update(KEY, given)
    stored = await filed.get(KEY)
    assert stored is not None
    assert stored.ByteSize() > 0
    assert stored.execution_metadata.worker
    assert given == ActionResult(), "the caller's message is his own"


async def test_full_cache(blobs: _Counting) -> None:
    # ACU-09
    cache = CompleteActionCache(MemoryActionCache(max_bytes=10), blobs)
    with pytest.raises(StorageFull):
        await cache.update(KEY, ActionResult(stdout_raw=b"x" * 100))


class _Damaged(MemoryBlobStore):
    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        raise DataLoss(next(iter(digests)), "it was trodden on")


class _Gone(MemoryBlobStore):
    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        raise Unavailable("nobody answers")


async def test_damaged_tree_hides_the_result(filed: MemoryActionCache) -> None:
    cache = CompleteActionCache(filed, _Damaged())
    tree = SHA256.digest(b"x")
    await cache.update(
        KEY, ActionResult(output_directories=[reapi.OutputDirectory(tree_digest=tree.to_proto())])
    )
    with capture_logs() as logs:
        assert await cache.get(KEY) is None
    assert "trodden" in logs[0]["reason"]


async def test_store_that_does_not_answer_is_no_miss(filed: MemoryActionCache) -> None:
    # STO-04
    cache = CompleteActionCache(filed, _Gone())
    await cache.update(KEY, ActionResult(stdout_digest=SHA256.digest(b"x").to_proto()))
    with pytest.raises(Unavailable):
        await cache.get(KEY)
