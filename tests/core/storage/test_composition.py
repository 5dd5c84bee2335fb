"""Stores named and nested in TOML, as a whole server."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from stoker.client import open_remote
from stoker.config import check_document
from stoker.errors import ConfigurationError
from stoker.plugins import load_catalogue
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import RpcError, open_channel
from stoker.testing.blob_store_laws import blob
from stoker.testing.server import MEMORY_ONLY, open_test_server

NESTED = """
[blob_stores.memory]
kind = "memory"
[blob_stores.other]
kind = "remote"
target = "grpc://{address}"
[blob_stores.known]
kind = "existence"
of = "other"
seconds = 5.0
[blob_stores.both]
kind = "tiered"
near = "memory"
far = "known"
writes = "{writes}"
[blob_stores.window]
kind = "read-only"
of = "both"
[action_caches.memory]
kind = "memory"
[action_caches.other]
kind = "remote"
target = "{address}"
[action_caches.both]
kind = "tiered"
near = "memory"
far = "other"
[instances.""]
blob_store = "both"
action_cache = "both"
[instances.window]
blob_store = "window"
action_cache = "both"
"""


@pytest.mark.parametrize("writes", ["through", "back", "near-only"])
async def test_a_server_in_front_of_another(tmp_path: Path, writes: str) -> None:  # STO-07
    here, data = blob("written here", 3_000_000)
    there, other = blob("written there", 3_000_000)
    async with open_test_server(MEMORY_ONLY, tmp_path / "far") as far:
        toml = NESTED.format(address=far.address, writes=writes)
        async with (
            open_test_server(toml, tmp_path / "near") as near,
            open_remote(far.address) as behind,
            open_remote(near.address) as front,
            open_remote(near.address, "window") as window,
        ):
            await behind.upload_blobs({there: other})
            assert await front.find_missing([here, there]) == {here}
            await front.upload_blobs({here: data})
            assert await front.read_blob(there) == other
            assert await window.read_blob(here) == data
            small, few = blob("refused", 10)
            with pytest.raises(RpcError, match="read-only"):
                await window.upload_blobs({small: few})
        async with open_remote(far.address) as behind:
            assert await behind.find_missing([here]) == ({here} if writes == "near-only" else set())


async def test_results_of_another_server(tmp_path: Path) -> None:
    action, _ = blob("an action", 50)
    async with (
        open_test_server(MEMORY_ONLY, tmp_path / "far") as far,
        open_test_server(
            NESTED.format(address=far.address, writes="through"), tmp_path / "near"
        ) as near,
        open_remote(far.address) as behind,
        open_remote(near.address) as front,
    ):
        assert await front.action_result(action) is None
        await update(far.address, action.to_proto())
        assert await front.action_result(action) == await behind.action_result(action)
        assert await behind.action_result(action) is not None


async def update(address: str, action: reapi.Digest) -> None:
    async with open_channel(address) as channel:
        await channel.unary_unary(
            "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
            reapi.UpdateActionResultRequest(
                action_digest=action, action_result=reapi.ActionResult(stdout_raw=b"hello")
            ),
            reapi.ActionResult,
        )


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('kind = "tiered"\nnear = "x"\nfar = "main"', "circle"),
        ('kind = "tiered"\nnear = "main"\nfar = "main"\nwrites = "never"', "writes"),
        ('kind = "tiered"\nnear = "main"\nfar = "nope"', "[blob_stores.nope]"),
        ('kind = "existence"\nof = "main"\nseconds = 0', "seconds"),
        ('kind = "remote"', "target"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, table: str, problem: str) -> None:
    document = tomllib.loads(f"{MEMORY_ONLY}\n[blob_stores.x]\n{table}\n")
    with pytest.raises(ConfigurationError) as info:
        check_document(document, tmp_path, load_catalogue())
    assert problem in "\n".join(info.value.problems)
