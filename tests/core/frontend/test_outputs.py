"""Outputs that are too much, through the front door (section 15)."""

from __future__ import annotations

from pathlib import Path

from google.longrunning import operations_pb2
from google.rpc import code_pb2

from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import open_test_server

from .conftest import REAPI, Client

ON_DISK = """
[blob_stores.main]
kind = "disk"
path = "blobs"
[action_caches.main]
kind = "memory"
[instances.""]
blob_store = "main"
action_cache = "main"
executors = ["local"]
max_blob_bytes = 1_000_000
[executors.local]
strategy = "local"
slots = 1
limits = { max_output_bytes = 2_000_000, max_output_files = 4 }
[server]
drain_seconds = 0.5
state_directory = "state"
"""


async def run(client: Client, script: str) -> reapi.ExecuteResponse:
    digest = await client.put_action("sh", "-c", script, output_paths=["d"])
    request = reapi.ExecuteRequest(action_digest=digest.to_proto())
    messages = await client.stream(REAPI + "Execution/Execute", request, operations_pb2.Operation)
    response = reapi.ExecuteResponse()
    assert messages[-1].response.Unpack(response)
    return response


async def test_limits_on_outputs(tmp_path: Path) -> None:
    # OUT-22, OUT-24, OUT-25
    async with open_test_server(ON_DISK, tmp_path) as server:
        client = Client(server.address)
        response = await run(client, "mkdir -p d; head -c 1000000 /dev/zero > d/f; cat d/f")
        assert response.status.code == code_pb2.OK
        digest = response.result.stdout_digest
        assert await client.read(f"blobs/{digest.hash}/{digest.size_bytes}") == bytes(1_000_000)
        for script, words in {
            "mkdir -p d; truncate -s 1000001 d/f": ["d/f", "1000001", "max_blob_bytes"],
            "mkdir -p d; for n in 1 2 3; do truncate -s 900000 d/$n; done": ["max_output_bytes"],
            "mkdir -p d; touch d/1 d/2 d/3 d/4": ["d/4", "max_output_files"],
        }.items():
            response = await run(client, script)
            assert response.status.code == code_pb2.FAILED_PRECONDITION
            for word in (*words, "executor local"):
                assert word in response.status.message
            assert not response.result.output_directories
        client.channel.close()
