"""A whole server whose actions, and persistent workers, run in containers."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from google.longrunning import operations_pb2
from google.protobuf.struct_pb2 import Struct

from stoker.client import RemoteInstance, open_remote, response_of
from stoker.digest import SHA256
from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import EXECUTING, ServerUnderTest, open_test_server
from tests.docker_engine import BUSYBOX, PYTHON
from tests.end_to_end.actions import Tree, action_blobs
from tests.end_to_end.test_resource_limits import facts_of

from .registry import open_registry

TESTS = Path(__file__).parents[2]
TOOL = TESTS / "core" / "workers" / "tool.py"
MULTIPLEX_TOOL = TESTS / "core" / "execution" / "multiplex_tool.py"
WORKER = {"persistentWorkerKey": "key", "persistentWorkerProtocol": "proto"}
SINGLEPLEX = {**WORKER, "persistentWorkerProtocol": "json"}
MULTIPLEX = {**SINGLEPLEX, "supports-multiplex-workers": "1"}
SANDBOXED = {**MULTIPLEX, "supports-multiplex-sandboxing": "1"}


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not in pytest's own folder, which no other user may enter.
    with tempfile.TemporaryDirectory(prefix="stoker-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@asynccontextmanager
async def open_server(
    endpoint: str, folder: Path, settings: str = "", pull: str = "never"
) -> AsyncIterator[tuple[ServerUnderTest, RemoteInstance]]:
    strategy = f"""
[strategies.boxes]
kind = "docker"
endpoint = "{endpoint}"
default_image = "{BUSYBOX}"
pull = "{pull}"
{settings}
"""
    toml = EXECUTING.replace('strategy = "local"', 'strategy = "boxes"')
    names = ("container-image", "dockerReuse", "dockerPrivileged")
    offered = ", ".join(f'{name} = "*"' for name in names)
    toml = toml.replace('OSFamily = "linux"', f'OSFamily = "linux", {offered}') + strategy
    async with open_test_server(toml, folder) as server, open_remote(server.address) as remote:
        yield server, remote


async def run(
    remote: RemoteInstance, *arguments: str, files: dict[str, bytes], **platform: str
) -> reapi.ExecuteResponse:
    root, blobs = Tree(dict(files)).blobs()
    properties = {name.replace("_", "-"): value for name, value in platform.items()}
    digest, more = action_blobs(arguments, root, outputs=["out"], platform=properties)
    await remote.upload_blobs(blobs | more)
    return await remote.run(digest)


async def stderr_of(remote: RemoteInstance, response: reapi.ExecuteResponse) -> bytes:
    result = response.result
    return result.stderr_raw or await remote.read_blob(SHA256.parse(result.stderr_digest))


async def output_of(remote: RemoteInstance, response: reapi.ExecuteResponse) -> bytes:
    (file,) = response.result.output_files
    return await remote.read_blob(SHA256.parse(file.digest))


def request(number: int) -> dict[str, bytes]:
    return {"tool.py": TOOL.read_bytes(), "flags": b"report", "input": str(number).encode()}


async def test_a_worker_in_a_container_serves_one_action_after_another(  # PWK-03
    endpoint: str, folder: Path
) -> None:
    async with open_server(endpoint, folder) as (_, remote):
        reports = []
        for number in range(3):
            response = await run(
                remote,
                *("python3", "-IS", "tool.py", "@flags"),
                files=request(number),
                container_image=f"docker://{PYTHON}",
                dockerReuse="True",
                **WORKER,
            )
            assert response.result.exit_code == 0, response
            reports.append(json.loads(await stderr_of(remote, response)))
        assert [report["count"] for report in reports] == [1, 2, 3]
        assert len({report["pid"] for report in reports}) == 1
        # Its number in a container, where there is hardly anybody else.
        assert reports[0]["pid"] < 1000


@pytest.mark.parametrize("platform", [SINGLEPLEX, MULTIPLEX, SANDBOXED])
async def test_every_kind_of_worker_serves_in_a_container(  # PWK-13, PWK-14
    endpoint: str, folder: Path, platform: dict[str, str]
) -> None:
    async with open_server(endpoint, folder) as (_, remote):
        said: list[list[str]] = []

        async def run_one(number: int) -> None:
            # Where several are served at a time, they wait for each other.
            meeting = ["meet /tmp 2"] if platform is not SINGLEPLEX else []
            lines = ["pid", "where", f"write out {number}", "list", *meeting]
            response = await run(
                remote,
                *("python3", "-IS", "tool.py", f"@flags{number}"),
                files={
                    "tool.py": MULTIPLEX_TOOL.read_bytes(),
                    f"flags{number}": "\n".join(lines).encode(),
                },
                container_image=PYTHON,
                dockerReuse="True",
                **platform,
            )
            assert (response.message, response.result.exit_code) == ("", 0), response
            assert (await output_of(remote, response)) == str(number).encode()
            said.append((await stderr_of(remote, response)).decode().split("\n"))

        async with trio.open_nursery() as nursery:
            for number in range(1 if platform is SINGLEPLEX else 2):
                nursery.start_soon(run_one, number)
        assert len({pid for pid, *_ in said}) == 1
        folders = {where for _, where, *_ in said}
        assert folders == ({"__sandbox/1", "__sandbox/2"} if platform is SANDBOXED else {"."})


@pytest.mark.parametrize(
    ("settings", "rule", "reuse", "reason"),
    [
        ("", "", "False", "dockerReuse"),
        ("", "keep_containers = true", "False", ""),
        ('keep_containers = "always"', "", "False", ""),
        ('keep_containers = "never"', "keep_containers = true", "True", "never kept"),
    ],
)
async def test_who_decides_whether_a_worker_has_a_container(  # PWK-03
    endpoint: str, folder: Path, settings: str, rule: str, reuse: str, reason: str
) -> None:
    worker_rule = f"[[executors.local.workers.rules]]\n{rule}"
    async with open_server(endpoint, folder, f"{settings}\n{worker_rule}") as (_, remote):
        response = await run(
            remote,
            *("python3", "-IS", "tool.py", "@flags"),
            files=request(1),
            container_image=f"docker://{PYTHON}",
            dockerReuse=reuse,
            **WORKER,
        )
        facts = facts_of(response)
        assert str(facts["container_image"]).startswith("sha256:")
        if reason:
            assert response.result.exit_code == 2  # as it is without the flag for a worker
            assert reason in response.message
            assert reason in str(facts["one_shot_reason"])
        else:
            assert (response.result.exit_code, response.message) == (0, "")
            assert facts["worker_key"] == "miss"
            # One that is kept only as long as its worker is made for it alone.
            kept = os.geteuid() == 0 and "always" in settings
            assert facts["container"] == ("kept" if kept else "own")


async def test_how_a_pull_goes_on_is_told_to_who_waits(  # ISO-02
    endpoint: str, folder: Path
) -> None:
    with open_registry() as registry:
        name = registry.publish("tools/slow:1", "whole")
        registry.gate.clear()
        async with open_server(endpoint, folder, pull="missing") as (_, remote):
            root, blobs = Tree({}).blobs()
            platform = {"container-image": name}
            digest, more = action_blobs(("cat", "/said"), root, platform=platform)
            await remote.upload_blobs(blobs | more)
            async with remote.execute(digest) as operations:
                async for operation in operations:
                    if operation.done:
                        break
                    if told := _progress(operation):
                        assert told["pulling_image"] == name
                        assert told["pulled_bytes"] == 0
                        registry.gate.set()
        response = response_of(operation)
        assert response.result.exit_code == 0
        assert registry.gate.is_set()
        assert facts_of(response)["container"] == "own"
        assert "pulling_image" not in facts_of(response)


def _progress(operation: operations_pb2.Operation) -> dict[str, object]:
    metadata = reapi.ExecuteOperationMetadata()
    operation.metadata.Unpack(metadata)
    for entry in metadata.partial_execution_metadata.auxiliary_metadata:
        facts = Struct()
        if entry.Unpack(facts) and "pulling_image" in facts:
            return dict(facts)
    return {}


@pytest.mark.parametrize("keep", ["always", "never"])
async def test_actions_have_inputs_and_outputs_and_leave_nothing(  # ISO-04
    endpoint: str, folder: Path, keep: str
) -> None:
    kept = keep == "always" and os.geteuid() == 0
    async with open_server(endpoint, folder, f'keep_containers = "{keep}"') as (_, remote):
        text = "cat input; id -u >&2; mkdir -p out/private && echo made > out/private/file"
        for number in range(3):
            response = await run(
                remote,
                *("sh", "-c", f"{text}; chmod 700 out/private; chmod 600 out/private/file"),
                files={"input": str(number).encode()},
            )
            assert response.result.exit_code == 0, response
            assert response.result.output_directories[0].path == "out"
            assert facts_of(response)["container"] == ("kept" if kept else "own")
        refused = await run(remote, "true", files={}, dockerPrivileged="true")
        assert "dockerPrivileged" in refused.status.message
    if os.geteuid() == 0:
        assert not list((folder / "executors").rglob("*made*"))
