"""Drives a real Bazel on a copy of the example workspace and reads what it reports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE_WORKSPACE = Path(__file__).parents[2] / "examples" / "bazel"

# Far above what any command here takes: a hang becomes a failure instead of a stuck run.
HANG_SECONDS = 120


@dataclass(frozen=True)
class Spawn:
    """One action that Bazel ran or fetched, as its execution log has it."""

    mnemonic: str
    runner: str
    exit_code: int
    platform: dict[str, str]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What one Bazel command came to."""

    exit_code: int
    console: str
    spawns: tuple[Spawn, ...]

    def runners(self) -> set[str]:
        """Where the actions ran, or where their results came from."""
        return {spawn.runner for spawn in self.spawns}


class Bazel:
    """Bazel on one workspace, with an output folder and a server process of its own."""

    def __init__(self, program: str, workspace: Path, folder: Path) -> None:
        self.workspace = workspace
        self.hang_seconds = HANG_SECONDS
        self._folder = folder
        self._startup = [program, "--nohome_rc", f"--output_user_root={folder / 'root'}"]

    def run(self, command: str, *arguments: str) -> Outcome:
        """Run `build` or `test`, however it ends, and tell what it did."""
        log = self._folder / "execution_log.json"
        log.unlink(missing_ok=True)
        done = self._run(
            command,
            "--color=no",
            "--curses=no",
            "--noshow_progress",
            # The workspace is offline: a download is a mistake, not a slow test.
            "--experimental_repository_disable_download",
            f"--symlink_prefix={self._folder}/bazel-",
            f"--execution_log_json_file={log}",
            *arguments,
        )
        spawns = tuple(_read_execution_log(log)) if log.exists() else ()
        return Outcome(done.returncode, done.stdout, spawns)

    def clean(self) -> None:
        """Forget all outputs and the local action cache, keep what was fetched."""
        done = self._run("clean", f"--symlink_prefix={self._folder}/bazel-")
        assert done.returncode == 0, done.stdout

    def shut_down(self) -> None:
        """End the server process. Does nothing if there is none."""
        self._run("shutdown")

    def built(self, path: str) -> Path:
        """Where the output `path`, relative to bazel-bin, is on this machine."""
        return self._folder / "bazel-bin" / path

    def test_log(self, test: str) -> str:
        """What the test `test`, such as `text/whole_test`, wrote when it last ran."""
        return (self._folder / "bazel-testlogs" / test / "test.log").read_text()

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self._startup, *arguments],
                cwd=self.workspace,
                # Nothing of the caller's environment, proxies least of all.
                env={"PATH": os.defpath, "HOME": str(self._folder), "USER": "example"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=self.hang_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            # Bazel's server goes on with the command, and the next command would wait for it.
            self._kill_server()
            raise

    def _kill_server(self) -> None:
        for file in self._folder.glob("root/*/server/server.pid.txt"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)
            file.unlink()


@contextmanager
def open_bazel(program: str, folder: Path) -> Iterator[Bazel]:
    """Give a Bazel on a fresh copy of the example workspace; its server ends with the block."""
    workspace = folder / "workspace"
    shutil.copytree(EXAMPLE_WORKSPACE, workspace, ignore=shutil.ignore_patterns("bazel-*"))
    bazel = Bazel(program, workspace, folder)
    try:
        yield bazel
    finally:
        bazel.shut_down()


def _read_execution_log(log: Path) -> Iterator[Spawn]:
    """The log is one JSON object after the other, with nothing reliable between them."""
    decoder = json.JSONDecoder()
    text = log.read_text().strip()
    while text:
        record, end = decoder.raw_decode(text)
        text = text[end:].lstrip()
        yield _spawn_of(record)


def _spawn_of(record: dict[str, Any]) -> Spawn:
    properties = record.get("platform", {}).get("properties", [])
    return Spawn(
        mnemonic=record["mnemonic"],
        runner=record["runner"],
        exit_code=record.get("exitCode", 0),
        platform={each["name"]: each["value"] for each in properties},
        outputs=tuple(record.get("listedOutputs", [])),
    )
