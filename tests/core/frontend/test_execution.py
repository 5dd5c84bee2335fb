"""Execution, the action cache and operations through the front door (sections 10 to 15)."""

from __future__ import annotations

import threading
from pathlib import Path

import grpc
import pytest
import trio
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.rpc import code_pb2

from stoker.digest import BLAKE3, SHA256
from stoker.frontend import execution
from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import MEMORY_ONLY, open_test_server

from .conftest import OPERATIONS, REAPI, Client, missing_subjects, status_of
from .executing import (
    EXECUTE,
    Stream,
    execute,
    exists,
    gate,
    is_alive,
    metadata_of,
    response_of,
    run,
)


async def code_of(awaitable: object) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as info:
        await awaitable  # type: ignore[misc] # any call
    code: grpc.StatusCode = info.value.code()
    return code


async def test_an_action_from_beginning_to_end(client: Client) -> None:  # OPS-01…06, RUN-27
    digest = await client.put_action(
        "sh",
        "-c",
        "cat word; echo bad >&2; tr a-z A-Z <word >out/loud",
        files={"word": b"hello"},
        output_paths=["out/loud"],
    )
    operations = await execute(client, digest, inline_stdout=True)
    names = {operation.name for operation in operations}
    stages = [metadata_of(operation).stage for operation in operations]
    assert len(names) == 1
    assert [operation.done for operation in operations] == [False] * (len(stages) - 1) + [True]
    assert stages == sorted(stages)
    assert stages[-1] == reapi.ExecutionStage.COMPLETED
    assert metadata_of(operations[0]).action_digest == digest.to_proto()
    response = response_of(operations[-1])
    result = response.result
    assert (response.status.code, response.cached_result, result.exit_code) == (0, False, 0)
    [output] = result.output_files
    assert output.path == "out/loud"
    assert output.digest == SHA256.digest(b"HELLO").to_proto()
    assert result.stdout_raw == b"hello"  # RUN-32
    assert not result.stderr_raw
    stderr = result.stderr_digest
    assert await client.read(f"blobs/{stderr.hash}/{stderr.size_bytes}") == b"bad\n"
    metadata = result.execution_metadata
    assert metadata.worker
    order = [
        metadata.queued_timestamp,
        metadata.worker_start_timestamp,
        metadata.input_fetch_start_timestamp,
        metadata.input_fetch_completed_timestamp,
        metadata.execution_start_timestamp,
        metadata.execution_completed_timestamp,
        metadata.output_upload_start_timestamp,
        metadata.output_upload_completed_timestamp,
        metadata.worker_completed_timestamp,
    ]
    nanoseconds = [stamp.ToNanoseconds() for stamp in order]
    assert nanoseconds == sorted(nanoseconds)
    assert nanoseconds[0] > 0


async def test_a_change_that_is_over_at_once_is_not_told(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:  # OPS-01, OPS-06
    stages = reapi.ExecutionStage
    monkeypatch.setattr(execution, "FIRST_WITHIN_SECONDS", 60)
    short = await execute(client, await client.put_action("sh", "-c", ":"))
    assert [metadata_of(o).stage for o in short] == [stages.COMPLETED]
    assert short[0].name
    monkeypatch.setattr(execution, "FIRST_WITHIN_SECONDS", 0)
    monkeypatch.setattr(execution, "BRIEF_SECONDS", 60)
    brief = await execute(client, await client.put_action("sleep", "0.2"))
    # The first is told once the operation is recorded: by then it runs, as a rule.
    assert len(brief) == 2
    assert metadata_of(brief[0]).stage in (stages.QUEUED, stages.EXECUTING)
    assert metadata_of(brief[1]).stage == stages.COMPLETED
    monkeypatch.setattr(execution, "BRIEF_SECONDS", 0)
    told = await execute(client, await client.put_action("sleep", "0.3"))
    assert [metadata_of(o).stage for o in told][-2:] == [stages.EXECUTING, stages.COMPLETED]


async def test_the_second_time_it_is_cached(client: Client) -> None:  # EXE-18, 19, ACG-06, 14
    digest = await client.put_action("sh", "-c", "date +%N; echo x >f", output_paths=["f"])
    first = await run(client, digest)
    second = await run(client, digest)
    assert (first.cached_result, second.cached_result) == (False, True)
    assert second.result == first.result
    get = reapi.GetActionResultRequest(
        action_digest=digest.to_proto(), inline_stdout=True, inline_output_files=["f", "none"]
    )
    cached = await client.unary(REAPI + "ActionCache/GetActionResult", get, reapi.ActionResult)
    assert cached.output_files[0].contents == b"x\n"  # ACG-07, ACG-08
    assert cached.stdout_raw
    assert cached.stdout_digest == first.result.stdout_digest
    third = await run(client, digest, skip_cache_lookup=True)
    assert not third.cached_result
    assert third.result.stdout_digest != first.result.stdout_digest
    fourth = await run(client, digest)
    assert (fourth.cached_result, fourth.result) == (True, third.result)


@pytest.mark.parametrize("how", ["exit 3", "kill -9 $$"])
async def test_failures_come_with_all_there_is_and_are_not_cached(
    client: Client, how: str
) -> None:  # RUN-15, RUN-16, ACG-12
    digest = await client.put_action(
        "sh", "-c", f"echo said; echo part >f; {how}", output_paths=["f", "never"]
    )
    for _ in range(2):
        response = await run(client, digest, inline_stdout=True)
        assert (response.status.code, response.cached_result) == (0, False)
        assert response.result.exit_code == (3 if "exit" in how else 137)
        assert response.result.stdout_raw == b"said\n"
        assert [file.path for file in response.result.output_files] == ["f"]
    get = reapi.GetActionResultRequest(action_digest=digest.to_proto())
    call = client.unary(REAPI + "ActionCache/GetActionResult", get, reapi.ActionResult)
    assert await code_of(call) is grpc.StatusCode.NOT_FOUND  # ACG-01


async def test_do_not_cache(client: Client) -> None:  # EXE-20
    digest = await client.put_action("true", do_not_cache=True)
    assert [(await run(client, digest)).cached_result for _ in range(2)] == [False, False]


async def test_missing_action_and_command(client: Client) -> None:  # EXE-03, 04, 05, 07
    absent = SHA256.digest(b"absent")
    with pytest.raises(grpc.RpcError) as info:
        await execute(client, absent)
    assert info.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert missing_subjects(status_of(info.value)) == {f"blobs/{absent}"}
    action = await client.put_message(
        reapi.Action(command_digest=absent.to_proto(), input_root_digest=SHA256.empty.to_proto())
    )
    with pytest.raises(grpc.RpcError) as info:
        await execute(client, action)
    assert missing_subjects(status_of(info.value)) == {f"blobs/{absent}"}


async def test_all_missing_inputs_are_told_at_once(client: Client) -> None:  # EXE-04, 06
    files = [SHA256.digest(name.encode()) for name in ("a", "b")]
    below = SHA256.digest(b"directory")
    root = await client.put_message(
        reapi.Directory(
            files=[
                reapi.FileNode(name=name, digest=digest.to_proto())
                for name, digest in zip("ab", files, strict=True)
            ],
            directories=[reapi.DirectoryNode(name="c", digest=below.to_proto())],
        )
    )
    command = await client.put_message(reapi.Command(arguments=["true"]))
    digest = await client.put_message(
        reapi.Action(command_digest=command.to_proto(), input_root_digest=root.to_proto())
    )
    response = await run(client, digest)
    assert response.status.code == code_pb2.FAILED_PRECONDITION
    assert missing_subjects(response.status) == {f"blobs/{d}" for d in (*files, below)}


async def test_a_timeout_keeps_what_there_was(client: Client) -> None:  # RUN-19
    digest = await client.put_action(
        "sh",
        "-c",
        "echo begun; echo part >f; sleep 100",
        output_paths=["f"],
        timeout_seconds=1,
    )
    response = await run(client, digest, inline_stdout=True)
    assert response.status.code == code_pb2.DEADLINE_EXCEEDED
    assert "1 s" in response.status.message
    assert response.result.stdout_raw == b"begun\n"
    assert [file.path for file in response.result.output_files] == ["f"]
    assert (await run(client, digest)).cached_result is False


async def test_a_program_that_is_not_there(client: Client) -> None:  # RUN-17
    response = await run(client, await client.put_action("no-such-program"))
    assert response.status.code == code_pb2.INVALID_ARGUMENT
    assert response.result.exit_code == 127
    assert "no-such-program" in response.status.message


@pytest.mark.parametrize(
    ("arguments", "command", "code"),
    [
        ((), {}, grpc.StatusCode.INVALID_ARGUMENT),  # EXE-27
        (("true",), {"output_paths": ["/abs"]}, grpc.StatusCode.INVALID_ARGUMENT),
        (("true",), {"output_paths": ["../up"]}, grpc.StatusCode.INVALID_ARGUMENT),
        (("true",), {"output_paths": ["slash/"]}, grpc.StatusCode.INVALID_ARGUMENT),
        (("true",), {"working_directory": "/"}, grpc.StatusCode.INVALID_ARGUMENT),
        (("true",), {"output_files": ["a", "a/b"]}, grpc.StatusCode.INVALID_ARGUMENT),
        (("true",), {"platform": {"Pool": "big"}}, grpc.StatusCode.FAILED_PRECONDITION),  # EXE-13
        (("true",), {"platform": {"OSFamily": "Linux"}}, grpc.StatusCode.FAILED_PRECONDITION),
        (("true",), {"platform": {"cpus": "9999"}}, grpc.StatusCode.FAILED_PRECONDITION),  # SCH-01
        (("true",), {"platform": {"memory": "1TB"}}, grpc.StatusCode.FAILED_PRECONDITION),
        (("true",), {"platform": {"memory": "big"}}, grpc.StatusCode.INVALID_ARGUMENT),
        (("true",), {"timeout_seconds": 10**7}, grpc.StatusCode.INVALID_ARGUMENT),  # EXE-10
        (("true",), {"timeout_seconds": -1}, grpc.StatusCode.INVALID_ARGUMENT),
        (("true",), {"output_node_properties": ["x"]}, grpc.StatusCode.INVALID_ARGUMENT),  # EXE-28
    ],
)
async def test_what_is_refused_at_once(  # EXE-01, EXE-16
    client: Client, arguments: tuple[str, ...], command: dict[str, object], code: grpc.StatusCode
) -> None:
    digest = await client.put_action(*arguments, **command)  # type: ignore[arg-type] # fields by name
    assert await code_of(execute(client, digest)) is code


async def test_blobs_that_are_no_actions(client: Client) -> None:  # EXE-02, EXE-08
    [garbage] = await client.put(b"\xff\xff garbage")
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert await code_of(execute(client, garbage)) is invalid
    call = client.stream(EXECUTE, reapi.ExecuteRequest(), operations_pb2.Operation)
    assert await code_of(call) is invalid


async def test_what_is_found_later_is_told_in_the_response(client: Client) -> None:  # EXE-01
    action = reapi.Action(
        command_digest=(await client.put_message(reapi.Command(arguments=["true"]))).to_proto(),
        input_root_digest=SHA256.digest(b"absent").to_proto(),
    )
    response = await run(client, await client.put_message(action))
    assert response.status.code == code_pb2.FAILED_PRECONDITION


async def test_a_digest_with_another_size_is_another_blob(client: Client) -> None:  # EXE-09
    digest = await client.put_action("true")
    other = SHA256.parse(reapi.Digest(hash=digest.hash, size_bytes=digest.size_bytes + 1))
    with pytest.raises(grpc.RpcError) as info:
        await execute(client, other)
    assert missing_subjects(status_of(info.value)) == {f"blobs/{other}"}


async def test_salt_is_part_of_the_name_and_nothing_more(client: Client) -> None:  # EXE-23
    script = ("sh", "-c", "date +%N")
    plain = await run(client, await client.put_action(*script))
    salted = await run(client, await client.put_action(*script, salt=b"s"))
    again = await run(client, await client.put_action(*script, salt=b"s"))
    assert (plain.cached_result, salted.cached_result, again.cached_result) == (False, False, True)
    assert salted.result.exit_code == 0
    assert salted.result.stdout_digest != plain.result.stdout_digest


async def test_outputs_are_named_as_the_request_is(client: Client) -> None:  # RUN-34
    script = reapi.Command(
        arguments=["sh", "-c", "echo out; echo err >&2; echo 1 >f; mkdir d; echo 2 >d/g"],
        output_paths=["f", "d"],
    ).SerializeToString()
    action = reapi.Action(
        command_digest=BLAKE3.digest(script).to_proto(),
        input_root_digest=BLAKE3.empty.to_proto(),
    ).SerializeToString()
    digest = (await client.put(script, action, function=BLAKE3))[1]
    result = (await run(client, digest, digest_function=BLAKE3.number)).result
    assert result.stdout_digest == BLAKE3.digest(b"out\n").to_proto()
    assert result.stderr_digest == BLAKE3.digest(b"err\n").to_proto()
    assert result.output_files[0].digest == BLAKE3.digest(b"1\n").to_proto()
    tree = BLAKE3.parse(result.output_directories[0].tree_digest)
    assert await client.missing(tree, function=BLAKE3) == set()
    message = reapi.Tree.FromString(await client.read(f"blobs/blake3/{tree}"))
    assert message.root.files[0].digest == BLAKE3.digest(b"2\n").to_proto()


async def test_what_an_action_gets_is_what_it_asks_for(client: Client) -> None:  # SCH-01, RUN-10
    platform = {"cpus": "0.5", "memory": "100MB", "OSFamily": "linux"}
    response = await run(client, await client.put_action("true", platform=platform))
    assert (response.status.code, response.result.exit_code) == (0, 0)


async def test_an_instance_without_executors_says_so(tmp_path: Path) -> None:  # EXE-24, CAP-01
    async with open_test_server(MEMORY_ONLY, tmp_path) as server:
        client = Client(server.address)
        answer = await client.unary(
            REAPI + "Capabilities/GetCapabilities",
            reapi.GetCapabilitiesRequest(),
            reapi.ServerCapabilities,
        )
        assert not answer.HasField("execution_capabilities")
        digest = await client.put_action("true")
        code = await code_of(execute(client, digest))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        client.channel.close()


async def test_an_idle_stream_is_told_that_nothing_changed(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # OPS-07
    assert execution.HEARTBEAT_SECONDS <= 60
    monkeypatch.setattr(execution, "HEARTBEAT_SECONDS", 0.01)
    script, _, let_on = gate(tmp_path)
    digest = await client.put_action("sh", "-c", script)
    stream = Stream(client, EXECUTE, reapi.ExecuteRequest(action_digest=digest.to_proto()))
    running = await stream.until(reapi.ExecutionStage.EXECUTING)
    assert [await stream.next() for _ in range(3)] == [running] * 3
    let_on.touch()
    await stream.until(reapi.ExecutionStage.COMPLETED)


async def test_a_dropped_client_comes_back(client: Client, tmp_path: Path) -> None:  # OPS-09, 12
    script, begun, let_on = gate(tmp_path)
    digest = await client.put_action("sh", "-c", script)
    request = reapi.ExecuteRequest(action_digest=digest.to_proto())
    first = Stream(client, EXECUTE, request)
    operation = await first.until(reapi.ExecutionStage.EXECUTING)
    wait = reapi.WaitExecutionRequest(name=operation.name)
    waiters = [Stream(client, REAPI + "Execution/WaitExecution", wait) for _ in range(20)]
    for waiter in waiters:
        assert metadata_of(await waiter.next()).stage == reapi.ExecutionStage.EXECUTING
    first.drop()
    waiters.pop().drop()
    await exists(begun)
    let_on.touch()
    ends = [await waiter.until(reapi.ExecutionStage.COMPLETED) for waiter in waiters]
    ended = ends[0]
    assert ends == [ended] * 19
    assert response_of(ended).result.exit_code == 0
    late = await client.stream(REAPI + "Execution/WaitExecution", wait, operations_pb2.Operation)
    assert late == [ended]


async def test_cancelled_by_its_client(client: Client, tmp_path: Path) -> None:  # OPS-08
    script, begun, _ = gate(tmp_path)
    digest = await client.put_action("sh", "-c", script)
    stream = Stream(client, EXECUTE, reapi.ExecuteRequest(action_digest=digest.to_proto()))
    operation = await stream.until(reapi.ExecutionStage.EXECUTING)
    await exists(begun)
    stream.drop()
    with trio.fail_after(20):
        while is_alive(begun):
            await trio.sleep(0.02)
    get = operations_pb2.GetOperationRequest(name=operation.name)
    found = await client.unary(OPERATIONS + "GetOperation", get, operations_pb2.Operation)
    assert response_of(found).status.code == code_pb2.CANCELLED


async def test_cancelled_by_operation(client: Client, tmp_path: Path) -> None:  # OPS-17, 18
    script, begun, _ = gate(tmp_path)
    digest = await client.put_action("sh", "-c", script)
    stream = Stream(client, EXECUTE, reapi.ExecuteRequest(action_digest=digest.to_proto()))
    operation = await stream.until(reapi.ExecutionStage.EXECUTING)
    await exists(begun)
    cancel = operations_pb2.CancelOperationRequest(name=operation.name)
    await client.unary(OPERATIONS + "CancelOperation", cancel, Empty)
    ended = await stream.until(reapi.ExecutionStage.COMPLETED)
    assert response_of(ended).status.code == code_pb2.CANCELLED
    with trio.fail_after(20):
        while is_alive(begun):
            await trio.sleep(0.02)
    await client.unary(OPERATIONS + "CancelOperation", cancel, Empty)
    unknown = operations_pb2.CancelOperationRequest(name="operations/none")
    call = client.unary(OPERATIONS + "CancelOperation", unknown, Empty)
    assert await code_of(call) is grpc.StatusCode.NOT_FOUND


async def test_identical_actions_in_flight_run_once(
    client: Client, tmp_path: Path
) -> None:  # EXE-21
    script, begun, let_on = gate(tmp_path)
    count = tmp_path / "count"
    digest = await client.put_action("sh", "-c", f"echo x >>{count}; {script}")
    request = reapi.ExecuteRequest(action_digest=digest.to_proto())
    streams = [Stream(client, EXECUTE, request) for _ in range(5)]
    operations = [await s.until(reapi.ExecutionStage.EXECUTING) for s in streams]
    assert len({operation.name for operation in operations}) == 5
    streams.pop().drop()
    await exists(begun)
    let_on.touch()
    for stream in streams:
        ended = await stream.until(reapi.ExecutionStage.COMPLETED)
        assert response_of(ended).result.exit_code == 0
    assert count.read_text() == "x\n"


async def test_priority_reaches_the_queue(client: Client, tmp_path: Path) -> None:  # EXE-17
    script, begun, let_on = gate(tmp_path)
    order = tmp_path / "order"
    blockers = [
        Stream(
            client,
            EXECUTE,
            reapi.ExecuteRequest(
                action_digest=(await client.put_action("sh", "-c", f": {i}; {script}")).to_proto()
            ),
        )
        for i in range(4)
    ]
    for blocker in blockers:
        await blocker.until(reapi.ExecutionStage.EXECUTING)
    waiting = []
    for priority in (9, 0, -9, 5):
        # Under a lock, as the four slots begin together.
        script = f"flock {order}.lock sh -c 'echo {priority} >>{order}'"
        digest = await client.put_action("sh", "-c", script)
        request = reapi.ExecuteRequest(
            action_digest=digest.to_proto(),
            execution_policy=reapi.ExecutionPolicy(priority=priority),
        )
        waiting.append(Stream(client, EXECUTE, request))
        await waiting[-1].next()
    await exists(begun)
    let_on.touch()
    starts = []
    for stream in waiting:
        result = response_of(await stream.until(reapi.ExecutionStage.COMPLETED)).result
        starts.append(result.execution_metadata.worker_start_timestamp.ToNanoseconds())
    assert sorted(range(4), key=starts.__getitem__) == [2, 1, 3, 0]


async def test_a_thousand_streams_take_no_threads(client: Client, tmp_path: Path) -> None:
    script, begun, let_on = gate(tmp_path)
    digest = await client.put_action("sh", "-c", script)
    request = reapi.ExecuteRequest(action_digest=digest.to_proto())
    first = Stream(client, EXECUTE, request)
    await first.until(reapi.ExecutionStage.EXECUTING)
    await exists(begun)

    def threads_of_the_server() -> int:
        # grpcio's client adds threads to this same process; they are told by their names.
        return sum(thread.name.startswith("grpc-server") for thread in threading.enumerate())

    before = threads_of_the_server()
    streams = [Stream(client, EXECUTE, request) for _ in range(1000)]
    for stream in streams:
        await stream.next()
    assert threads_of_the_server() == before
    let_on.touch()
    for stream in (first, *streams):  # OPS-22
        ended = await stream.until(reapi.ExecutionStage.COMPLETED)
        assert response_of(ended).result.exit_code == 0
