"""ExecutedActionMetadata is whole however an action ends, and its extras are documented."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from stoker.execution.stages import Stages
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.provenance_pb2 import Provenance
from stoker.spi import Exit
from stoker.testing.server import EXECUTING

from .conftest import Client, open_client
from .executing import run

REPOSITORY = Path(__file__).parents[3]
STAGES = (
    "queued",
    "worker_start",
    "input_fetch_start",
    "input_fetch_completed",
    "execution_start",
    "execution_completed",
    "output_upload_start",
    "output_upload_completed",
    "worker_completed",
)

# Answers once and again, unless it is told to end, or to be silent.
TOOL = b"""#!/usr/bin/env python3
import json, os, sys, time
for line in sys.stdin:
    word = json.loads(line)["arguments"][0]
    if word == "die":
        os._exit(1)
    if word == "hang":
        time.sleep(60)
    print(json.dumps({"exitCode": int(word)}), flush=True)
"""
WORKER = {"persistentWorkerKey": "k", "persistentWorkerProtocol": "json"}
ENDINGS: dict[str, dict[str, Any]] = {
    "success": {"arguments": ("true",)},
    "failure": {"arguments": ("sh", "-c", "exit 7")},
    "signal": {"arguments": ("sh", "-c", "kill -9 $$")},
    "timeout": {"arguments": ("sleep", "60"), "timeout_seconds": 1},
    "absent program": {"arguments": ("no-such-program",)},
    "worker": {"word": b"0"},
    "failing worker": {"word": b"3"},
    "dying worker": {"word": b"die"},
    "silent worker": {"word": b"hang", "timeout_seconds": 1},
    "absent worker": {"word": b"0", "arguments": ("./absent", "@args")},
    "no worker": {"word": b"0", "arguments": ("true",)},
}


@pytest.fixture(scope="module")
def seen() -> set[str]:
    """The names of all facts that were told."""
    return set()


async def metadata_of(
    client: Client,
    word: bytes = b"",
    arguments: tuple[str, ...] = ("./tool", "@args"),
    **fields: Any,
) -> reapi.ExecutedActionMetadata:
    if word:
        directory = reapi.Directory()
        for name, data in (("args", word), ("tool", TOOL)):
            [digest] = await client.put(data)
            file = directory.files.add(name=name, digest=digest.to_proto(), is_executable=True)
            if name == "tool":
                file.node_properties.properties.add(name="bazel_tool_input")
        root = (await client.put_message(directory)).to_proto()
        command = await client.put_message(reapi.Command(arguments=arguments))
        platform = reapi.Platform(
            properties=[reapi.Platform.Property(name=n, value=v) for n, v in WORKER.items()]
        )
        action = reapi.Action(
            command_digest=command.to_proto(), input_root_digest=root, platform=platform
        )
        action.timeout.seconds = fields.get("timeout_seconds", 60)
        digest = await client.put_message(action)
    else:
        digest = await client.put_action(*arguments, **fields)
    response = await run(client, digest)
    assert response.HasField("result")
    return response.result.execution_metadata


def check_whole(metadata: reapi.ExecutedActionMetadata) -> None:  # RUN-27, RUN-28
    assert metadata.worker == "local"
    times = [getattr(metadata, f"{stage}_timestamp").ToNanoseconds() for stage in STAGES]
    assert times[0] > 0
    assert times == sorted(times)
    executed = times[STAGES.index("execution_completed")] - times[STAGES.index("execution_start")]
    assert metadata.virtual_execution_duration.ToNanoseconds() == executed


def facts_in(metadata: reapi.ExecutedActionMetadata) -> list[str]:
    names: list[str] = []
    for entry in metadata.auxiliary_metadata:
        facts = Struct()
        if entry.Unpack(facts):
            names += list(facts)
        else:
            assert entry.Unpack(Provenance())
    return names


@pytest.mark.parametrize("ending", ENDINGS)
async def test_it_is_whole_however_the_action_ends(  # RUN-15…19, RUN-27…29
    client: Client, ending: str, seen: set[str]
) -> None:
    metadata = await metadata_of(client, **ENDINGS[ending])
    check_whole(metadata)
    facts = facts_in(metadata)
    assert len(set(facts)) == len(facts)
    seen.update(facts)


async def test_it_is_whole_where_no_process_could_be_started(tmp_path: Path) -> None:  # RUN-27
    toml = EXECUTING.replace("slots = 4", "slots = 4\nworkers = { one_shot_fallback = false }", 1)
    async with open_client(toml, tmp_path) as client:
        check_whole(await metadata_of(client, **ENDINGS["absent worker"]))


async def test_it_is_whole_in_answers_from_the_action_cache(client: Client) -> None:
    action = await client.put_action("true", "cached")
    made = (await run(client, action)).result.execution_metadata
    answer = await run(client, action)
    assert answer.cached_result
    assert answer.result.execution_metadata == made
    check_whole(made)


def documented() -> set[str]:
    guide = (REPOSITORY / "docs" / "guides" / "explain.md").read_text(encoding="utf-8")
    table = guide[guide.index("| fact |") :]
    return set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def of_containers() -> set[str]:
    """The names in the one mapping of facts that the strategy for containers has."""
    source = REPOSITORY / "plugins/exec_docker/src/stoker_exec_docker/process.py"
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Dict)
            and ast.unparse(node.targets[0]) == "self.facts"
        ):
            return {ast.literal_eval(key) for key in node.value.keys if key is not None}
    raise AssertionError("there is no such mapping")


def of_a_breach() -> set[str]:
    # No limit can be broken on purpose on every machine.
    stages = Stages("local")
    stages.note_exit(Exit(137, 9, "too much memory"))
    return set(facts_in(stages.so_far()))


async def test_every_fact_is_documented_and_nothing_else(seen: set[str]) -> None:
    if "worker" not in seen:
        pytest.skip("the actions above tell the facts, and were not run")
    assert seen | of_a_breach() | of_containers() == documented()
