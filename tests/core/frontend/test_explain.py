"""What the Explain service says of actions, through the front door (RUN-27…29)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trio

from stoker.digest import Digest
from stoker.protos import explain_pb2 as explain
from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import EXECUTING, open_test_server

from .conftest import REAPI, Client, code_of
from .test_execution import EXECUTE, execute, run

EXPLAIN = "/stoker.v1.Explain/ExplainAction"
METADATA = "build.bazel.remote.execution.v2.requestmetadata-bin"


async def explanation_of(client: Client, action: Digest | str, **fields: object) -> explain.Explanation:
    request = explain.ExplainActionRequest(action=str(action), **fields)  # type: ignore[arg-type] # fields by name
    return await client.unary(EXPLAIN, request, explain.Explanation)


def differences(explanation: explain.Explanation) -> set[tuple[str, str, str, str, str]]:
    return {
        (d.part, d.change, d.name, d.before, d.after)
        for d in explanation.nearest_earlier.differences
    }


async def test_x(client: Client) -> None:
    one = await client.put_action("sh", "-c", "cat in >out", files={"in": b"1"}, output_paths=["out"])
    two = await client.put_action("sh", "-c", "cat in >out", files={"in": b"2"}, output_paths=["out"])
    await run(client, one)
    await run(client, two)
    print(await explanation_of(client, one))
    print(await explanation_of(client, two))
    assert 0
