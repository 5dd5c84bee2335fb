"""Actions executed through the front door, for tests: whole, or read step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import trio
from google.longrunning import operations_pb2

from stoker.digest import Digest
from stoker.protos import remote_execution_pb2 as reapi

from .conftest import REAPI, Client

EXECUTE = REAPI + "Execution/Execute"


async def execute(
    client: Client, digest: Digest, **request: object
) -> list[operations_pb2.Operation]:
    """Every message of an Execute stream."""
    return await client.stream(
        EXECUTE,
        reapi.ExecuteRequest(action_digest=digest.to_proto(), **request),  # type: ignore[arg-type] # fields by name
        operations_pb2.Operation,
    )


def metadata_of(operation: operations_pb2.Operation) -> reapi.ExecuteOperationMetadata:
    metadata = reapi.ExecuteOperationMetadata()
    assert operation.metadata.Unpack(metadata)
    return metadata


def response_of(operation: operations_pb2.Operation) -> reapi.ExecuteResponse:
    assert operation.done
    assert not operation.HasField("error")  # EXE-01
    response = reapi.ExecuteResponse()
    assert operation.response.Unpack(response)  # OPS-04
    return response


async def run(client: Client, digest: Digest, **request: object) -> reapi.ExecuteResponse:
    """How an action ended."""
    return response_of((await execute(client, digest, **request))[-1])


class Stream:
    """An Execute stream that is read step by step, and may be dropped."""

    def __init__(self, client: Client, method: str, request: object) -> None:
        call: Callable[..., grpc.Call] = client.channel.unary_stream(
            method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=operations_pb2.Operation.FromString,
        )
        self.call = call(request)

    async def next(self) -> operations_pb2.Operation:
        operation: operations_pb2.Operation = await trio.to_thread.run_sync(next, self.call)
        return operation

    async def until(self, stage: int) -> operations_pb2.Operation:
        while True:
            operation = await self.next()
            if metadata_of(operation).stage == stage:
                return operation

    def drop(self) -> None:
        self.call.cancel()


def gate(folder: Path) -> tuple[str, Path, Path]:
    """A shell command that tells its process id and waits to be let on, and both files for it."""
    begun, let_on = folder / "begun", folder / "let-on"
    tell = f"echo $$ >{begun}.part; mv {begun}.part {begun}"
    script = f"{tell}; while [ ! -e {let_on} ]; do sleep 0.02; done"
    return script, begun, let_on


async def exists(path: Path) -> None:
    while not path.exists():
        await trio.sleep(0.01)


def is_alive(begun: Path) -> bool:
    return Path(f"/proc/{begun.read_text().strip()}").exists()
