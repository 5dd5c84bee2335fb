"""The Operations service through the front door (section 13)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from google.longrunning import operations_pb2 as operations
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.rpc import code_pb2

from stoker.digest import SHA256, Digest
from stoker.frontend.request_metadata import HEADER
from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import EXECUTING, open_test_server

from .conftest import OPERATIONS, REAPI, Client, code_of, failure_of
from .executing import EXECUTE, Stream, execute, exists, gate, metadata_of, response_of, run

NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
WAIT_EXECUTION = REAPI + "Execution/WaitExecution"


async def listed(client: Client, **request: Any) -> operations.ListOperationsResponse:
    """One page."""
    return await client.unary(
        OPERATIONS + "ListOperations",
        operations.ListOperationsRequest(**{"name": "operations", **request}),
        operations.ListOperationsResponse,
    )


async def names_of(client: Client, **request: Any) -> list[str]:
    """The names on all pages."""
    names: list[str] = []
    token = ""
    while True:
        page = await listed(client, page_token=token, **request)
        names += [operation.name for operation in page.operations]
        if not (token := page.next_page_token):
            return names


async def get(client: Client, name: str) -> operations.Operation:
    request = operations.GetOperationRequest(name=name)
    return await client.unary(OPERATIONS + "GetOperation", request, operations.Operation)


async def wait(client: Client, name: str, seconds: float | None) -> operations.Operation:
    request = operations.WaitOperationRequest(name=name)
    if seconds is not None:
        timeout = Duration()
        timeout.FromNanoseconds(int(seconds * 1e9))
        request.timeout.CopyFrom(timeout)
    return await client.unary(OPERATIONS + "WaitOperation", request, operations.Operation)


async def delete(client: Client, name: str) -> None:
    request = operations.DeleteOperationRequest(name=name)
    await client.unary(OPERATIONS + "DeleteOperation", request, Empty)


async def begin(client: Client, digest: Digest) -> tuple[Stream, str]:
    """An operation that executes, and its name."""
    stream = Stream(client, EXECUTE, reapi.ExecuteRequest(action_digest=digest.to_proto()))
    return stream, (await stream.until(reapi.ExecutionStage.EXECUTING)).name


async def test_operations_are_listed_in_pages(client: Client) -> None:  # OPS-20
    digest = await client.put_action("true")
    names = [(await execute(client, digest))[-1].name for _ in range(3)]
    assert await names_of(client, page_size=2) == names
    assert await names_of(client, page_size=2, filter="done = true") == names
    assert await names_of(client, filter="done = false") == []
    for bad in (
        {"filter": "done"},
        {"page_token": "bad"},
        {"page_token": "ff.ff"},
        {"page_size": -1},
        {"name": "no"},
    ):
        assert await code_of(listed(client, **bad)) is INVALID


async def test_pages_stay_in_step_while_operations_come_and_go(client: Client) -> None:  # OPS-20
    digest = await client.put_action("true")
    names = [(await execute(client, digest))[-1].name for _ in range(6)]
    first = await listed(client, page_size=2)
    assert [operation.name for operation in first.operations] == names[:2]
    # The one that the token is of, one before it, and the next: all forgotten.
    for gone in (names[0], names[1], names[2]):
        await delete(client, gone)
    names.append((await execute(client, digest))[-1].name)
    second = await listed(client, page_size=2, page_token=first.next_page_token)
    assert [operation.name for operation in second.operations] == names[3:5]
    third = await listed(client, page_size=9, page_token=second.next_page_token)
    assert [operation.name for operation in third.operations] == names[5:]
    assert not third.next_page_token
    token = second.next_page_token
    failure = await failure_of(listed(client, page_token=token, filter="done = true"))
    assert "must not change from page to page" in failure.details()


async def test_a_list_is_filtered_by_what_clients_say_of_actions(
    client: Client, tmp_path: Path
) -> None:  # OPS-20
    said = reapi.RequestMetadata(
        tool_invocation_id="build-1", action_mnemonic="Javac", target_id="//a:b"
    )
    digest = await client.put_action("true")
    request = reapi.ExecuteRequest(action_digest=digest.to_proto())
    metadata = [(HEADER, said.SerializeToString())]
    [done] = (await client.stream(EXECUTE, request, operations.Operation, metadata))[-1:]
    script, begun, let_on = gate(tmp_path)
    stream, running = await begin(client, await client.put_action("sh", "-c", script))
    for filter_, names in {
        "stage = EXECUTING": [running],
        "executor = local": [done.name, running],
        'mnemonic = Javac AND target = "//a:b" AND invocation = build-1': [done.name],
        f"action = {digest.hash[:10]}": [done.name],
        'principal = ""': [done.name, running],
    }.items():
        assert await names_of(client, filter=filter_) == names
    await exists(begun)
    let_on.touch()
    await stream.until(reapi.ExecutionStage.COMPLETED)


async def test_a_page_of_heavy_operations_is_a_message_that_clients_take(client: Client) -> None:
    # GEN-15
    result = reapi.ActionResult(
        output_files=[
            reapi.OutputFile(path=f"{i:0200}", digest=SHA256.empty.to_proto()) for i in range(400)
        ]
    )
    digest = await client.put_action("true")
    update = reapi.UpdateActionResultRequest(action_digest=digest.to_proto(), action_result=result)
    await client.unary(REAPI + "ActionCache/UpdateActionResult", update, reapi.ActionResult)
    names = [(await execute(client, digest))[-1].name for _ in range(60)]
    page = await listed(client)
    assert 0 < len(page.operations) < len(names)
    assert await names_of(client) == names


async def test_all_ways_to_ask_tell_the_same(client: Client) -> None:  # OPS-17, RUN-32
    digest = await client.put_action(
        "sh", "-c", "echo out; echo err >&2; echo 1 >f", output_paths=["f"]
    )
    for wanted in ({"inline_stdout": True, "inline_output_files": ["f"]}, {"inline_stderr": True}):
        last = (await execute(client, digest, **wanted))[-1]
        result = response_of(last).result
        assert (result.stdout_raw, result.stderr_raw, result.output_files[0].contents) == (
            (b"out\n", b"", b"1\n") if "inline_stdout" in wanted else (b"", b"err\n", b"")
        )
        assert await get(client, last.name) == last
        assert await wait(client, last.name, None) == last
        request = reapi.WaitExecutionRequest(name=last.name)
        assert await client.stream(WAIT_EXECUTION, request, operations.Operation) == [last]


async def test_waiting_for_an_operation(client: Client, tmp_path: Path) -> None:  # OPS-21
    script, begun, let_on = gate(tmp_path)
    stream, name = await begin(client, await client.put_action("sh", "-c", script))
    # By its own time, and not by the deadline that calls of this client have.
    with trio.fail_after(30):
        for seconds in (0, 0.05):
            operation = await wait(client, name, seconds)
            assert not operation.done
            assert metadata_of(operation).stage == reapi.ExecutionStage.EXECUTING
        await trio.lowlevel.checkpoint()
    assert await code_of(wait(client, name, -1)) is INVALID
    assert await code_of(wait(client, "operations/none", 0)) is NOT_FOUND
    # The deadline of the call comes first: the answer comes before it.
    call = client.channel.unary_unary(
        OPERATIONS + "WaitOperation",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=operations.Operation.FromString,
    )
    request = operations.WaitOperationRequest(name=name, timeout=Duration(seconds=10**6))
    operation = await trio.to_thread.run_sync(lambda: call(request, timeout=3))
    assert not operation.done
    ended: list[operations.Operation] = []

    async def wait_end() -> None:
        ended.append(await wait(client, name, None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_end)
        await exists(begun)
        let_on.touch()
    last = await stream.until(reapi.ExecutionStage.COMPLETED)
    assert ended == [last]


async def test_an_operation_is_not_abandoned_while_somebody_waits_in_this_way(
    client: Client, tmp_path: Path
) -> None:  # OPS-08, OPS-21
    script, begun, let_on = gate(tmp_path)
    stream, name = await begin(client, await client.put_action("sh", "-c", script))

    async def let_on_late() -> None:
        await exists(begun)
        stream.drop()
        # Longer than abandoned_after_seconds.
        await trio.sleep(1)
        let_on.touch()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_on_late)
        operation = await wait(client, name, None)
    assert response_of(operation).status.code == code_pb2.OK


async def test_deleting_forgets_and_cancels_nothing(
    client: Client, tmp_path: Path
) -> None:  # OPS-10, OPS-19
    script, begun, let_on = gate(tmp_path)
    digest = await client.put_action("sh", "-c", script)
    stream, name = await begin(client, digest)
    await delete(client, name)
    for call in (get(client, name), wait(client, name, 0), delete(client, name)):
        assert await code_of(call) is NOT_FOUND
    assert await names_of(client) == []
    await exists(begun)
    let_on.touch()
    ended = await stream.until(reapi.ExecutionStage.COMPLETED)
    assert response_of(ended).status.code == code_pb2.OK
    # It did its work, and has ended without being kept.
    assert (await run(client, digest)).cached_result
    assert name not in await names_of(client)
    [cached] = await names_of(client)
    await delete(client, cached)
    assert await names_of(client) == []


async def test_cancelling_one_of_two_that_share_a_run(
    client: Client, tmp_path: Path
) -> None:  # OPS-18
    script, begun, let_on = gate(tmp_path)
    digest = await client.put_action("sh", "-c", script)
    (one, cancelled), (two, _) = [await begin(client, digest) for _ in range(2)]
    request = operations.CancelOperationRequest(name=cancelled)
    await client.unary(OPERATIONS + "CancelOperation", request, Empty)
    ended = await one.until(reapi.ExecutionStage.COMPLETED)
    assert response_of(ended).status.code == code_pb2.CANCELLED
    await exists(begun)
    let_on.touch()
    ended = await two.until(reapi.ExecutionStage.COMPLETED)
    assert response_of(ended).status.code == code_pb2.OK


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a server with an instance that has a name."""
    (tmp_path / "named").mkdir()
    toml = EXECUTING.replace('[instances.""]', '[instances."a/b"]')
    async with open_test_server(toml, tmp_path / "named") as server:
        client = Client(server.address)
        yield client
        client.channel.close()


async def test_an_instance_with_a_name(other: Client) -> None:  # OPS-02, OPS-20
    assert await names_of(other, name="a/b/operations") == []
    assert await code_of(listed(other, name="operations")) is INVALID
