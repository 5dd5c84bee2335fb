"""`stoker ac` and `stoker cas scrub` as programs, beside a server process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi

TOML = """
[server]
listen = ["127.0.0.1:0"]
drain_seconds = 0.0
[blob_stores.main]
kind = "memory"
[action_caches.main]
kind = "memory"
[instances.""]
blob_store = "main"
action_cache = "main"
[instances.team]
blob_store = "main"
action_cache = "main"
"""


def action(name: str) -> Digest:
    return SHA256.digest(name.encode())


class House:
    """A folder with a configuration, and the commands that are typed there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "stoker.toml").write_text(TOML)

    def stoker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stoker", *arguments],
            cwd=self.folder,
            env={**os.environ, "STOKER_STATE": str(self.folder / "other")},
            capture_output=True,
            text=True,
            check=False,
        )

    @contextmanager
    def serving(self) -> Iterator[str]:
        port_file = self.folder / "address"
        port_file.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "stoker", "serve", "--port-file", str(port_file)],
            cwd=self.folder,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not port_file.exists():
                try:
                    process.wait(0.02)
                except subprocess.TimeoutExpired:
                    continue
                raise AssertionError("the server did not come up")
            yield port_file.read_text().strip()
        finally:
            process.terminate()
            process.wait(30)

    def shown(self, *filters: str) -> list[str]:
        """The actions that `stoker ac show` tells, by their names here."""
        run = self.stoker("ac", "show", "--json", *filters)
        assert (run.returncode, run.stderr) == (0, "")
        names = {action(name).hash: name for name in ("one", "two", "three")}
        return sorted(names[json.loads(line)["action_hash"]] for line in run.stdout.splitlines())


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def file_results(address: str) -> None:
    for name, instance, tool in (
        ("one", "", "bazel"),
        ("two", "team", "bazel"),
        ("three", "team", "buck2"),
    ):
        metadata = reapi.RequestMetadata(
            tool_details=reapi.ToolDetails(tool_name=tool, tool_version="1.2"),
            tool_invocation_id=f"run {name}",
        )
        with grpc.insecure_channel(address) as channel:
            channel.unary_unary(
                "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
                request_serializer=lambda message: message.SerializeToString(),
            )(
                reapi.UpdateActionResultRequest(
                    instance_name=instance,
                    action_digest=action(name).to_proto(),
                    action_result=reapi.ActionResult(),
                ),
                metadata=[
                    (
                        "build.bazel.remote.execution.v2.requestmetadata-bin",
                        metadata.SerializeToString(),
                    )
                ],
                timeout=30,
            )


@pytest.mark.slow
def test_results_are_shown_and_purged(house: House) -> None:  # ACU-12
    with house.serving() as address:
        file_results(address)
        assert house.shown() == ["one", "three", "two"]
        assert house.shown("--instance", "") == ["one"]
        assert house.shown("--tool", "bazel", "--newer-than", "1h") == ["one", "two"]
        assert house.shown("--older-than", "1h") == []
        assert house.shown("--action", action("three").hash[:8]) == ["three"]
        line = house.stoker("ac", "show", "--invocation", "run two").stdout
        for part in (str(action("two")), "instance 'team'", "tool bazel 1.2", "peer ipv4:127"):
            assert part in line

        refused = house.stoker("ac", "purge")
        assert (refused.returncode, "--all" in refused.stderr) == (2, True)
        dry = house.stoker("ac", "purge", "--tool", "bazel", "--dry-run")
        assert (dry.returncode, dry.stderr) == (0, "2 results would be removed\n")
        assert len(dry.stdout.splitlines()) == 2
        assert len(house.shown()) == 3
        purged = house.stoker("ac", "purge", "--tool", "bazel")
        assert (purged.returncode, purged.stderr) == (0, "2 results removed\n")
        assert house.shown() == ["three"]
        house.stoker("ac", "purge", "--all")
        assert house.shown() == []


def test_scrub_says_what_cannot_be_scrubbed(house: House) -> None:  # STO-08
    with house.serving():
        everything = house.stoker("cas", "scrub")
        assert "[blob_stores.main]" in everything.stderr
        assert (everything.returncode, everything.stdout) == (0, "")
        assert house.stoker("cas", "scrub", "main").returncode == 1
        unknown = house.stoker("cas", "scrub", "nope")
        assert (unknown.returncode, "'nope'" in unknown.stderr) == (1, True)


@pytest.mark.parametrize(
    "command", [("ac", "show"), ("ac", "purge", "--all"), ("cas", "scrub")], ids=" ".join
)
@pytest.mark.parametrize("left_behind", [False, True])
def test_a_server_that_is_not_running_is_told(
    house: House, command: tuple[str, ...], left_behind: bool
) -> None:
    if left_behind:
        (house.folder / "stoker-state").mkdir()
        (house.folder / "stoker-state/admin.socket").touch()
    run = house.stoker(*command)
    assert (run.returncode, run.stdout) == (1, "")
    [sentence] = run.stderr.splitlines()
    assert "no server of this configuration is running" in sentence
    assert str(house.folder / "stoker-state/admin.socket") in sentence


def test_a_server_in_trouble_is_not_called_absent(house: House) -> None:
    toml = house.folder / "stoker.toml"
    disk = '[action_caches.main]\nkind = "disk"\npath = "actions"'
    toml.write_text(TOML.replace('[action_caches.main]\nkind = "memory"', disk))
    # Nobody can look at a link that leads to itself.
    unreadable = house.folder / "actions/sha256" / ("0" * 64) / "ab" / f"{'ab' * 32}-1"
    unreadable.parent.mkdir(parents=True)
    unreadable.symlink_to(unreadable)
    with house.serving():
        run = house.stoker("ac", "show")
    assert (run.returncode, run.stdout) == (1, "")
    assert "Too many levels of symbolic links" in run.stderr
    assert "no server" not in run.stderr


@pytest.mark.parametrize("age", ["7", "d", "7y", "-1d", "", "9999w", "9" * 400 + "d"])
def test_an_age_that_is_none(house: House, age: str) -> None:
    run = house.stoker("ac", "show", "--older-than", age)
    assert (run.returncode, "is no age" in run.stderr) == (2, True)
