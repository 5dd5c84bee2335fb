"""`stoker workers` as a program, and what a scrape tells, of one server whose worker has served."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import structlog.testing
import trio
from prometheus_client.parser import text_string_to_metric_families

from stoker.client import open_remote
from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import EXECUTING, open_test_server

from .tool_actions import upload_action

TOML = f"""{EXECUTING}
listen = ["127.0.0.1:0"]
metrics_listen = "127.0.0.1:0"
state_directory = "state"
[executors.local.workers]
max_memory_bytes = "1GiB"
"""

TOOL = """#!/usr/bin/env python3
import json, os, sys
for line in sys.stdin:
    if json.loads(line)["arguments"] == ["die"]:
        os._exit(3)
    print('{"output": "done"}', flush=True)
"""

PROPERTIES = {
    "cache-silo-key": "silo",
    "persistentWorkerProtocol": "json",
    "supports-workers": "1",
    "worker-key-mnemonic": "Tool\x1b[2J",
}

# What scripts may rely on: docs/guides/workers.md.
EXECUTOR_KEYS = {
    *("executor", "max_workers", "places", "waiting", "memory_bytes", "max_memory_bytes"),
    *("hits", "misses", "ended", "keys"),
}
KEY_KEYS = {
    *("mnemonic", "instance_name", "silo", "protocol", "mode", "argv", "working_directory"),
    *("tools", "surroundings", "waiting", "hits", "misses", "nearest_key_differs_in"),
    *("last_error", "workers"),
}
WORKER_KEYS = {
    *("name", "process", "state", "in_flight", "served", "memory_bytes", "age_seconds"),
    *("idle_seconds", "log", "tools_by"),
}


class Site(NamedTuple):
    """Where things are."""

    server: str
    metrics: str
    config: Path
    folder: Path

    async def perform(self, argument: str, path: str = "/usr/bin:/bin") -> reapi.ExecuteResponse:
        """Have the tool do `argument`."""
        (self.folder / "args").write_text(argument)
        action = await upload_action(
            self.server, self.folder, ["./tool", "@args"], PROPERTIES, {"PATH": path}
        )
        async with open_remote(self.server) as remote:
            return await remote.run(action)

    async def stoker_workers(self, *options: str) -> subprocess.CompletedProcess[bytes]:
        """Type that."""
        words = [sys.executable, "-m", "stoker", "workers", "--config", str(self.config)]
        return await trio.run_process(
            [*words, *options], capture_stdout=True, capture_stderr=True, check=False
        )

    async def scrape(self) -> dict[tuple[str, ...], float]:
        """Samples by name and labels' values, for the one executor."""

        def read() -> str:
            with urllib.request.urlopen(self.metrics, timeout=30) as response:
                return str(response.read().decode())

        text = await trio.to_thread.run_sync(read)
        return {
            (sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "executor")): (
                sample.value
            )
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@asynccontextmanager
async def open_site(folder: Path) -> AsyncIterator[Site]:
    inputs, state = folder / "inputs", folder / "server"
    inputs.mkdir()
    state.mkdir()
    (inputs / "tool").write_text(TOOL)
    (inputs / "tool").chmod(0o755)
    (state / "stoker.toml").write_text(TOML)
    with structlog.testing.capture_logs() as logged:
        async with open_test_server(TOML, state) as server:
            [told] = [entry for entry in logged if entry["event"] == "metrics are served"]
            yield Site(server.address, told["address"], state / "stoker.toml", inputs)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as opened:
        yield opened


async def test_what_workers_do_is_told_in_words_in_json_and_as_metrics(site: Site) -> None:
    for argument in ("1", "2", "3", "die", "4", "5"):
        response = await site.perform(argument)
        assert response.status.code == response.result.exit_code == 0, response
        assert response.message.count("exited with status 3") == 2 * (argument == "die")
    told = await site.stoker_workers("--json")
    assert (told.returncode, told.stderr) == (0, b"")
    executor = json.loads(told.stdout)
    [key] = executor["keys"]
    [worker] = key["workers"]
    # What was never measured has no number: memory is, after a while.
    assert EXECUTOR_KEYS - executor.keys() <= {"memory_bytes"} >= WORKER_KEYS - worker.keys()
    assert executor.keys() <= EXECUTOR_KEYS
    assert worker.keys() <= WORKER_KEYS
    assert key.keys() == KEY_KEYS
    assert (executor["executor"], executor["places"]) == ("local", 1)
    assert executor["max_memory_bytes"] == 2**30
    assert executor["hits"] == key["hits"] == 4
    assert executor["misses"] == key["misses"] == {"failed": 2, "first": 1}
    assert executor["ended"] == {"failed": 2}
    assert key["last_error"] == "exited with status 3 before it answered"
    assert key["argv"] == ["./tool", "--persistent_worker"]
    assert (key["silo"], key["mode"], key["mnemonic"]) == ("silo", "singleplex", "Tool\x1b[2J")
    assert (worker["state"], worker["served"], worker["in_flight"]) == ("idle", 2, 0)
    assert worker["age_seconds"] > worker["idle_seconds"] >= 0
    assert Path(worker["log"]).name == f"{worker['name']}.log"

    await site.perform("6", path="/bin:/usr/bin")
    told = await site.stoker_workers("--processes")
    text = told.stdout.decode()
    assert "executor local: 2 of 16 workers" in text
    assert "warm 50% of 8" in text
    assert "(nearest key differs in environment)" in text
    assert "ended: 2 failed" in text
    assert f"last error of Tool\\x1b[2J: {key['last_error']}\n" in text
    assert "\x1b" not in text, "what a client has sent does nothing to the terminal"
    [row] = [line for line in text.splitlines() if worker["log"] in line]
    assert worker["name"] in row
    assert worker["process"].removeprefix("process ") in row
    told = await site.stoker_workers("--executor", "other")
    assert told.returncode == 1
    assert b"there is no executor 'other' in use; there are: 'local'" in told.stderr

    samples = await site.scrape()
    assert samples["stoker_worker_leases_total", "", "warm"] == 4
    assert samples["stoker_worker_leases_total", "failed", "new"] == 2
    assert samples["stoker_workers_ended_total", "failed"] == 2
    assert samples["stoker_worker_processes", "idle"] == 2
    assert samples["stoker_worker_key_differences_total", "environment"] == 1
    assert samples["stoker_worker_waiting_actions",] == 0
    assert samples["stoker_actions", "queued"] == 0


async def test_without_a_server_it_is_said_where_nobody_listens(tmp_path: Path) -> None:
    config = tmp_path / "stoker.toml"
    config.write_text(TOML)
    told = await Site("", "", config, tmp_path).stoker_workers()
    assert told.returncode == 1
    assert f"nobody listens on {tmp_path}/state/admin.socket".encode() in told.stderr
