"""A whole server whose actions, and persistent workers, run in containers."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stoker.client import RemoteInstance, open_remote
from stoker.digest import SHA256
from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import EXECUTING, ServerUnderTest, open_test_server
from tests.docker_engine import BUSYBOX, PYTHON
from tests.end_to_end.actions import Tree, action_blobs

TOOL = Path(__file__).parents[2] / "core" / "workers" / "tool.py"
WORKER = {"persistentWorkerKey": "key", "persistentWorkerProtocol": "proto"}


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not in pytest's own folder, which no other user may enter.
    with tempfile.TemporaryDirectory(prefix="stoker-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@asynccontextmanager
async def open_server(
    endpoint: str, folder: Path, settings: str = ""
) -> AsyncIterator[tuple[ServerUnderTest, RemoteInstance]]:
    strategy = f"""
[strategies.boxes]
kind = "docker"
endpoint = "{endpoint}"
default_image = "{BUSYBOX}"
pull = "never"
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
            said = response.result.stderr_raw or await remote.read_blob(
                SHA256.parse(response.result.stderr_digest)
            )
            reports.append(json.loads(said))
        assert [report["count"] for report in reports] == [1, 2, 3]
        assert len({report["pid"] for report in reports}) == 1
        # Its number in a container, where there is hardly anybody else.
        assert reports[0]["pid"] < 1000


async def test_a_worker_that_may_not_be_kept_is_none(endpoint: str, folder: Path) -> None:
    async with open_server(endpoint, folder) as (_, remote):
        response = await run(
            remote,
            *("sh", "-c", "echo one-shot", "sh", "@flags"),
            files=request(1),
            container_image=f"docker://{PYTHON}",
            **WORKER,
        )
        assert response.result.exit_code == 0
        assert "dockerReuse" in response.message


@pytest.mark.parametrize("keep", ["always", "never"])
async def test_actions_have_inputs_and_outputs_and_leave_nothing(  # ISO-04
    endpoint: str, folder: Path, keep: str
) -> None:
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
        refused = await run(remote, "true", files={}, dockerPrivileged="true")
        assert "dockerPrivileged" in refused.status.message
    if os.geteuid() == 0:
        assert not list((folder / "executors").rglob("*made*"))
