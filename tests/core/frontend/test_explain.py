"""What the Explain service says of actions, through the front door."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from google.longrunning import operations_pb2

from stoker.digest import SHA256, Digest
from stoker.frontend.explanation import HELD_BACK, held_back_message
from stoker.protos import explain_pb2 as explain
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.journal_rows import Kept, Request
from stoker.scheduler.operation import Operation
from stoker.scheduler.scheduler import open_scheduler
from stoker.scheduler.settings import SchedulerSettings
from stoker.testing.server import EXECUTING, open_test_server

from .conftest import Client, code_of
from .executing import EXECUTE, run

EXPLAIN = "/stoker.v1.Explain/ExplainAction"
METADATA = "build.bazel.remote.execution.v2.requestmetadata-bin"
COPY = ("sh", "-c", "cat in >out")


async def explain_action(
    client: Client, action: object = "", **fields: object
) -> explain.Explanation:
    request = explain.ExplainActionRequest(action=str(action) or None, **fields)  # type: ignore[arg-type] # fields by name
    return await client.unary(EXPLAIN, request, explain.Explanation)


def differences(explanation: explain.Explanation) -> list[tuple[str, str, str, str, str]]:
    assert not explanation.nearest_earlier.gone
    assert not explanation.nearest_earlier.cut_off
    return [
        (d.part, d.change, d.name, d.before, d.after)
        for d in explanation.nearest_earlier.differences
    ]


async def put_copy(client: Client, *arguments: str, **fields: Any) -> Digest:
    """An action with the output that makes it like its siblings."""
    fields = {"files": {"in": b"one"}, "output_paths": ["out"], **fields}
    return await client.put_action(*(arguments or COPY), **fields)


def variables(**values: str) -> list[reapi.Command.EnvironmentVariable]:
    return [reapi.Command.EnvironmentVariable(name=n, value=v) for n, v in values.items()]


ONE, TWO = (str(SHA256.digest(data)) for data in (b"one", b"two"))

DIFFERENCES: list[tuple[str, dict[str, Any], list[tuple[str, str, str, str, str]]]] = [
    ("an input", {"files": {"in": b"two"}}, [("input", "changed", "in", ONE, TWO)]),
    (
        "one more input",
        {"files": {"in": b"one", "more": b"two"}},
        [("input", "added", "more", "", TWO)],
    ),
    (
        "a variable",
        {"environment_variables": variables(LANG="C", TZ="UTC")},
        [("environment", "added", "LANG", "", "C"), ("environment", "added", "TZ", "", "UTC")],
    ),
    (
        "the platform",
        {"platform": {"OSFamily": "linux"}},
        [("platform", "added", "OSFamily", "", "linux")],
    ),
    ("the salt", {"salt": b"\xab"}, [("salt", "added", "", "", "ab")]),
    ("the timeout", {"timeout_seconds": 9}, [("timeout", "added", "", "", "9 s")]),
    ("an output", {"output_paths": ["out", "second"]}, [("output", "added", "second", "", "")]),
    (
        "where it works",
        {"working_directory": "below", "output_paths": ["out"]},
        [("working directory", "added", "", "", "below")],
    ),
    (
        "what is asked of outputs",
        {"output_node_properties": ["mtime"]},
        [("output property", "added", "mtime", "", "")],
    ),
]


@pytest.mark.parametrize(
    ("what", "fields", "expected"), DIFFERENCES, ids=[d[0] for d in DIFFERENCES]
)
async def test_what_it_differs_in_from_the_nearest_earlier_action_is_told(
    client: Client, what: str, fields: dict[str, Any], expected: list[tuple[str, ...]]
) -> None:
    first, second = await put_copy(client), await put_copy(client, **fields)
    await run(client, first)
    await run(client, second)
    found = await explain_action(client, second)
    assert found.run.cache_verdict == "absent"
    assert found.nearest_earlier.run.action_digest.hash == first.hash
    assert differences(found) == expected


async def test_which_argument_differs_is_told(client: Client) -> None:
    first = await put_copy(client, "true", "-a", "x", "-b")
    last = await put_copy(client, "true", "-a", "y", "-b")
    await run(client, first)
    await run(client, last)
    assert differences(await explain_action(client, last)) == [
        ("argument", "changed", "2", "x", "y")
    ]


async def test_the_first_of_its_kind_has_nothing_to_be_compared_with(client: Client) -> None:
    action = await put_copy(client)
    await run(client, action)
    found = await explain_action(client, action)
    assert "No run of this very action" in found.cache_explanation
    assert not found.HasField("nearest_earlier")


async def test_an_answer_from_the_cache_is_told_as_such(client: Client) -> None:
    action = await put_copy(client)
    await run(client, action)
    assert (await run(client, action)).cached_result
    found = await explain_action(client, action)
    assert found.run.cache_verdict == "hit"
    assert "executor local filed the result" in found.cache_explanation
    assert not found.HasField("nearest_earlier")
    [other] = found.other_runs
    assert (other.cache_verdict, other.exit_code, other.cached) == ("absent", 0, True)


async def test_a_client_that_skips_the_lookup_is_told_of(client: Client) -> None:  # EXE-18
    action = await put_copy(client)
    await run(client, action)
    await run(client, action, skip_cache_lookup=True)
    found = await explain_action(client, action)
    assert found.run.cache_verdict == "skipped"
    assert "whatever the action cache has" in found.cache_explanation


async def test_an_action_that_is_never_cached_is_told_of(client: Client) -> None:
    action = await put_copy(client, do_not_cache=True)
    await run(client, action)
    found = await explain_action(client, action)
    assert (found.run.cache_verdict, found.run.cached) == ("not cacheable", False)
    assert "do_not_cache" in found.cache_explanation


async def test_an_earlier_failure_is_told_of(client: Client) -> None:  # ACG-12
    action = await put_copy(client, "sh", "-c", "exit 3")
    await run(client, action)
    await run(client, action)
    found = await explain_action(client, action)
    assert (found.run.exit_code, found.run.cached) == (3, False)
    assert "failed with exit code 3" in found.cache_explanation
    assert not found.HasField("nearest_earlier")


async def test_an_earlier_timeout_is_told_of(client: Client) -> None:  # RUN-19
    action = await put_copy(client, "sleep", "60", timeout_seconds=1)
    for _ in range(2):
        await run(client, action)
    found = await explain_action(client, action)
    assert found.run.error.startswith("TimedOut: ")
    assert "ended without a result to file: TimedOut" in found.cache_explanation


@asynccontextmanager
async def open_client(toml: str, folder: Path) -> AsyncIterator[Client]:
    async with open_test_server(toml, folder) as server:
        client = Client(server.address)
        try:
            yield client
        finally:
            client.channel.close()


async def explain_second(toml: str, folder: Path, *arguments: str) -> explain.Explanation:
    """The second run of an action, on a server that was started anew."""
    async with open_client(toml, folder) as client:
        await run(client, await put_copy(client, *arguments))
    async with open_client(toml, folder) as client:
        action = await put_copy(client, *arguments)
        assert not (await run(client, action)).cached_result
        return await explain_action(client, action)


async def test_an_output_that_is_gone_is_named(tmp_path: Path) -> None:  # ACG-02
    # The blobs go with the server, the results stay.
    toml = EXECUTING.replace(
        '[action_caches.main]\nkind = "memory"',
        '[action_caches.main]\nkind = "disk"\npath = "actions"',
    )
    found = await explain_second(toml, tmp_path, "sh", "-c", "echo made >out")
    assert found.run.cache_verdict == "incomplete"
    assert f"output file 'out' ({SHA256.digest(b'made' + bytes([10]))})" in found.cache_explanation


async def test_a_result_that_is_gone_from_the_cache_is_told_of(tmp_path: Path) -> None:
    # Caches in memory go with the server.
    found = await explain_second(EXECUTING, tmp_path, *COPY)
    assert found.run.cache_verdict == "absent"
    assert "not in the action cache now" in found.cache_explanation


# --- which action is nearest


async def run_as(client: Client, action: Digest, mnemonic: str, target: str) -> None:
    said = reapi.RequestMetadata(action_mnemonic=mnemonic, target_id=target)
    await client.stream(
        EXECUTE,
        reapi.ExecuteRequest(action_digest=action.to_proto()),
        operations_pb2.Operation,
        metadata=[(METADATA, said.SerializeToString())],
    )


async def nearest(client: Client, action: Digest) -> explain.Comparison:
    return (await explain_action(client, action)).nearest_earlier


async def test_the_same_target_and_mnemonic_count_before_all_else(client: Client) -> None:
    far = await put_copy(client, files={"in": b"far", "more": b""}, output_paths=["other"])
    close, last = await put_copy(client), await put_copy(client, files={"in": b"two"})
    await run_as(client, far, "Copy", "//a")
    await run_as(client, close, "Copy", "//b")
    await run_as(client, last, "Copy", "//a")
    found = await nearest(client, last)
    assert (found.run.action_digest.hash, found.alike) == (far.hash, "target, mnemonic")


async def test_of_one_target_the_same_output_counts_before_the_newest(client: Client) -> None:
    same = await put_copy(client, files={"in": b"same"})
    other = await put_copy(client, output_paths=["other"])
    last = await put_copy(client)
    for action in (same, other, last):
        await run_as(client, action, "Copy", "//a")
    found = await nearest(client, last)
    assert (found.run.action_digest.hash, found.alike) == (same.hash, "target, mnemonic, output")


async def test_the_one_that_differs_in_least_counts_before_the_newest(client: Client) -> None:
    close = await put_copy(client, files={"in": b"close"})
    far = await put_copy(client, "sh", "-c", "cat in >out; :", files={"in": b"far"})
    last = await put_copy(client)
    for action in (close, far, last):
        await run(client, action)
    assert (await nearest(client, last)).run.action_digest.hash == close.hash


async def test_one_that_was_cached_counts_before_one_that_failed(client: Client) -> None:
    cached = await put_copy(client, files={"in": b"cached", "more": b""})
    failed = await put_copy(client, "sh", "-c", "cat out", files={"in": b"one"})
    last = await put_copy(client, "sh", "-c", "cat out ", files={"in": b"one"})
    for action in (cached, failed, last):
        await run(client, action)
    assert (await nearest(client, last)).run.action_digest.hash == cached.hash


async def test_of_equals_the_newest_counts_and_later_ones_do_not(client: Client) -> None:
    actions = [await put_copy(client, files={"in": bytes([n])}) for n in range(4)]
    for action in actions:
        await run(client, action)
    assert (await nearest(client, actions[2])).run.action_digest.hash == actions[1].hash


async def test_what_the_store_holds_no_longer_is_told(tmp_path: Path) -> None:
    async with open_client(EXECUTING, tmp_path) as client:
        await run(client, await put_copy(client))
    async with open_client(EXECUTING, tmp_path) as client:
        last = await put_copy(client, "sh", "-c", "cat in >out; :", files={"in": b"two"}, salt=b"s")
        await run(client, last)
        found = await nearest(client, last)
    assert set(found.gone) == {"the Command of the earlier action", "input directory ."}
    assert [d.part for d in found.differences] == ["salt"]


# --- what is on its way


@asynccontextmanager
async def held_up(client: Client, folder: Path) -> AsyncIterator[Callable[[], None]]:
    """An action that runs, on the only slot, until what is given is called."""
    gate = folder / "gate"
    script = f"while [ ! -e {gate} ]; do sleep 0.02; done"
    action = await client.put_action("sh", "-c", script)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, client, action)
        while not await stage_of(client, action, reapi.ExecutionStage.EXECUTING):
            pass
        try:
            yield gate.touch
        finally:
            gate.touch()


async def stage_of(client: Client, action: Digest, stage: int) -> bool:
    """Whether `action` has come to `stage`, and no further."""
    try:
        return (await explain_action(client, action)).run.stage == stage
    except grpc.RpcError:
        return False


async def test_why_an_action_waits_is_told_then_and_afterwards(tmp_path: Path) -> None:
    toml = EXECUTING.replace("slots = 4", "slots = 1")
    async with (
        open_client(toml, tmp_path) as client,
        trio.open_nursery() as nursery,
        held_up(client, tmp_path) as release,
    ):
        action = await put_copy(client)
        nursery.start_soon(run, client, action)
        while not await stage_of(client, action, reapi.ExecutionStage.QUEUED):
            pass
        waiting = await explain_action(client, action)
        [name] = waiting.run.operation_names
        by_name = await explain_action(client, operation_name=name)
        release()
        while not await stage_of(client, action, reapi.ExecutionStage.COMPLETED):
            pass
    assert dict(waiting.waiting.obstacles) == {"local": "no slot is free"}
    assert (waiting.waiting.others_queued, waiting.waiting.executing) == (0, 1)
    assert by_name == waiting
    async with open_client(toml, tmp_path) as client:
        ended = await explain_action(client, operation_name=name)
    assert ended.run.stage == reapi.ExecutionStage.COMPLETED
    assert ended.run.wait.startswith("no slot is free (local); 0 others were queued and 1 ran")


OTHER = '[instances.other]\nblob_store = "main"\naction_cache = "main"\n'


async def test_an_action_that_runs_is_told_of(tmp_path: Path) -> None:  # OPS-02
    toml = EXECUTING + OTHER
    async with open_client(toml, tmp_path) as client, held_up(client, tmp_path):
        # All that is on its way is looked through for a beginning of a hash.
        listed = await client.unary(
            "/google.longrunning.Operations/ListOperations",
            operations_pb2.ListOperationsRequest(name="operations"),
            operations_pb2.ListOperationsResponse,
        )
        found = await explain_action(client, operation_name=listed.operations[0].name)
        short = await explain_action(client, found.run.action_digest.hash[:8])
        [name] = found.run.operation_names
        foreign = explain_action(client, operation_name=name, instance_name="other")
        assert await code_of(foreign) == grpc.StatusCode.NOT_FOUND
    assert found.run.stage == reapi.ExecutionStage.EXECUTING
    assert (list(found.run.executors), found.run.metadata.worker) == (["local"], "local")
    assert not found.HasField("waiting")
    assert short.run.action_digest == found.run.action_digest


async def test_operations_that_share_a_run_are_named_together(tmp_path: Path) -> None:
    async with open_client(EXECUTING, tmp_path) as client:
        async with held_up(client, tmp_path), trio.open_nursery() as nursery:
            action = await client.put_action(
                "sh", "-c", f"while [ ! -e {tmp_path}/second ]; do sleep 0.02; done"
            )
            for _ in range(2):
                nursery.start_soon(run, client, action)
            while not await stage_of(client, action, reapi.ExecutionStage.EXECUTING):
                pass
            while len((await explain_action(client, action)).run.operation_names) < 2:
                pass
            (tmp_path / "second").touch()
        names = (await explain_action(client, action)).run.operation_names
        assert len(names) == 2
        both = [await explain_action(client, operation_name=name) for name in names]
        assert both[0] == both[1]


# --- names, rights, settings


async def test_restarts_are_outlived(tmp_path: Path) -> None:
    async with open_client(EXECUTING, tmp_path) as client:
        action = await put_copy(client)
        await run(client, action)
        before = await explain_action(client, action.hash[:8])
    async with open_client(EXECUTING, tmp_path) as client:
        assert await explain_action(client, str(action)) == before


async def test_what_is_unknown_or_of_another_instance_is_not_found(tmp_path: Path) -> None:
    async with open_client(EXECUTING + OTHER, tmp_path) as client:
        action = await put_copy(client)
        await run(client, action)
        [name] = (await explain_action(client, action)).run.operation_names
        for wanted in ({"action": str(action)}, {"operation_name": name}):
            foreign = explain_action(
                client,
                wanted.get("action", ""),
                instance_name="other",
                **({"operation_name": name} if "operation_name" in wanted else {}),
            )
            assert await code_of(foreign) == grpc.StatusCode.NOT_FOUND
        unknown = "0" * 64
        assert await code_of(explain_action(client, unknown)) == grpc.StatusCode.NOT_FOUND
        missing = explain_action(client, operation_name="operations/none")
        assert await code_of(missing) == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("action", ["", "1234567", "ABCDEF0123", "nothing/5", "12345678/"])
async def test_what_names_no_action_is_refused(client: Client, action: str) -> None:
    assert await code_of(explain_action(client, action)) == grpc.StatusCode.INVALID_ARGUMENT


async def test_without_records_what_has_ended_is_not_known(tmp_path: Path) -> None:
    async with open_client(EXECUTING + "[history]\nenabled = false\n", tmp_path) as client:
        action = await put_copy(client)
        await run(client, action)
        assert await code_of(explain_action(client, action)) == grpc.StatusCode.UNAVAILABLE
    assert not list(tmp_path.rglob("history.sqlite*"))


async def test_where_the_records_lie_is_for_the_log_to_say(tmp_path: Path) -> None:  # SEC-06
    (tmp_path / "stoker-state" / "history.sqlite").mkdir(parents=True)
    async with open_client(EXECUTING, tmp_path) as client:
        action = await put_copy(client)
        await run(client, action)
        with pytest.raises(grpc.RpcError) as refused:
            await explain_action(client, action)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert str(tmp_path) not in refused.value.details()
    assert "log" in refused.value.details()


async def test_what_is_kept_back_names_nobody_elses_operation() -> None:  # SEC-06, SCH-10
    digest = SHA256.digest(b"suspect")
    held = Operation(
        name="operations/1", number=1, namespace="", principal="alice", action_digest=digest
    )
    request = Request(0, skip_cache_lookup=False, metadata=reapi.RequestMetadata())
    async with open_scheduler({}, SchedulerSettings()) as scheduler:
        scheduler.restore([Kept(held, request, 0)])
        for principal, names in (("alice", [held.name]), ("bob", [])):
            assert scheduler.run_of(held) is None
            message = held_back_message(held, principal)
            assert (list(message.operation_names), message.wait) == (names, HELD_BACK)
