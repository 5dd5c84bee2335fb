"""Actions on persistent workers: a real tool that stays alive, or misbehaves when told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from google.protobuf.struct_pb2 import Struct

from stoker.action import LoadedAction, Outcome
from stoker.digest import SHA256
from stoker.errors import FailedPrecondition, LogStreamNotFound, TimedOut
from stoker.protos import remote_execution_pb2 as reapi
from stoker_worker_json import JsonProtocol

Rig = Any
Cas = Any

TOOL = b"""#!/usr/bin/env python3
import json, os, pathlib, sys, time

def work(arguments):
    out = []
    for line in arguments:
        verb, _, rest = line.partition(" ")
        if verb == "pid":
            out.append(str(os.getpid()))
        elif verb == "write":
            path, _, text = rest.partition(" ")
            pathlib.Path(path).write_text(text)
        elif verb == "list":
            out += sorted(str(p) for p in pathlib.Path(".").rglob("*") if not p.is_dir())
        elif verb == "environment":
            out.append(os.environ.get(rest, "unset"))
        elif verb == "stderr":
            print(rest, file=sys.stderr, flush=True)
        elif is_worker and verb == "replace-root":
            os.rename(os.getcwd(), os.getcwd() + ".old")
            os.symlink(rest, os.path.dirname(os.getcwd()) + "/root")
        elif is_worker and verb == "replace-log":
            log = os.readlink("/proc/self/fd/2")
            os.remove(log)
            os.symlink(rest, log)
        elif verb == "status":
            return int(rest), out
        elif is_worker and verb == "die":
            os._exit(3)
        elif is_worker and verb == "die-if" and os.path.exists(rest):
            os._exit(3)
        elif is_worker and verb == "garbage":
            print("this is no answer", flush=True)
        elif is_worker and verb == "hang":
            time.sleep(1000)
    return 0, out

is_worker = "--persistent_worker" in sys.argv
if is_worker:
    for line in sys.stdin:
        request = json.loads(line)
        status, out = work(request["arguments"])
        answer = {"exitCode": status, "output": "\\n".join(out), "requestId": 0}
        sys.stdout.write(json.dumps(answer))
        sys.stdout.flush()
else:
    (file,) = [a[1:] for a in sys.argv if a.startswith("@")]
    status, out = work(pathlib.Path(file).read_text().splitlines())
    sys.stderr.write("\\n".join(out))
    sys.exit(status)
"""


@pytest.fixture
async def worker_rig(cas: Cas, strategy: Any, tmp_path: Path, open_rig: Any) -> AsyncIterator[Rig]:
    protocols = {"json": JsonProtocol()}
    async with open_rig(cas, strategy, tmp_path / "executor", protocols=protocols) as rig:
        yield rig


WORKER = {"persistentWorkerKey": "k", "persistentWorkerProtocol": "json"}


async def work(
    cas: Cas,
    *lines: str,
    inputs: Mapping[str, Any] | None = None,
    tool: bytes = TOOL,
    platform: Mapping[str, str] = WORKER,
    arguments: tuple[str, ...] = ("./tool", "@args"),
    **fields: Any,
) -> LoadedAction:
    """An action that has the tool do `lines`."""
    args = "".join(f"{line}\n" for line in lines).encode()
    entries = {"tool": tool, "args": args, **(inputs or {})}
    action: LoadedAction = await cas.action(*arguments, inputs=entries, platform=platform, **fields)
    return action


def facts(outcome: Outcome) -> dict[str, Any]:
    """What auxiliary_metadata tells."""
    assert outcome.result is not None
    found: dict[str, Any] = {}
    for packed in outcome.result.execution_metadata.auxiliary_metadata:
        message = Struct()
        assert packed.Unpack(message)
        found |= dict(message)
    return found


async def stderr(cas: Cas, outcome: Outcome) -> str:
    assert outcome.error is None
    assert outcome.result is not None
    data: bytes = await cas.get(outcome.result.stderr_digest)
    return data.decode()


async def test_one_process_serves_many_actions(worker_rig: Rig) -> None:
    cas = worker_rig.cas
    outcomes = [
        await worker_rig.run(await work(cas, "pid", f"write out {n}", output_paths=["out"]))
        for n in range(3)
    ]
    assert len({await stderr(cas, outcome) for outcome in outcomes}) == 1
    assert [facts(outcome)["served"] for outcome in outcomes] == [1, 2, 3]
    assert {facts(outcome)["worker"] for outcome in outcomes} == {"worker-1-tool"}
    for number, outcome in enumerate(outcomes):
        assert outcome.message == ""
        (file,) = outcome.result.output_files
        assert await cas.get(file.digest) == b"%d" % number
        check_order(outcome.result.execution_metadata)


async def test_what_a_worker_says_is_in_its_streams_at_the_end(worker_rig: Rig) -> None:  # OPS-16
    outcome = await worker_rig.run(await work(worker_rig.cas, "pid", "stderr of the log"))
    (names,) = worker_rig.streams
    assert worker_rig.outputs.find(names.stdout).digest == SHA256.empty
    said = worker_rig.outputs.find(names.stderr).digest
    assert said.to_proto() == outcome.result.stderr_digest


async def test_streams_of_a_run_without_its_worker_are_that_runs(worker_rig: Rig) -> None:
    outcome = await worker_rig.run(await work(worker_rig.cas, "die", "pid"))
    assert "without a persistent worker" in outcome.message
    (names,) = set(worker_rig.streams)
    said = worker_rig.outputs.find(names.stderr).digest
    assert said.to_proto() == outcome.result.stderr_digest
    # As long as somebody remembers them.
    name = names.stderr
    del names
    worker_rig.streams.clear()
    with pytest.raises(LogStreamNotFound):
        worker_rig.outputs.find(name)


def check_order(metadata: reapi.ExecutedActionMetadata) -> None:
    # RUN-27
    times = [
        getattr(metadata, f"{stage}_timestamp").ToNanoseconds()
        for stage in (
            "worker_start",
            "input_fetch_start",
            "input_fetch_completed",
            "execution_start",
            "execution_completed",
            "output_upload_start",
            "output_upload_completed",
            "worker_completed",
        )
    ]
    assert times[0] > 0
    assert times == sorted(times)


async def test_the_next_action_sees_only_its_own_inputs(worker_rig: Rig) -> None:
    # PWK-13
    first = await work(
        worker_rig.cas,
        "write out/x 1",
        "write stray 2",
        inputs={"a": b"1", "d": {"b": b"2"}},
        output_paths=["out/x"],
    )
    await worker_rig.run(first)
    second = await work(
        worker_rig.cas, "list", inputs={"a": b"2", "c": b"3"}, output_paths=["out/y"]
    )
    outcome = await worker_rig.run(second)
    assert facts(outcome)["served"] == 2
    assert (await stderr(worker_rig.cas, outcome)).split() == ["a", "args", "c", "tool"]


async def test_a_status_that_is_not_zero_has_output_and_outputs(worker_rig: Rig) -> None:
    # PWK-08
    action = await work(worker_rig.cas, "pid", "write out 1", "status 5", output_paths=["out"])
    outcome = await worker_rig.run(action)
    assert outcome.error is None
    assert outcome.result.exit_code == 5
    assert not outcome.result.HasField("stdout_digest")
    assert (await stderr(worker_rig.cas, outcome)).isdigit()
    assert [file.path for file in outcome.result.output_files] == ["out"]
    assert worker_rig.executor.workers.counts.idle == 1, "it did its work and lives on"


async def test_results_are_the_same_with_and_without_a_worker(worker_rig: Rig) -> None:
    # PWK-17
    lines = ("write out text", "environment PATH", "environment X", "list", "status 4")
    results = []
    for platform in (WORKER, {}):
        action = await work(
            worker_rig.cas, *lines, platform=platform, environment={"X": "y"}, output_paths=["out"]
        )
        result = await worker_rig.result(action)
        result.ClearField("execution_metadata")
        results.append(result)
    assert results[0] == results[1]


async def test_a_changed_tool_gets_a_fresh_process(worker_rig: Rig) -> None:
    # PWK-11
    pids = set()
    for tool in (TOOL, TOOL + b"# changed"):
        outcome = await worker_rig.run(await work(worker_rig.cas, "pid", tool=tool))
        pids.add(await stderr(worker_rig.cas, outcome))
        assert facts(outcome)["served"] == 1
    assert len(pids) == 2


async def test_a_worker_that_dies_is_replaced_once_then_done_without(worker_rig: Rig) -> None:
    # PWK-10
    action = await work(
        worker_rig.cas, "stderr last words", "die", "write out 1", output_paths=["out"]
    )
    outcome = await worker_rig.run(action)
    assert outcome.error is None
    assert outcome.result.exit_code == 0
    assert [file.path for file in outcome.result.output_files] == ["out"]
    assert "worker-1" in outcome.message
    assert "worker-2" in outcome.message
    assert outcome.message.count("exited with status 3") == 2, "each is told once"
    assert "last words" in outcome.message
    assert "worker-2" in facts(outcome)["one_shot_reason"]
    check_order(outcome.result.execution_metadata)


async def test_what_a_failed_worker_puts_in_place_of_its_log_is_not_given_away(
    worker_rig: Rig, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("for the server alone")
    outcome = await worker_rig.run(await work(worker_rig.cas, f"replace-log {secret}", "die"))
    assert "exited with status 3" in outcome.message
    for log in outcome.server_logs.values():
        assert b"alone" not in await worker_rig.cas.get(log.digest)


async def test_a_second_worker_that_does_better(worker_rig: Rig, tmp_path: Path) -> None:
    # PWK-10
    mark = tmp_path / "mark"
    mark.touch()
    tool = TOOL.replace(b"os.path.exists(rest):", b"os.path.exists(rest) and not os.remove(rest):")
    outcome = await worker_rig.run(await work(worker_rig.cas, f"die-if {mark}", "pid", tool=tool))
    assert facts(outcome) == {
        "worker": "worker-2-tool",
        "served": 1,
        "worker_key": "miss",
        "tools_by": "inferred",
    }
    assert "worker-1" in outcome.message


async def test_garbage_is_quoted_and_the_action_done_without(worker_rig: Rig) -> None:
    # PWK-09
    outcome = await worker_rig.run(await work(worker_rig.cas, "garbage", "status 6"))
    assert outcome.error is None
    assert outcome.result.exit_code == 6
    assert "this is no answer" in outcome.message
    assert "worker-2" not in outcome.message
    assert worker_rig.executor.workers.counts.idle == 0


async def test_a_tool_that_is_no_worker(worker_rig: Rig) -> None:
    # PWK-18
    tool = b"#!/bin/sh\ncase $1 in --persistent_worker) echo usage >&2; exit 2;; esac; echo done"
    outcome = await worker_rig.run(
        await work(worker_rig.cas, tool=tool, arguments=("./tool", "@args"))
    )
    assert outcome.result.exit_code == 0
    assert await worker_rig.cas.get(outcome.result.stdout_digest) == b"done\n"
    assert "usage" in outcome.message


async def test_a_program_that_is_absent(worker_rig: Rig) -> None:
    # RUN-17
    outcome = await worker_rig.run(await work(worker_rig.cas, arguments=("./absent", "@args")))
    assert outcome.result.exit_code == 127
    assert "absent" in str(outcome.error)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"arguments": ("./tool", "args")}, "no argument names a flag file"),
        ({"platform": {"persistentWorkerKey": "k"}}, "protocol 'proto' is not offered"),
    ],
)
async def test_an_action_that_cannot_have_a_worker(
    worker_rig: Rig, changes: dict[str, Any], reason: str
) -> None:
    # PWK-03, PWK-04
    tool = b"#!/bin/sh\necho $*"
    outcome = await worker_rig.run(await work(worker_rig.cas, tool=tool, **changes))
    assert outcome.error is None
    assert outcome.result.HasField("stdout_digest")
    assert reason in outcome.message
    assert reason in facts(outcome)["one_shot_reason"]


async def test_an_executor_without_workers(rig: Rig) -> None:
    outcome = await rig.run(await work(rig.cas, "status 3"))
    assert outcome.result.exit_code == 3
    assert facts(outcome)["one_shot_reason"] in outcome.message


async def test_a_flag_file_that_names_an_absent_one(worker_rig: Rig) -> None:
    await worker_rig.run(await work(worker_rig.cas, "pid"))
    without = await worker_rig.run(await work(worker_rig.cas, "status 4", "@absent"))
    assert without.result.exit_code == 4, "the tool may know what it means"
    assert "'absent' is not among the inputs" in facts(without)["one_shot_reason"]
    outcome = await worker_rig.run(await work(worker_rig.cas, "pid"))
    assert facts(outcome)["served"] == 2, "the worker is none the worse for it"


async def test_a_timeout_ends_the_worker_and_keeps_outputs(worker_rig: Rig) -> None:
    # PWK-15, RUN-19, RUN-20
    warm = await worker_rig.run(await work(worker_rig.cas, "pid"))
    action = await work(
        worker_rig.cas, "write out 1", "hang", timeout_seconds=0.3, output_paths=["out"]
    )
    outcome = await worker_rig.run(action)
    assert isinstance(outcome.error, TimedOut)
    assert [file.path for file in outcome.result.output_files] == ["out"]
    check_order(outcome.result.execution_metadata)
    again = await worker_rig.run(await work(worker_rig.cas, "pid"))
    assert await stderr(worker_rig.cas, again) != await stderr(worker_rig.cas, warm)
    while not (ended := worker_rig.executor.workers.report().ended):
        await trio.lowlevel.checkpoint()
    assert ended == {"cancelled": 1}, "the tool is not to blame"


@pytest.mark.parametrize("milliseconds", range(0, 150, 15))
async def test_cancellation_at_any_point_ends_the_worker(
    worker_rig: Rig, milliseconds: int
) -> None:
    action = await work(worker_rig.cas, "hang", inputs={"large": b"x" * 2**21})
    with trio.move_on_after(milliseconds / 1000) as scope:
        await worker_rig.run(action)
    assert scope.cancelled_caught
    while worker_rig.executor.workers.counts.places:
        await trio.lowlevel.checkpoint()
    outcome = await worker_rig.run(await work(worker_rig.cas, "list"))
    assert (await stderr(worker_rig.cas, outcome)).split() == ["args", "tool"]


async def test_a_worker_that_replaces_its_folder_harms_nobody(
    worker_rig: Rig, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    line = f"replace-root {precious}"
    outcome = await worker_rig.run(await work(worker_rig.cas, line, output_paths=["file"]))
    assert isinstance(outcome.error, FailedPrecondition)
    assert not outcome.result.output_files
    # The next action has another worker, and nothing of what is behind the link.
    outcome = await worker_rig.run(await work(worker_rig.cas, "list"))
    assert await stderr(worker_rig.cas, outcome) == "args\ntool"
    assert facts(outcome)["worker"] == "worker-2-tool"
    assert (precious / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("answered", "told"),
    [(0, 0), (1, 1), (255, 255), (256, 1), (-999, 25), (-1, 255), (-(2**31), 1), (2**31 - 1, 255)],
)
async def test_exit_codes_are_those_of_processes(worker_rig: Rig, answered: int, told: int) -> None:
    # RUN-15
    outcome = await worker_rig.run(await work(worker_rig.cas, f"status {answered}"))
    assert outcome.result.exit_code == told
    assert ("exit code" in outcome.message) == (answered != told)
