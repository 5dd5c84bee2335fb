"""Fifteen problems that servers and clients with persistent workers have had, and this has not.

Each is seen as a user sees it: through a server, by a client, with a tool that is bad at something.
docs/guides/workers.md tells of them, and of how each of these tests was made to fail.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from stoker.cli.administration import find_socket, open_answers
from stoker.client import open_remote, stage_of
from stoker.protos import admin_pb2 as admin
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import StatusCode

from .isolation import needs_root
from .odd_client import MULTIPLEX, PATIENCE_SECONDS, SANDBOXED, SINGLEPLEX, Client, all_at_once
from .remains import children, command_lines, descendants
from .server_process import LOCAL, ServerProcess, open_server_process
from .test_cancel_storm import wait_until

SECRET = "3b0f-of-the-server"
SLOTS = 4

EXECUTORS = f"""
slots = {SLOTS}
cpus = 1000
limits = {{ termination_grace_seconds = 0.2 }}
properties = {{ pool = "plain" }}
[executors.local.workers]
max_workers = 8
max_workers_per_key = 2
shutdown_grace_seconds = 0.2
cancel_grace_seconds = 0.2
[[executors.local.workers.rules]]
mnemonics = ["Odd"]
protocol = "json"
[[executors.local.workers.rules]]
mnemonics = ["Narrow"]
max_requests_in_flight = 2
[executors.brief]
strategy = "local"
slots = 4
cpus = 1000
properties = {{ pool = "brief" }}
workers = {{ max_workers = 2, idle_seconds = 1.5, shutdown_grace_seconds = 0.2 }}
"""
TOML = (
    LOCAL.replace("slots = 2", EXECUTORS, 1)
    .replace("limits = { termination_grace_seconds = 0.2 }\n[instances", "[instances", 1)
    .replace('executors = ["local"]', 'executors = ["local", "brief"]')
)


class House(NamedTuple):
    server: ServerProcess
    folder: Path

    async def workers(self, executor: str = "local") -> admin.ExecutorWorkers:
        """What `stoker workers` shows."""
        request = admin.ListWorkersRequest(executors=[executor])
        socket = find_socket(self.folder / "stoker.toml")
        async with open_answers(socket, "ListWorkers", request, admin.ExecutorWorkers) as answers:
            return await answers.__anext__()

    def processes(self) -> dict[int, str]:
        """Those of actions and workers."""
        pid = self.server.process.pid
        return command_lines(descendants(pid) - children(pid))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    environment = {"SENTINEL": SECRET, "PATH": f"{os.environ['PATH']}:/{SECRET}"}
    with open_server_process(folder, TOML, environment) as server:
        yield House(server, folder)


@asynccontextmanager
async def open_client(house: House, silo: str, mnemonic: str = "") -> AsyncIterator[Client]:
    metadata = reapi.RequestMetadata(action_mnemonic=mnemonic)
    async with open_remote(house.server.address, metadata=metadata) as remote:
        yield Client(remote, silo)


@pytest.fixture
async def client(house: House, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    async with open_client(house, request.node.name) as found:
        yield found


async def test_a_tool_is_spoken_to_in_the_protocol_that_it_knows(
    house: House, client: Client
) -> None:
    # WORKERS 8.1: bazel 28405, rules_swift 1562
    await client.served("pid", platform={**SINGLEPLEX, "persistentWorkerProtocol": "json"})
    unsaid = {"persistentWorkerKey": "key"}
    async with open_client(house, "protocol", "Odd") as odd:
        await odd.served("pid", platform=unsaid)
    unknown = await client.do(
        "read file",
        platform={**unsaid, "requires-worker-protocol": "xml"},
        files={"file": b"right"},
    )
    assert (unknown.text, "worker" in unknown.facts) == ("right", False)
    assert "worker protocol 'xml' is not offered; offered are: json, proto" in unknown.message
    # Nobody says that it speaks JSON.
    mistaken = await client.do("read file", platform=unsaid, files={"file": b"right"})
    assert (mistaken.text, "worker" in mistaken.facts) == ("right", False)
    assert "JSONDecodeError" in mistaken.message
    assert "it was spoken to in proto" in mistaken.message


async def test_a_multiplex_worker_does_not_outlive_a_change_of_its_tool(
    house: House, client: Client
) -> None:
    # WORKERS 8.2: bazel 29447
    found = []
    for version in (b"1", b"2", b"2"):
        # An input of the tool's, as it is named at start-up.
        told = await client.served(
            "version",
            "pid",
            platform=MULTIPLEX,
            files={"rules": version},
            startup=["--rules=rules"],
        )
        assert told.lines[0] == version.decode()
        found.append(told.facts["worker_key"])
    assert found == ["miss", "miss", "hit"]
    mine = [key for key in (await house.workers()).keys if key.silo == client.silo]
    assert sorted(tuple(key.nearest_key_differs_in) for key in mine)[-1] == ("tools",)


async def test_one_branch_never_gets_the_tool_of_another(client: Client) -> None:
    # WORKERS 8.3: buildfarm 2228
    pids: dict[str, str] = {}
    for branch in ("main", "topic", "main", "topic"):
        # The same property of the client for both: it does not know better.
        told = await client.served(
            "version",
            "pid",
            platform=SINGLEPLEX,
            files={"rules": branch.encode()},
            startup=["--rules=rules"],
        )
        assert told.lines[0] == branch
        assert pids.setdefault(branch, told.lines[1]) == told.lines[1], "each keeps its own"


@pytest.mark.parametrize("platform", [SINGLEPLEX, MULTIPLEX, SANDBOXED])
async def test_outputs_are_collected_however_they_are_declared(
    client: Client, platform: Mapping[str, str]
) -> None:
    # WORKERS 8.4: buildfarm 2615
    lines = ("write out/a 1", "write out/folder/b 2", "write out/link 3")
    newer = reapi.Command(output_paths=["out/a", "out/folder"])
    older = reapi.Command(output_files=["out/a"], output_directories=["out/folder"])
    for outputs in (newer, older):
        told = await client.served(*lines, platform=platform, outputs=outputs)
        assert told.files == {"out/a": b"1"}
        assert [folder.path for folder in told.response.result.output_directories] == ["out/folder"]


@pytest.mark.parametrize("platform", [SINGLEPLEX, SANDBOXED])
async def test_a_worker_sees_nothing_of_the_servers_environment(
    client: Client, platform: Mapping[str, str]
) -> None:
    # WORKERS 8.5: buildfarm 2066
    told = await client.served("environment", platform=platform)
    names = {variable.partition("=")[0] for variable in told.text.split("\0") if variable}
    assert names == {"HOME", "TMPDIR", "PATH"}  # and that PATH is not the server's
    assert SECRET not in told.text


async def test_a_tool_that_exits_is_tried_once_more_and_then_alone(
    client: Client, tmp_path: Path
) -> None:
    # WORKERS 8.6: rules_scala 1840
    note = tmp_path / "note"
    told = await client.do(
        f"note {note}",
        "exit 7",
        "write out x",
        platform=SINGLEPLEX,
        outputs=reapi.Command(output_paths=["out"]),
    )
    assert note.read_text().split() == ["worker", "worker", "alone"]
    assert (told.response.result.exit_code, told.files) == (0, {"out": b"x"})
    assert told.message.count("exited with status 7") == 2
    once = await client.do(f"exit 7 {tmp_path}/once", "pid", platform=SINGLEPLEX)
    assert once.facts["worker_key"] == "miss"
    assert "exited with status 7" in once.message


async def test_no_request_waits_for_ever(client: Client, tmp_path: Path) -> None:
    # WORKERS 8.7: bazel 10288, 12219, 25076
    # All four meet in one process, which then is silent to one of them, dies, or falls silent.
    harms = {"silent": "silent", "dies": f"exit 3 {tmp_path}/died", "closes": "close"}
    for name, harm in harms.items():
        place = tmp_path / name
        place.mkdir()
        lines = [(f"meet {place} 4", f"write out{n} x") for n in range(3)]
        actions = [*lines, (f"meet {place} 4", harm)]
        seconds = 2 if name == "silent" else 20
        told = await all_at_once(client, actions, platform=MULTIPLEX, seconds=seconds)
        statuses = sorted(one.response.status.code for one in told)
        late = StatusCode.DEADLINE_EXCEEDED.value if name == "silent" else 0
        assert statuses == [0, 0, 0, late], told


@pytest.mark.parametrize("platform", [SINGLEPLEX, MULTIPLEX, SANDBOXED])
async def test_cancelled_requests_give_back_what_they_had(
    house: House, client: Client, platform: Mapping[str, str], tmp_path: Path
) -> None:
    # WORKERS 8.8: bazel 26292
    async def cancel_one(number: int) -> None:
        action = await client.upload("silent", f"write x{number} y", platform=platform)
        async with client.remote.execute(action) as operations:
            async for operation in operations:
                if stage_of(operation) == reapi.ExecutionStage.EXECUTING:
                    await client.remote.cancel(operations.name)

    for _ in range(2):
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(SLOTS):
                    nursery.start_soon(cancel_one, number)
    (tmp_path / "place").mkdir()
    # As many as there are slots, and as many workers as may be of one key, at once.
    width = 2 if platform is SINGLEPLEX else SLOTS
    lines = [(f"meet {tmp_path}/place {width}", f"write x{n} y") for n in range(width)]
    told = await all_at_once(client, lines, platform=platform)
    assert ["worker" in one.facts for one in told] == [True] * width, told


async def test_processes_of_one_key_do_not_share_a_folder(house: House, tmp_path: Path) -> None:
    # WORKERS 8.9: bazel 22589, 25400
    (tmp_path / "place").mkdir()
    async with open_client(house, "folders", "Narrow") as client:
        actions = [
            (f"write mine {n}", f"meet {tmp_path}/place 4", "read mine", "read in", "pid")
            for n in range(4)
        ]
        found = await all_at_once(client, actions, platform=SANDBOXED, files={"in": b"input"})
    assert {tuple(told.lines[:2]) for told in found} == {(f"{n}", "input") for n in range(4)}
    assert len({told.lines[2] for told in found}) == 2


async def test_newlines_are_written_and_not_needed(client: Client) -> None:
    # WORKERS 8.10: bazel 14218
    # The tool reads lines, and answers without.
    first, second = [await client.served("pid", platform=SINGLEPLEX, seconds=5) for _ in range(2)]
    assert first.text == second.text
    assert not first.text.endswith("\n")


async def test_what_strays_to_stdout_is_quoted_with_a_hint(client: Client) -> None:
    # WORKERS 8.11: bazel 4897, 8505, rules_sass 123
    stray = "warning:_old_" + "x" * 100_000
    told = await client.do(f"say {stray}", "read in", platform=SINGLEPLEX, files={"in": b"right"})
    assert (told.response.status.code, told.text) == (0, "right")
    assert "warning: old" in told.message
    assert "let the tool print to stderr" in told.message
    assert len(told.message) < 10_000


async def test_how_a_worker_died_is_told(client: Client) -> None:
    # WORKERS 8.12: bazel 5767, 11948, rules_ts 257
    told = await client.do("die last-words", "read in", platform=SINGLEPLEX, files={"in": b"right"})
    assert (told.response.status.code, told.text) == (0, "right")
    assert told.message.count("was ended by signal 9 (SIGKILL) before it answered") == 2
    assert told.message.count("last-words") == 2


@needs_root  # for the control groups
async def test_that_a_worker_ran_out_of_memory_is_told(client: Client) -> None:
    # WORKERS 8.12
    told = await client.do(
        "hold 300000000",
        "read in",
        platform={**SINGLEPLEX, "memory": "100MiB"},
        files={"in": b"right"},
    )
    assert (told.response.status.code, told.text) == (0, "right")
    assert told.message.count("out of memory: the limit is 104857600 bytes") == 2


async def test_idle_workers_go_and_all_together_are_bounded(house: House) -> None:
    # WORKERS 8.13: bazel 6103, 12165, 8586
    platform = {**SINGLEPLEX, "pool": "brief"}
    alive = set()
    for number in range(5):
        async with open_client(house, f"project {number}") as client:
            await client.served("pid", platform=platform)
        workers = await house.workers("brief")
        assert workers.places <= 2
        alive |= {worker.process.split()[1] for key in workers.keys for worker in key.workers}
    assert len(alive) == 5, "each key had one of its own"
    await wait_until(lambda: not (alive & {str(pid) for pid in house.processes()}), house.processes)
    workers = await house.workers("brief")
    assert (workers.places, sum(workers.ended.values())) == (0, 5)
    assert {"expired"} <= workers.ended.keys() <= {"evicted", "expired"}


@pytest.mark.parametrize("platform", [SINGLEPLEX, MULTIPLEX])
async def test_the_folder_that_a_worker_works_in_stays(
    client: Client, platform: Mapping[str, str]
) -> None:
    # WORKERS 8.14: bazel 2769
    seen = set()
    for number in range(3):
        inputs = {f"in{number}": b"%d" % number, "same": b"same"}
        told = await client.served(
            "inode",
            "pid",
            f"read in{number}",
            "read same",
            "clear",
            platform=platform,
            files=inputs,
        )
        assert told.lines[2:] == [f"{number}", "same"]
        seen.add(tuple(told.lines[:2]))
    ((_, pid),) = seen
    # A tool that replaces it itself has lost it: the next action is not to suffer.
    await client.do("replace-cwd", platform=platform)
    after = await client.do("inode", "pid", "read same", platform=platform, files={"same": b"same"})
    assert (after.response.status.code, after.lines[2]) == (0, "same")
    assert "worker" in after.facts
    assert after.lines[1] != pid


async def test_why_no_worker_is_reused_can_be_seen(house: House, client: Client) -> None:
    # WORKERS 8.15: rules_nodejs 3256
    for number in range(3):
        await client.served("pid", platform=SINGLEPLEX, startup=[f"--target=//a:{number}"])
    workers = await house.workers()
    mine = [key for key in workers.keys if key.silo == client.silo]
    assert [(key.hits, dict(key.misses)) for key in mine] == [(0, {"key": 1})] * 3
    assert [list(key.nearest_key_differs_in) for key in mine][1:] == [["argv"]] * 2
    assert workers.misses["key:argv"] >= 2
