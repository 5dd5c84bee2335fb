"""A real Bazel builds on a server that is killed again and again (SCH-07, OPS-10, OPS-11).

``STOKER_RESTARTS`` says how often it is killed; the figures of a long run are printed.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from .bazel import Bazel, open_bazel
from .server_process import open_server_process

pytestmark = [pytest.mark.bazel, pytest.mark.slow]

RESTARTS = int(os.environ.get("STOKER_RESTARTS", "5"))
LAYERS, WIDTH = 6, 8
BUILDS_WITHOUT_A_KILL = 3

SERVER = """
[server]
listen = ["127.0.0.1:{port}"]
[blob_stores.main]
kind = "disk"
path = "cas"
[action_caches.main]
kind = "disk"
path = "actions"
[executors.local]
strategy = "local"
slots = 4
limits = {{ termination_grace_seconds = 0.2 }}
[instances.""]
blob_store = "main"
action_cache = "main"
executors = ["local"]
"""

RULE = """
genrule(
    name = "{name}",
    srcs = [{sources}],
    outs = ["{name}.txt"],
    cmd = "echo {name} >>{runs}; sleep {seconds:.2f}; cat $(SRCS) | sha256sum >$@",
)
"""


class Storm:
    """Serves, and kills the server as often as it is told, some time after an action has begun."""

    def __init__(self, folder: Path, toml: str, runs: Path) -> None:
        self.folder, self.toml, self.runs = folder, toml, runs
        self.kills = 0
        self.is_over = threading.Event()
        self.serves = threading.Event()
        self.failure: BaseException | None = None

    def rage(self) -> None:
        try:
            rng = random.Random(7)
            while self.kills < RESTARTS and not self.is_over.is_set():
                with open_server_process(self.folder, self.toml) as server:
                    self.serves.set()
                    self._await_action()
                    self.is_over.wait(rng.uniform(0.0, 3.0))
                    server.kill()
                    self.kills += 1
            with open_server_process(self.folder, self.toml):
                self.is_over.wait()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self.serves.set()

    def _await_action(self) -> None:
        begun = self._runs()
        while self._runs() == begun and not self.is_over.wait(0.01):
            pass

    def _runs(self) -> int:
        return self.runs.stat().st_size


@contextmanager
def raging(folder: Path, runs: Path) -> Iterator[Storm]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storm = Storm(folder, SERVER.format(port=port), runs)
    thread = threading.Thread(target=storm.rage)
    thread.start()
    try:
        storm.serves.wait()
        yield storm
    finally:
        storm.is_over.set()
        thread.join()
    assert storm.failure is None


def write_package(bazel: Bazel, runs: Path, salt: str) -> dict[str, str]:
    """A package of actions that need each other; returns what each of its outputs has to be."""
    package = bazel.workspace / "storm"
    package.mkdir(exist_ok=True)
    package.joinpath("seed.txt").write_text(salt)
    rng = random.Random(salt)
    contents, rules = {"seed.txt": salt}, []
    above = ["seed.txt"]
    for layer in range(LAYERS):
        names = [f"l{layer}_{place}" for place in range(WIDTH)]
        for name in names:
            sources = sorted(rng.sample(above, min(3, len(above))))
            rules.append(
                RULE.format(
                    name=name,
                    sources=", ".join(f'"{source}"' for source in sources),
                    seconds=rng.choice((0.05, 0.2, 0.5, 1.0)),
                    runs=runs,
                )
            )
            joined = "".join(contents[source] for source in sources).encode()
            contents[f"{name}.txt"] = f"{sha256(joined).hexdigest()}  -\n"
        above = [f"{name}.txt" for name in names]
    package.joinpath("BUILD").write_text("".join(rules))
    return contents


@pytest.fixture
def program() -> str:
    found = shutil.which("bazel")
    if found is None:
        pytest.skip("there is no `bazel` on the PATH")
    return found


def test_every_build_ends_right_on_a_server_that_is_killed(program: str, tmp_path: Path) -> None:
    runs, calls = tmp_path / "runs", tmp_path / "calls"
    runs.touch()
    waited_again = builds = 0
    with open_bazel(program, tmp_path) as bazel, raging(tmp_path / "server", runs) as storm:
        bazel.hang_seconds = 120 + 10 * RESTARTS
        after = 0
        while after < BUILDS_WITHOUT_A_KILL and (storm.kills < RESTARTS or not after):
            expected = write_package(bazel, runs, f"{builds}\n")
            after += storm.kills == RESTARTS
            outcome = bazel.run(
                "build",
                "//storm:all",
                "--config=remote",
                f"--remote_executor={address(storm)}",
                "--remote_retries=200",
                "--verbose_failures",
                f"--experimental_remote_grpc_log={calls}",
            )
            assert outcome.exit_code == 0, outcome.console + log_of(storm)
            for name, content in expected.items():
                if name != "seed.txt":
                    assert bazel.built(f"storm/{name}").read_text() == content
            assert {spawn.runner for spawn in outcome.spawns} <= {"remote", "remote cache hit"}
            waited_again += calls.read_bytes().count(b"Execution/WaitExecution")
            builds += 1
    started = Counter(runs.read_text().split())
    asked = builds * LAYERS * WIDTH
    print(
        f"{storm.kills} kills under {builds} builds of {LAYERS * WIDTH} actions: "
        f"{started.total() - asked} of {asked} actions were begun again, "
        f"WaitExecution was called {waited_again} times"
    )
    assert storm.kills == RESTARTS
    assert started.total() >= asked


def address(storm: Storm) -> str:
    return "grpc://" + storm.toml.partition('["')[2].partition('"]')[0]


def log_of(storm: Storm) -> str:
    return (storm.folder / "server.log").read_text()[-8000:]
