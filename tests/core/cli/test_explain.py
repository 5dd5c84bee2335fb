"""`stoker explain` as a program, on a whole server that executes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from stoker.cli.explain_report import duration, phases, shortened
from stoker.cli.printable import printable
from stoker.client import RemoteInstance, open_remote, reproduction
from stoker.client.reproduction import download_action, shell_command
from stoker.digest import SHA256, Digest
from stoker.errors import FailedPrecondition
from stoker.protos import explain_pb2 as explain
from stoker.protos import remote_execution_pb2 as reapi
from stoker.testing.server import EXECUTING, open_test_server

SCRIPT = 'cat "$0" sub/in link > "out put"; echo "$GREETING,$HOME,$(pwd)" >> "out put"'


@pytest.fixture
async def instance(tmp_path: Path) -> AsyncIterator[RemoteInstance]:
    (tmp_path / "server").mkdir()
    async with (
        open_test_server(EXECUTING, tmp_path / "server") as server,
        open_remote(server.address, metadata=_metadata()) as instance,
    ):
        yield instance


def _metadata() -> reapi.RequestMetadata:
    return reapi.RequestMetadata(
        tool_details=reapi.ToolDetails(tool_name="bazel", tool_version="9.1.1"),
        tool_invocation_id="invocation-1",
        action_mnemonic="Genrule",
        target_id="//pkg:made",
    )


async def put(instance: RemoteInstance, content: bytes) -> Digest:
    """An action with a folder, a link, a program, a variable and a file named by a blank."""
    blobs = {}

    def add(data: bytes) -> reapi.Digest:
        blobs[SHA256.digest(data)] = data
        return SHA256.digest(data).to_proto()

    below = reapi.Directory(files=[reapi.FileNode(name="in", digest=add(content))])
    work = reapi.Directory(
        files=[
            reapi.FileNode(
                name="tool", digest=add(f"#!/bin/sh\n{SCRIPT}\n".encode()), is_executable=True
            )
        ],
        directories=[
            reapi.DirectoryNode(name="sub", digest=add(below.SerializeToString())),
        ],
        symlinks=[reapi.SymlinkNode(name="link", target="sub/in")],
    )
    root = reapi.Directory(
        directories=[reapi.DirectoryNode(name="work", digest=add(work.SerializeToString()))]
    )
    command = reapi.Command(
        arguments=["./tool"],
        working_directory="work",
        output_paths=["out put"],
        environment_variables=[
            reapi.Command.EnvironmentVariable(name="GREETING", value="it's\n$HOME")
        ],
    )
    action = reapi.Action(
        command_digest=add(command.SerializeToString()),
        input_root_digest=add(root.SerializeToString()),
    )
    digest = instance.digest_function.parse(add(action.SerializeToString()))
    await instance.upload_blobs(blobs)
    return digest


async def stoker(
    instance: RemoteInstance, *arguments: object
) -> subprocess.CompletedProcess[bytes]:
    words = ["explain", "--server", instance.target, *map(str, arguments)]
    return await trio.run_process(
        [sys.executable, "-m", "stoker", *words],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


async def test_the_report_tells_what_people_ask(instance: RemoteInstance) -> None:
    before, after = await put(instance, b"one\n"), await put(instance, b"two\n")
    await instance.run(before)
    await instance.run(after)
    done = await stoker(instance, after.hash[:12])
    assert done.returncode == 0, done.stderr
    report = done.stdout.decode()
    for told in (
        f"action {after}  Genrule  //pkg:made",
        "for bazel 9.1.1, invocation invocation-1",
        "exit code 0",
        "where the time went",
        "together",
        "executor local",
        "peak memory bytes: ",
        f"the nearest earlier action, with the same target, mnemonic, output, is {before}",
        f"--server {instance.target} {after} --reproduce DIR",
    ):
        assert told in report
    [line] = [line for line in report.splitlines() if "work/sub/in" in line]
    one, two = SHA256.digest(b"one\n"), SHA256.digest(b"two\n")
    assert line.split() == ["input", "changed", "work/sub/in", str(one), "→", str(two)]


async def test_json_tells_all_of_an_operation(instance: RemoteInstance) -> None:
    action = await put(instance, b"")
    await instance.run(action)
    found = await instance.explain(explain.ExplainActionRequest(action=action.hash))
    [name] = found.run.operation_names
    done = await stoker(instance, "--json", name)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["run"]["action_digest"]["hash"] == action.hash
    assert told["run"]["operation_names"] == [name]
    assert told["run"]["metadata"]["worker"] == "local"
    types = [entry["@type"] for entry in told["run"]["metadata"]["auxiliary_metadata"]]
    assert any(kind.endswith("stoker.v1.Provenance") for kind in types)


async def test_the_command_line_that_it_gives_repeats_the_action(
    instance: RemoteInstance, tmp_path: Path
) -> None:
    action = await put(instance, b"in\n")
    response = await instance.run(action)
    [made] = response.result.output_files
    remote = await instance.read_blob(SHA256.parse(made.digest))
    folder = tmp_path / "it's here"
    done = await stoker(instance, action, "--reproduce", folder)
    assert done.returncode == 0, done.stderr
    again = await trio.run_process(["sh", "-c", done.stdout.decode()], env={"LEAK": "1"})
    assert again.returncode == 0
    local = (folder / "root" / "work" / "out put").read_bytes()
    # But for where it is, all is the same.
    assert local.splitlines()[:-1] == remote.splitlines()[:-1]
    assert local.splitlines()[-1].split(b",")[1:] == [
        bytes(folder / "tmp"),
        bytes(folder / "root" / "work"),
    ]
    second = await stoker(instance, action, "--reproduce", folder)
    assert second.returncode == 1
    assert b"is not an empty folder" in second.stderr


async def test_an_action_that_never_ran_can_be_repeated_too(
    instance: RemoteInstance, tmp_path: Path
) -> None:
    action = await put(instance, b"never")
    done = await stoker(instance, action, "--reproduce", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "root" / "work" / "sub" / "in").read_bytes() == b"never"
    unknown = await stoker(instance, action)
    assert unknown.returncode == 1
    assert b"no run of action" in unknown.stderr


async def test_outputs_below_a_link_are_repeated_too(
    instance: RemoteInstance, tmp_path: Path
) -> None:  # RUN-06
    outside = tmp_path / "outside"
    outside.mkdir()
    links = {"out": "real", "far": str(outside)}
    root = reapi.Directory(
        directories=[reapi.DirectoryNode(name="real", digest=SHA256.empty.to_proto())],
        symlinks=[reapi.SymlinkNode(name=n, target=t) for n, t in sorted(links.items())],
    )
    command = reapi.Command(
        arguments=["sh", "-c", "echo made > out/made"], output_paths=["out/made", "far/below/made"]
    )
    messages = [message.SerializeToString() for message in (root, command)]
    action = reapi.Action(
        command_digest=SHA256.digest(messages[1]).to_proto(),
        input_root_digest=SHA256.digest(messages[0]).to_proto(),
    ).SerializeToString()
    await instance.upload_blobs({SHA256.digest(data): data for data in (b"", *messages, action)})
    done = await stoker(instance, SHA256.digest(action), "--reproduce", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    again = await trio.run_process(["sh", "-c", done.stdout.decode()])
    assert again.returncode == 0
    assert (tmp_path / "new" / "root" / "real" / "made").read_bytes() == b"made\n"
    # Nothing is made outside of it.
    assert not [*outside.iterdir()]


@pytest.mark.parametrize(
    "command",
    [
        reapi.Command(arguments=["true"], working_directory="../../escaped"),
        reapi.Command(arguments=["true"], working_directory="/tmp/escaped-from-stoker"),
        reapi.Command(),
    ],
    ids=["above", "absolute", "nothing to run"],
)
async def test_what_no_server_would_run_is_not_repeated(
    instance: RemoteInstance, tmp_path: Path, command: reapi.Command
) -> None:
    data = command.SerializeToString()
    action = reapi.Action(
        command_digest=SHA256.digest(data).to_proto(), input_root_digest=SHA256.empty.to_proto()
    ).SerializeToString()
    await instance.upload_blobs({SHA256.digest(blob): blob for blob in (b"", data, action)})
    done = await stoker(instance, SHA256.digest(action), "--reproduce", tmp_path / "new")
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: ")
    assert not (tmp_path / "escaped").exists()
    assert not Path("/tmp/escaped-from-stoker").exists()


async def test_a_tree_that_no_disk_holds_is_refused(
    instance: RemoteInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduction, "MAX_ENTRIES", 1000)
    below, blobs = SHA256.empty, {SHA256.empty: b""}
    for _ in range(40):
        directory = reapi.Directory()
        for name in ("a", "b"):
            directory.directories.add(name=name, digest=below.to_proto())
        data = directory.SerializeToString()
        below = SHA256.digest(data)
        blobs[below] = data
    command = reapi.Command(arguments=["true"]).SerializeToString()
    action = reapi.Action(
        command_digest=SHA256.digest(command).to_proto(), input_root_digest=below.to_proto()
    ).SerializeToString()
    blobs |= {SHA256.digest(data): data for data in (command, action)}
    await instance.upload_blobs(blobs)
    with (
        trio.fail_after(60),
        pytest.raises(FailedPrecondition, match="more than 1000 entries"),
    ):
        await download_action(instance, SHA256.digest(action), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ("printf", "%s", "a b'c\n$x`y`"),
        ("./na=me", "1"),
        ("env",),
        ("printf", "%s", "-\x1b]0;x\x07\x1b[31m\u202e\r\n\udcff\x9b'\x80"),
    ],
    ids=["quotes", "assignment", "environment", "escapes"],
)
async def test_any_command_passes_a_shell_whole(argv: tuple[str, ...], tmp_path: Path) -> None:
    script = tmp_path / "na=me"
    script.write_text('#!/bin/sh\nprintf %s "$0:$1"\n')
    script.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "-odd": "1", "B": "x\n'"}
    line = shell_command(argv, environment, tmp_path)
    assert all(c.isprintable() or c == "\n" for c in line)
    through = await trio.run_process(["sh", "-c", line], capture_stdout=True)
    direct = await trio.run_process(argv, env=environment, cwd=tmp_path, capture_stdout=True)
    ours = through.stdout.replace(f"PWD={tmp_path}\n".encode(), b"")
    assert sorted(ours.split(b"\n")) == sorted(direct.stdout.split(b"\n"))


def test_time_is_told_by_phases() -> None:
    run = explain.Run()
    for second, name in enumerate(
        (
            "queued",
            "worker_start",
            "input_fetch_completed",
            "execution_start",
            "execution_completed",
            "output_upload_completed",
            "worker_completed",
        ),
        start=1,
    ):
        getattr(run.metadata, f"{name}_timestamp").seconds = second * second
    run.ended.seconds = 64
    assert [(p.name, p.seconds) for p in phases(run)] == [
        ("queued", 3),
        ("inputs", 5),
        ("start", 7),
        ("execution", 9),
        ("outputs", 11),
        ("end", 13),
        ("filing", 15),
    ]
    run.metadata.ClearField("output_upload_completed_timestamp")
    assert ("end", 24) in [(p.name, p.seconds) for p in phases(run)]
    assert (duration(0.0123), duration(1.5)) == ("12.3 ms", "1.50 s")


def test_what_clients_say_does_nothing_to_a_terminal() -> None:
    assert printable("a\x1b[2J\nb\u202e") == "a\\x1b[2J ⏎ b\\u202e"
    assert len(shortened("x" * 500)) == 100
