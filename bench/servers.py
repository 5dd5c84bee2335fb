"""The servers that are measured, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 60

_STORES = {
    "memory": """
[blob_stores.main]
kind = "memory"
[action_caches.main]
kind = "memory"
""",
    "disk": """
[blob_stores.main]
kind = "disk"
path = "cas"
[action_caches.main]
kind = "disk"
path = "actions"
""",
}

_SERVER = """
[server]
listen = ["127.0.0.1:0"]
drain_seconds = 1.0
state_directory = "state"
[log]
level = "warning"
[scheduler]
{scheduler}
[executors.local]
strategy = "local"
sandbox = "{sandbox}"
slots = {slots}
[executors.local.workers]
max_workers_per_key = {slots}
[instances.""]
blob_store = "main"
action_cache = "main"
executors = ["local"]
"""


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that serves."""

    address: str
    pid: int

    def cpu_seconds(self) -> float:
        """The processor time that it has used up: all its threads, but none of its children."""
        # The clock of another process, by the number that clock_getcpuclockid(3) would give. It
        # counts nanoseconds, where /proc/<pid>/stat counts hundredths of a second.
        return time.clock_gettime(~self.pid << 3 | 2)


@contextmanager
def open_stoker(
    store: str, slots: int = 1, sandbox: str = "none", scheduler: str = ""
) -> Iterator[ServerProcess]:
    """As `open_stoker_of`, with one local executor. `store` is "memory" or "disk", `sandbox` the
    kind of one, `scheduler` what else is in the table of that name."""
    configuration = _STORES[store] + _SERVER.format(
        slots=slots, sandbox=sandbox, scheduler=scheduler
    )
    with open_stoker_of(configuration) as server:
        yield server


@contextmanager
def open_stoker_of(configuration: str) -> Iterator[ServerProcess]:
    """``stoker serve`` of a TOML file, all its state in a temporary folder.

    Raises RuntimeError if it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as name:
        # Other users may have to pass: processes in containers do.
        Path(name).chmod(0o711)
        Path(name, "stoker.toml").write_text(configuration)
        addresses = Path(name, "addresses")
        command = ["-m", "stoker", "serve", "--config", name + "/stoker.toml"]
        with _process([*command, "--port-file", str(addresses)], subprocess.DEVNULL) as process:
            _await_file(addresses, process)
            yield ServerProcess(addresses.read_text().split()[0], process.pid)


@contextmanager
def open_program(program: str, *arguments: str) -> Iterator[ServerProcess]:
    """A server that is a program of this folder, and prints its address once it serves."""
    script = str(Path(__file__).with_name(program))
    with _process([script, *arguments], subprocess.PIPE) as process:
        assert process.stdout is not None
        address = process.stdout.readline().decode().strip()
        if not address:
            raise RuntimeError(f"{program} did not come up")
        yield ServerProcess(address, process.pid)


@contextmanager
def _process(arguments: Sequence[str], stdout: int) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=stdout
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_file(file: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("stoker did not come up; its log is above")
        time.sleep(0.02)
