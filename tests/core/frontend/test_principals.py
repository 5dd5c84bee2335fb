"""Clients that are known by their certificates: what is theirs, and how much of it there may be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme
from google.longrunning import operations_pb2 as operations
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from stoker.client import RemoteInstance, open_remote
from stoker.digest import SHA256, Digest
from stoker.frontend.provenance import read_provenance
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import (
    Channel,
    ClientStream,
    ClientTlsCredentials,
    RpcError,
    StatusCode,
    open_channel,
)
from stoker.testing.server import EXECUTING, open_test_server

from .conftest import OPERATIONS, REAPI
from .executing import EXECUTE, exists, gate, metadata_of, response_of

AUTHORITY = trustme.CA()
SERVER = AUTHORITY.issue_cert("127.0.0.1")
ALICE, BOB = (AUTHORITY.issue_cert("127.0.0.1", common_name=name) for name in ("alice", "bob"))
MUTUAL = EXECUTING.replace("slots = 4", "slots = 1") + (
    'tls_certificate = "server.pem"\ntls_key = "server.key"\ntls_client_ca = "ca.pem"\n'
)
LIMITED = MUTUAL + "[scheduler]\nmax_queued_per_principal = 1\n"


def shown_by(client: trustme.LeafCert) -> ClientTlsCredentials:
    return ClientTlsCredentials(
        AUTHORITY.cert_pem.bytes(),
        client.cert_chain_pems[0].bytes(),
        client.private_key_pem.bytes(),
    )


@asynccontextmanager
async def serving(toml: str, folder: Path) -> AsyncIterator[tuple[Channel, Channel, str]]:
    """Alice's channel, Bob's, and the address."""
    AUTHORITY.cert_pem.write_to_path(folder / "ca.pem")
    SERVER.private_key_pem.write_to_path(folder / "server.key")
    SERVER.cert_chain_pems[0].write_to_path(folder / "server.pem")
    async with (
        open_test_server(toml, folder) as server,
        open_channel(server.address, credentials=shown_by(ALICE)) as alice,
        open_channel(server.address, credentials=shown_by(BOB)) as bob,
    ):
        yield alice, bob, server.address


async def put_action(remote: RemoteInstance, *arguments: str) -> Digest:
    command = reapi.Command(arguments=arguments).SerializeToString()
    action = reapi.Action(
        command_digest=SHA256.digest(command).to_proto(),
        input_root_digest=SHA256.empty.to_proto(),
    ).SerializeToString()
    await remote.upload_blobs({SHA256.digest(blob): blob for blob in (command, action, b"")})
    return SHA256.digest(action)


@asynccontextmanager
async def executing(
    channel: Channel, digest: Digest
) -> AsyncIterator[ClientStream[operations.Operation]]:
    async with channel.open_stream(EXECUTE, operations.Operation) as stream:
        await stream.send(reapi.ExecuteRequest(action_digest=digest.to_proto()))
        await stream.send_eof()
        yield stream


async def until(stream: ClientStream[operations.Operation], stage: int) -> operations.Operation:
    while True:
        operation = await stream.receive()
        assert operation is not None
        if metadata_of(operation).stage == stage:
            return operation


async def error_of(call: Awaitable[object]) -> RpcError:
    with pytest.raises(RpcError) as info:
        await call
    return info.value


async def listed(channel: Channel, filter_: str = "") -> list[str]:
    request = operations.ListOperationsRequest(name="operations", filter=filter_)
    page = await channel.unary_unary(
        OPERATIONS + "ListOperations", request, operations.ListOperationsResponse
    )
    return [operation.name for operation in page.operations]


async def test_operations_of_others_are_not_there(tmp_path: Path) -> None:  # SEC-06, OPS-20
    script, begun, let_on = gate(tmp_path)
    async with serving(MUTUAL, tmp_path) as (alice, bob, address):
        async with open_remote(f"grpcs://{address}", credentials=shown_by(ALICE)) as remote:
            digest = await put_action(remote, "sh", "-c", script)
        stages = reapi.ExecutionStage
        async with AsyncExitStack() as streams:
            hers = await streams.enter_async_context(executing(alice, digest))
            name = (await until(hers, stages.EXECUTING)).name
            his = await streams.enter_async_context(executing(bob, digest))
            other = (await until(his, stages.EXECUTING)).name
            # They share the run (EXE-21), but neither's operation is the other's.
            assert name != other
            assert await listed(alice) == [name]
            assert await listed(bob) == [other]
            assert await listed(alice, "principal = alice") == [name]
            assert await listed(alice, "principal = bob") == []
            requests: list[tuple[str, Message, type[Message]]] = [
                ("Get", operations.GetOperationRequest(name=name), operations.Operation),
                ("Wait", operations.WaitOperationRequest(name=name), operations.Operation),
                ("Cancel", operations.CancelOperationRequest(name=name), Empty),
                ("Delete", operations.DeleteOperationRequest(name=name), Empty),
            ]
            unknown = name[:-1] + ("1" if name[-1] == "0" else "0")
            for method, request, answer in requests:
                call = f"{OPERATIONS}{method}Operation"
                error = await error_of(bob.unary_unary(call, request, answer))
                assert error.code is StatusCode.NOT_FOUND
                # Not even the words tell it from one that never was.
                request.name = unknown  # type: ignore[attr-defined] # all of them have one
                never = await error_of(bob.unary_unary(call, request, answer))
                assert error.message.replace(name, unknown) == never.message
            method = REAPI + "Execution/WaitExecution"
            async with bob.open_stream(method, operations.Operation) as stream:
                await stream.send(reapi.WaitExecutionRequest(name=name))
                await stream.send_eof()
                assert (await error_of(stream.receive())).code is StatusCode.NOT_FOUND
            await exists(begun)
            let_on.touch()
            for stream in (hers, his):
                ended = await until(stream, stages.COMPLETED)
                result = response_of(ended).result
                assert result.exit_code == 0
                provenance = read_provenance(result)
                assert provenance is not None
                assert provenance.principal == "alice"  # ACU-12


async def test_each_client_has_its_own_limit(tmp_path: Path) -> None:  # EXE-25
    script, _, let_on = gate(tmp_path)
    stages = reapi.ExecutionStage
    async with serving(LIMITED, tmp_path) as (alice, bob, address):
        async with open_remote(f"grpcs://{address}", credentials=shown_by(ALICE)) as remote:
            first, second, third = [
                await put_action(remote, "sh", "-c", f": {i}; {script}") for i in range(3)
            ]
        async with executing(alice, first) as running:
            await until(running, stages.EXECUTING)
            async with executing(alice, second) as waiting:
                await until(waiting, stages.QUEUED)
                async with executing(alice, third) as refused:
                    error = await error_of(refused.receive())
                assert error.code is StatusCode.RESOURCE_EXHAUSTED
                assert "1 actions are queued of client 'alice' already" in error.message
                assert "`max_queued_per_principal` in [scheduler]" in error.message
                [retry] = error.details
                assert isinstance(retry, error_details_pb2.RetryInfo)
                assert retry.retry_delay.ToNanoseconds() > 0
                async with executing(bob, third) as another:
                    await until(another, stages.QUEUED)
                    let_on.touch()
                    with trio.fail_after(60):
                        for stream in (running, waiting, another):
                            await until(stream, stages.COMPLETED)
        async with executing(alice, third) as again:
            assert response_of(await until(again, stages.COMPLETED)).cached_result
