"""stoker as its users run it: a process of its own, told what to do by a TOML file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LOCAL = """
[server]
listen = ["127.0.0.1:0"]
drain_seconds = 1.0
[blob_stores.main]
kind = "disk"
path = "cas"
[action_caches.main]
kind = "disk"
path = "actions"
[executors.local]
strategy = "local"
slots = 2
limits = { termination_grace_seconds = 0.2 }
[instances.""]
blob_store = "main"
action_cache = "main"
executors = ["local"]
"""

START_SECONDS = 60


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that serves."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


@contextmanager
def open_server_process(
    folder: Path, toml: str = LOCAL, environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Serve with stoker.toml and all state in `folder`; on leaving, stop it as a service would be.

    Raises RuntimeError with the log of a server that does not come up.
    """
    folder.mkdir(exist_ok=True)
    config, port_file, log = folder / "stoker.toml", folder / "address", folder / "server.log"
    config.write_text(toml, encoding="utf-8")
    port_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "stoker", "serve", "--config", str(config)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--port-file", str(port_file)],
            stdin=subprocess.DEVNULL,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
    try:
        _await_file(port_file, process, log)
        yield ServerProcess(port_file.read_text().split()[0], process, log)
    finally:
        process.terminate()
        try:
            process.wait(START_SECONDS)
        finally:
            process.kill()
            process.wait()


def _await_file(file: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(START_SECONDS * 50):
        if file.exists():
            return
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        break
    raise RuntimeError(f"the server did not come up:\n{log.read_text(errors='replace')}")
