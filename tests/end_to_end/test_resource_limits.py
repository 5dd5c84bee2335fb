"""Limits through the whole server: what is asked for is what an action gets, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from google.protobuf.struct_pb2 import Struct

from stoker.client import RemoteInstance, open_remote
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import EXECUTING, open_test_server

TOML = EXECUTING.replace(
    "limits = {", 'memory_bytes = "1GiB"\nlimits = { max_processes = 100, enforce_cpus = true, '
).replace('action_cache = "main"', 'action_cache = "main"\ncache_failures = true')
GREEDY = "x = bytearray(2**20); y = [bytearray(b'1' * 2**20) for _ in range(400)]"


async def put_action(remote: RemoteInstance, *arguments: str, **platform: str) -> Digest:
    command = reapi.Command(arguments=arguments).SerializeToString()
    action = reapi.Action(
        command_digest=SHA256.digest(command).to_proto(),
        input_root_digest=SHA256.empty.to_proto(),
        platform=reapi.Platform(
            properties=[
                reapi.Platform.Property(name=name, value=value)
                for name, value in sorted(platform.items())
            ]
        ),
    ).SerializeToString()
    await remote.upload_blobs({SHA256.digest(data): data for data in (command, action)})
    return SHA256.digest(action)


def facts_of(response: reapi.ExecuteResponse) -> dict[str, object]:
    facts: dict[str, object] = {}
    for told in response.result.execution_metadata.auxiliary_metadata:
        message = Struct()
        if told.Unpack(message):  # the provenance of a result is beside it
            facts |= dict(message.items())
    return facts


async def test_an_action_that_takes_more_memory_than_it_asks_for(tmp_path: Path) -> None:
    # RUN-23, RUN-29, ISO-06
    with structlog.testing.capture_logs() as logs:
        async with (
            open_test_server(TOML, tmp_path) as server,
            open_remote(server.address) as remote,
        ):
            [told] = [entry for entry in logs if entry["event"] == "executor opens"]
            if "memory limits are enforced by control groups" not in told["enforcement"]:
                pytest.skip("this machine, or this strategy, has no limit of memory for all")
            greedy = await put_action(remote, "/usr/bin/python3", "-c", GREEDY, memory="100MiB")
            for _ in range(2):
                response = await remote.run(greedy)
                assert (response.status.code, response.cached_result) == (0, False)
                assert response.result.exit_code == 137
                assert "on executor local: out of memory" in response.message
                assert "104857600" in response.message
                assert "out of memory" in str(facts_of(response)["breach"])
            more = await put_action(remote, "/usr/bin/python3", "-c", GREEDY, memory="900MiB")
            response = await remote.run(more)
            assert (response.result.exit_code, response.message) == (0, "")
            assert float(str(facts_of(response)["peak_memory_bytes"])) > 400 * 2**20
            assert server.running.scheduler.free("local").memory_bytes == 2**30
