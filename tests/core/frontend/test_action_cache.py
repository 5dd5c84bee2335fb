"""The action cache through the front door (sections 10 and 11)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp

from stoker import __version__
from stoker.digest import SHA256, Digest
from stoker.frontend.inlining import MAX_INLINED_BYTES
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.provenance_pb2 import Provenance
from stoker.testing.server import EXECUTING, MEMORY_ONLY

from .conftest import REAPI, Client, missing_subjects, open_client, status_of
from .executing import run

AC = REAPI + "ActionCache/"
ACTION = SHA256.digest(b"an action")
NOT_FOUND = grpc.StatusCode.NOT_FOUND
INVALID = grpc.StatusCode.INVALID_ARGUMENT
METADATA = reapi.RequestMetadata(
    tool_details=reapi.ToolDetails(tool_name="bazel", tool_version="8.0"),
    tool_invocation_id="invocation",
    correlated_invocations_id="ci run",
)
HEADERS = [
    ("build.bazel.remote.execution.v2.requestmetadata-bin", METADATA.SerializeToString()),
]


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a server that only caches, with two instances on one cache."""
    other = '[instances.other]\nblob_store = "main"\naction_cache = "main"\n'
    async with open_client(MEMORY_ONLY + other, tmp_path) as client:
        yield client


async def update(
    client: Client,
    result: reapi.ActionResult,
    action: Digest = ACTION,
    *,
    instance_name: str = "",
) -> reapi.ActionResult:
    request = reapi.UpdateActionResultRequest(
        instance_name=instance_name, action_digest=action.to_proto(), action_result=result
    )
    return await client.unary(AC + "UpdateActionResult", request, reapi.ActionResult, HEADERS)


async def get(
    client: Client,
    action: Digest = ACTION,
    *,
    instance_name: str = "",
    stdout: bool = False,
    stderr: bool = False,
    files: tuple[str, ...] = (),
) -> reapi.ActionResult:
    request = reapi.GetActionResultRequest(
        instance_name=instance_name,
        action_digest=action.to_proto(),
        inline_stdout=stdout,
        inline_stderr=stderr,
        inline_output_files=files,
    )
    return await client.unary(AC + "GetActionResult", request, reapi.ActionResult)


async def refused(awaitable: Awaitable[object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as info:
        await awaitable
    code: grpc.StatusCode = info.value.code()
    return code


def unstamped(result: reapi.ActionResult) -> reapi.ActionResult:
    """`result` without what the server adds."""
    copy = reapi.ActionResult()
    copy.CopyFrom(result)
    del copy.execution_metadata.auxiliary_metadata[:]
    if not copy.execution_metadata.ByteSize():
        copy.ClearField("execution_metadata")
    return copy


def provenance(result: reapi.ActionResult) -> Provenance:
    [stamp] = [
        entry
        for entry in result.execution_metadata.auxiliary_metadata
        if entry.Is(Provenance.DESCRIPTOR)
    ]
    return Provenance.FromString(stamp.value)


def file(path: str, digest: Digest, contents: bytes = b"") -> reapi.OutputFile:
    return reapi.OutputFile(path=path, digest=digest.to_proto(), contents=contents)


# --- GetActionResult


async def test_unknown_action(cache: Client) -> None:  # ACG-01
    with pytest.raises(grpc.RpcError) as info:
        await get(cache)
    assert info.value.code() is NOT_FOUND
    assert str(ACTION) in info.value.details()  # GEN-22


@pytest.mark.parametrize("where", ["file", "stdout", "stderr", "tree", "in tree", "root", "below"])
async def test_incomplete_results_are_not_served(cache: Client, where: str) -> None:  # ACG-02
    absent = SHA256.digest(b"absent")
    with_absent = reapi.Directory(files=[reapi.FileNode(name="f", digest=absent.to_proto())])
    root, tree = await cache.put(
        with_absent.SerializeToString(), reapi.Tree(children=[with_absent]).SerializeToString()
    )
    result = {
        "file": reapi.ActionResult(output_files=[file("f", absent)]),
        "stdout": reapi.ActionResult(stdout_digest=absent.to_proto()),
        "stderr": reapi.ActionResult(stderr_digest=absent.to_proto()),
        "tree": directory(tree_digest=absent),
        "in tree": directory(tree_digest=tree),
        "root": directory(root_directory_digest=absent),
        "below": directory(root_directory_digest=root),
    }[where]
    await update(cache, result)  # ACU-04
    assert await refused(get(cache)) is NOT_FOUND
    await cache.put(b"absent", b"")
    if where in ("in tree", "below", "file", "stdout", "stderr"):
        assert unstamped(await get(cache)) == result


def directory(**digests: Digest) -> reapi.ActionResult:
    named = {field: digest.to_proto() for field, digest in digests.items()}
    return reapi.ActionResult(
        output_directories=[reapi.OutputDirectory(path="d", **named)]  # type: ignore[arg-type] # by name
    )


async def test_inlined_contents_do_not_make_up_for_a_lost_blob(tmp_path: Path) -> None:  # ACG-04
    toml = MEMORY_ONLY.replace('kind = "memory"', f'kind = "disk"\npath = "{tmp_path}/cas"', 1)
    async with open_client(toml, tmp_path) as client:
        digest = SHA256.digest(b"contents")
        await update(client, reapi.ActionResult(output_files=[file("f", digest, b"contents")]))
        assert (await get(client, files=("f",))).output_files[0].contents == b"contents"
        for held in tmp_path.rglob(f"{digest.hash}*"):
            held.unlink()
        assert await refused(get(client, files=("f",))) is NOT_FOUND


async def test_empty_digests_are_present(cache: Client) -> None:  # ACG-05
    result = reapi.ActionResult(
        output_files=[file("empty", SHA256.empty)],
        output_directories=[
            reapi.OutputDirectory(path="d", tree_digest=SHA256.empty.to_proto()),
            reapi.OutputDirectory(path="e", root_directory_digest=SHA256.empty.to_proto()),
        ],
        stdout_digest=SHA256.empty.to_proto(),
        stderr_digest=SHA256.empty.to_proto(),
    )
    await update(cache, result)
    assert unstamped(await get(cache)) == result


async def test_inlining_is_for_those_who_ask(cache: Client) -> None:  # ACG-06, 07, 08
    out, err, one, two = await cache.put(b"out", b"err", b"one", b"two")
    result = reapi.ActionResult(
        stdout_digest=out.to_proto(),
        stderr_digest=err.to_proto(),
        output_files=[file("1", one), file("2", two)],
    )
    await update(cache, result)
    assert unstamped(await get(cache)) == result
    inlined = await get(cache, stdout=True, stderr=True, files=("2", "no output"))
    assert (inlined.stdout_raw, inlined.stderr_raw) == (b"out", b"err")
    assert [output.contents for output in inlined.output_files] == [b"", b"two"]
    assert inlined.stdout_digest == result.stdout_digest
    assert inlined.output_files[1].digest == result.output_files[1].digest


async def test_inlining_is_bounded(cache: Client) -> None:  # ACG-07, GEN-15
    contents = [bytes([number]) * (MAX_INLINED_BYTES // 2 - 1) for number in range(10)]
    outputs = await cache.put(*contents[:5]) + await cache.put(*contents[5:])
    names = tuple(map(str, range(10)))
    await update(cache, reapi.ActionResult(output_files=list(map(file, names, outputs))))
    result = await get(cache, files=names)
    assert 0 < sum(len(output.contents) for output in result.output_files) <= MAX_INLINED_BYTES
    assert result.ByteSize() < 4 * 1024 * 1024
    assert [SHA256.parse(output.digest) for output in result.output_files] == outputs


async def test_right_hash_with_wrong_size(cache: Client) -> None:  # ACG-09
    await update(cache, reapi.ActionResult())
    await get(cache)
    wrong = SHA256.named(ACTION.hash, ACTION.size_bytes + 1)
    assert await refused(get(cache, wrong)) is NOT_FOUND


async def test_instances_do_not_see_each_other(cache: Client) -> None:  # ACG-10
    await update(cache, reapi.ActionResult(), instance_name="other")
    assert await refused(get(cache)) is NOT_FOUND
    await get(cache, instance_name="other")


async def test_damaged_entry_is_absent_and_dropped(tmp_path: Path) -> None:  # ACG-11
    main = 'kind = "memory"\n[instances'
    toml = MEMORY_ONLY.replace(main, f'kind = "disk"\npath = "{tmp_path}/ac"\n[instances')
    async with open_client(toml, tmp_path) as client:
        await update(client, reapi.ActionResult(stderr_raw=b"x"))
        files = [path for path in (tmp_path / "ac").rglob("*") if ACTION.hash in path.name]
        assert len(files) == 1
        for path in files:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.chmod(0o600)
            path.write_bytes(data)
        assert await refused(get(client)) is NOT_FOUND
        await update(client, reapi.ActionResult(stderr_raw=b"x"))
        await get(client)


async def test_failures_are_not_served_by_default(cache: Client) -> None:  # ACG-12
    await update(cache, reapi.ActionResult(exit_code=1))
    assert await refused(get(cache)) is NOT_FOUND
    await update(cache, reapi.ActionResult())
    await update(cache, reapi.ActionResult(exit_code=1))
    assert (await get(cache)).exit_code == 0


CACHING_FAILURES = EXECUTING.replace(
    'executors = ["local"]', 'executors = ["local"]\ncache_failures = true'
)


@pytest.mark.parametrize(("toml", "cached"), [(EXECUTING, False), (CACHING_FAILURES, True)])
async def test_failures_are_cached_where_the_instance_says_so(
    tmp_path: Path, toml: str, cached: bool
) -> None:  # ACG-12, RUN-16
    async with open_client(toml, tmp_path) as client:
        await update(client, reapi.ActionResult(exit_code=3))
        assert (await answer(get(client)) == 3) is cached
        action = await client.put_action("sh", "-c", "exit 7")
        assert not (await run(client, action)).cached_result
        again = await run(client, action)
        assert (again.cached_result, again.result.exit_code) == (cached, 7)
        assert (await answer(get(client, action)) == 7) is cached


def status_code_of(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    code: grpc.StatusCode = error.code()
    return code


async def answer(awaitable: Awaitable[reapi.ActionResult]) -> int | None:
    try:
        return (await awaitable).exit_code
    except grpc.RpcError as error:
        return None if status_code_of(error) is NOT_FOUND else -1


async def test_large_trees_are_checked_up_to_a_bound(tmp_path: Path) -> None:  # ACG-13, ACG-15
    toml = MEMORY_ONLY + "max_tree_bytes = 1000000\n"
    async with open_client(toml, tmp_path) as client:
        [empty_file] = await client.put(b"content")
        for count, served in ((10_000, True), (20_000, False)):
            root = reapi.Directory(
                files=[
                    reapi.FileNode(name=f"{number:05}", digest=empty_file.to_proto())
                    for number in range(count)
                ]
            )
            [tree] = await client.put(reapi.Tree(root=root).SerializeToString())
            assert (tree.size_bytes <= 1_000_000) is served
            await update(client, directory(tree_digest=tree))
            if served:
                await get(client)
            else:
                assert await refused(get(client)) is NOT_FOUND


async def test_what_is_no_tree(cache: Client) -> None:  # ACG-15
    [garbage] = await cache.put(b"\xff\xff\xff")
    await update(cache, directory(tree_digest=garbage))
    assert await refused(get(cache)) is NOT_FOUND


async def test_metadata_is_the_original_one(cache: Client) -> None:  # ACG-14
    theirs = AnyMessage()
    theirs.Pack(Timestamp(seconds=3))
    metadata = reapi.ExecutedActionMetadata(worker="theirs", auxiliary_metadata=[theirs])
    metadata.worker_start_timestamp.FromSeconds(1_000_000_000)
    await update(cache, reapi.ActionResult(execution_metadata=metadata))
    got = (await get(cache)).execution_metadata
    assert (got.worker, got.worker_start_timestamp) == ("theirs", metadata.worker_start_timestamp)
    assert theirs in got.auxiliary_metadata


# --- UpdateActionResult


async def test_round_trip(cache: Client) -> None:  # ACU-01
    [output] = await cache.put(b"output")
    result = reapi.ActionResult(output_files=[file("f", output)])
    stored = await update(cache, result)
    assert unstamped(stored) == result
    assert await get(cache) == stored


@pytest.mark.parametrize(
    "request_",
    [
        reapi.UpdateActionResultRequest(action_digest=ACTION.to_proto()),
        reapi.UpdateActionResultRequest(action_result=reapi.ActionResult(exit_code=0)),
    ],
)
async def test_what_must_be_set(
    cache: Client, request_: reapi.UpdateActionResultRequest
) -> None:  # ACU-02
    call = cache.unary(AC + "UpdateActionResult", request_, reapi.ActionResult)
    assert await refused(call) is INVALID


async def test_actions_are_checked_where_the_instance_says_so(tmp_path: Path) -> None:  # ACU-03, 10
    async with open_client(MEMORY_ONLY + "check_actions = true\n", tmp_path) as client:
        with pytest.raises(grpc.RpcError) as info:
            await update(client, reapi.ActionResult())
        assert info.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert missing_subjects(status_of(info.value)) == {f"blobs/{ACTION}"}
        command = SHA256.digest(reapi.Command(arguments=["true"]).SerializeToString())
        action = await client.put_message(reapi.Action(command_digest=command.to_proto()))
        with pytest.raises(grpc.RpcError) as info:
            await update(client, reapi.ActionResult(), action)
        assert missing_subjects(status_of(info.value)) == {f"blobs/{command}"}
        await client.put_message(reapi.Command(arguments=["true"]))
        await update(client, reapi.ActionResult(), action)
        await get(client, action)
        uncacheable = await client.put_message(
            reapi.Action(command_digest=command.to_proto(), do_not_cache=True)
        )
        assert await refused(update(client, reapi.ActionResult(), uncacheable)) is INVALID


async def test_actions_are_not_checked_by_default(cache: Client) -> None:  # ACU-03, ACU-10
    action = await cache.put_message(reapi.Action(do_not_cache=True))
    for unchecked in (ACTION, action):
        await update(cache, reapi.ActionResult(), unchecked)
        await get(cache, unchecked)


async def test_execution_never_files_what_is_not_to_be_cached(client: Client) -> None:  # ACU-10
    action = await client.put_action("true", do_not_cache=True)
    assert (await run(client, action)).result.exit_code == 0
    assert await refused(get(client, action)) is NOT_FOUND


async def test_last_update_wins(cache: Client) -> None:  # ACU-05
    for worker in ("first", "second"):
        metadata = reapi.ExecutedActionMetadata(worker=worker)
        await update(cache, reapi.ActionResult(execution_metadata=metadata))
        assert (await get(cache)).execution_metadata.worker == worker


async def test_clients_without_the_right(tmp_path: Path) -> None:  # ACU-06
    async with open_client(MEMORY_ONLY + "client_updates = false\n", tmp_path) as client:
        code = await refused(update(client, reapi.ActionResult()))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        capabilities = await client.unary(
            REAPI + "Capabilities/GetCapabilities",
            reapi.GetCapabilitiesRequest(),
            reapi.ServerCapabilities,
        )
        rights = capabilities.cache_capabilities.action_cache_update_capabilities
        assert not rights.update_enabled


@pytest.mark.parametrize("size_bytes", [10, 500_000])
async def test_inlined_contents_move_to_the_cas(cache: Client, size_bytes: int) -> None:  # ACU-07
    out, err, one, two = (bytes([number]) * size_bytes for number in range(4))
    given = SHA256.digest(two)
    stored = await update(
        cache,
        reapi.ActionResult(
            stdout_raw=out,
            stderr_raw=err,
            stderr_digest=SHA256.digest(err).to_proto(),
            output_files=[reapi.OutputFile(path="1", contents=one), file("2", given, two)],
        ),
    )
    named = [stored.stdout_digest, stored.stderr_digest, *(f.digest for f in stored.output_files)]
    digests = [SHA256.parse(message) for message in named]
    assert digests == [SHA256.digest(data) for data in (out, err, one, two)]
    assert stored.stdout_raw + stored.stderr_raw + stored.output_files[0].contents == b""
    assert await cache.missing(*digests) == set()
    assert await get(cache) == stored
    assert (await get(cache, stdout=True)).stdout_raw == out


@pytest.mark.parametrize("where", ["stdout", "stderr", "file"])
async def test_contents_that_are_not_their_digest(cache: Client, where: str) -> None:  # ACU-07
    other = SHA256.digest(b"other")
    result = {
        "stdout": reapi.ActionResult(stdout_raw=b"this", stdout_digest=other.to_proto()),
        "stderr": reapi.ActionResult(stderr_raw=b"this", stderr_digest=other.to_proto()),
        "file": reapi.ActionResult(output_files=[file("f", other, b"this")]),
    }[where]
    with pytest.raises(grpc.RpcError) as info:
        await update(cache, result)
    assert info.value.code() is INVALID
    assert other.hash in info.value.details()
    assert await refused(get(cache)) is NOT_FOUND
    assert await cache.missing(other) == {other.hash}


async def test_contents_are_bound_as_other_uploads_are(tmp_path: Path) -> None:  # CAP-11
    async with open_client(MEMORY_ONLY + "max_blob_bytes = 100\n", tmp_path) as client:
        large, small = bytes(101), bytes(100)
        for result in (
            reapi.ActionResult(stdout_raw=large),
            reapi.ActionResult(output_files=[file("f", SHA256.digest(large), large)]),
        ):
            assert await refused(update(client, result)) is INVALID
        await update(client, reapi.ActionResult(stdout_raw=small))
        digests = [SHA256.digest(large), SHA256.digest(small)]
        assert await client.missing(*digests) == {digests[0].hash}


async def test_an_empty_result_gets_a_worker(cache: Client) -> None:  # ACU-08
    assert (await update(cache, reapi.ActionResult())).execution_metadata.worker
    assert (await get(cache)).execution_metadata.worker


async def test_a_full_cache_says_so(tmp_path: Path) -> None:  # ACU-09
    full = 'kind = "memory"\nmax_bytes = 300\n[instances'
    toml = MEMORY_ONLY.replace('kind = "memory"\n[instances', full)
    result = reapi.ActionResult(output_symlinks=[reapi.OutputSymlink(path="x" * 300, target="y")])
    async with open_client(toml, tmp_path) as client:
        assert await refused(update(client, result)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    toml = MEMORY_ONLY.replace('kind = "memory"', 'kind = "memory"\nmax_bytes = 5', 1)
    async with open_client(toml, tmp_path) as client:
        result = reapi.ActionResult(stdout_raw=b"too much")
        assert await refused(update(client, result)) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "message", [reapi.Digest(hash="a" * 64, size_bytes=-1), reapi.Digest(hash="A" * 64)]
)
async def test_malformed_digests_inside(cache: Client, message: reapi.Digest) -> None:  # ACU-11
    for result in (
        reapi.ActionResult(stdout_digest=message),
        reapi.ActionResult(output_files=[reapi.OutputFile(path="f", digest=message)]),
        reapi.ActionResult(
            output_files=[reapi.OutputFile(path="f", digest=message, contents=b"x")]
        ),
    ):
        assert await refused(update(cache, result)) is INVALID


# --- the audit trail


async def test_a_filed_result_tells_who_filed_it(cache: Client) -> None:  # ACU-12
    before = Timestamp()
    before.GetCurrentTime()
    await update(cache, reapi.ActionResult())
    written = provenance(await get(cache))
    assert before.ToNanoseconds() <= written.written_at.ToNanoseconds()
    assert (written.tool_name, written.tool_version) == ("bazel", "8.0")
    assert written.tool_invocation_id == "invocation"
    assert written.correlated_invocations_id == "ci run"
    assert written.peer.startswith("ipv4:127.0.0.1:")
    assert (written.executor, written.server_version) == ("", __version__)


@pytest.mark.parametrize("prefix", ["type.googleapis.com/", "elsewhere/", ""])
async def test_provenance_cannot_be_forged(cache: Client, prefix: str) -> None:  # ACU-12
    forged = AnyMessage(
        type_url=f"{prefix}stoker.v1.Provenance",
        value=Provenance(executor="trusted", tool_name="good").SerializeToString(),
    )
    metadata = reapi.ExecutedActionMetadata(auxiliary_metadata=[forged, forged])
    await update(cache, reapi.ActionResult(execution_metadata=metadata))
    result = await get(cache)
    assert forged not in result.execution_metadata.auxiliary_metadata
    written = provenance(result)
    assert (written.executor, written.tool_name) == ("", "bazel")


async def test_an_executed_result_tells_its_executor(client: Client) -> None:  # ACU-12
    action = await client.put_action("true")
    request = reapi.ExecuteRequest(action_digest=action.to_proto())
    await client.stream(REAPI + "Execution/Execute", request, operations_pb2.Operation, HEADERS)
    written = provenance(await get(client, action))
    assert (written.executor, written.tool_name, written.tool_invocation_id) == (
        "local",
        "bazel",
        "invocation",
    )
    assert written.peer == ""
    assert (await run(client, action)).cached_result
