"""`stoker operations` as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from stoker.client import open_remote
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import EXECUTING, open_test_server

Done = subprocess.CompletedProcess[str]

# What scripts may rely on: docs/guides/operations.md.
KEYS = {
    *("name", "stage", "done", "action", "digest_function", "queued", "executor"),
    *("cached_result", "exit_code", "status", "message"),
}


def stoker_operations(server: str, instance: str) -> Callable[..., Awaitable[Done]]:
    """Type that, for this server."""

    async def run(command: str, *words: str) -> Done:
        where = ["--server", f"grpc://{server}", "--instance", instance]
        done = await trio.run_process(
            [sys.executable, "-m", "stoker", "operations", command, *where, *words],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run


def action_of(*arguments: str) -> tuple[Digest, dict[Digest, bytes]]:
    command = reapi.Command(arguments=arguments).SerializeToString()
    action = reapi.Action(
        command_digest=SHA256.digest(command).to_proto(),
        input_root_digest=SHA256.empty.to_proto(),
    ).SerializeToString()
    return SHA256.digest(action), {SHA256.digest(b): b for b in (command, action, b"")}


async def test_operations_are_listed_shown_and_cancelled(tmp_path: Path) -> None:
    instance = "a/b"
    toml = EXECUTING.replace('[instances.""]', f'[instances."{instance}"]')
    (tmp_path / "state").mkdir()
    async with (
        open_test_server(toml, tmp_path / "state") as server,
        open_remote(f"grpc://{server.address}", instance) as remote,
    ):
        operations = stoker_operations(server.address, instance)
        quick, blobs = action_of("sh", "-c", "exit 3")
        slow, more = action_of("sleep", "1000")
        await remote.upload_blobs({**blobs, **more})
        await remote.run(quick)
        async with remote.execute(slow) as stream:
            running = (await anext(stream)).name
            await see(operations, running, quick, slow)
            assert [operation async for operation in stream][-1].done
        told = json.loads((await operations("show", running, "--json")).stdout)
        assert (told["done"], told["status"], told["exit_code"]) == (True, "CANCELLED", None)


async def see(
    operations: Callable[..., Awaitable[Done]], running: str, quick: Digest, slow: Digest
) -> None:
    listed = await operations("list", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    ended, runs = map(json.loads, listed.stdout.splitlines())
    assert ended.keys() == runs.keys() == KEYS
    assert (ended["stage"], ended["exit_code"], ended["status"]) == ("COMPLETED", 3, "OK")
    assert (ended["action"], runs["action"]) == (str(quick), str(slow))
    assert (ended["executor"], ended["cached_result"]) == ("local", False)
    assert (runs["name"], runs["done"], runs["exit_code"]) == (running, False, None)
    some = await operations("list", "--filter", f"done = false AND action = {slow.hash[:9]}")
    header, line = some.stdout.splitlines()
    assert header.split() == ["operation", "stage", "outcome", "executor", "queued", "action"]
    assert running in line
    assert str(slow) in line
    assert len((await operations("list", "--limit", "1")).stdout.splitlines()) == 2
    bad = await operations("list", "--filter", "colour = red")
    assert bad.returncode == 1
    assert bad.stderr.startswith("Error: filter: there is no field 'colour'; there are action,")
    shown = await operations("show", running.rpartition("/")[2])
    assert f"name:            {running}\n" in shown.stdout
    unknown = await operations("cancel", "none")
    assert unknown.returncode == 1
    assert "there is no operation named" in unknown.stderr
    cancelled = await operations("cancel", running)
    assert (cancelled.returncode, cancelled.stdout, cancelled.stderr) == (0, "", "")
