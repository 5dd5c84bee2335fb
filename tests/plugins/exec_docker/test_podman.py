"""The same on Podman's compatible service."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import ExecutionStrategyLaws, outcome
from stoker_exec_docker import DockerSettings, open_strategy
from tests.docker_engine import BUSYBOX, NoEngine, import_images

from .places import asking, output, place_at

pytestmark = pytest.mark.slow

_PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
def podman() -> Iterator[str]:
    """The endpoint of a Podman with folders of its own."""
    if os.geteuid() != 0:
        pytest.skip("Podman's service is started by root here")
    if missing := [name for name in ("podman", "docker", "busybox") if not shutil.which(name)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    # Not below the folders of tests: the names of sockets are short.
    with tempfile.TemporaryDirectory(prefix="sp-", ignore_cleanup_errors=True) as folder:
        endpoint = f"unix://{folder}/socket"
        options = ["--root", f"{folder}/root", "--runroot", f"{folder}/run"]
        options += ["--runtime", _runtime(Path(folder)), "--cgroup-manager=cgroupfs"]
        command = ["podman", *options]
        with (
            (Path(folder) / "log").open("wb") as log,
            subprocess.Popen(
                [*command, "system", "service", "--time=0", endpoint],
                cwd=folder,  # where its runtime leaves word of what ran out of memory
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            ) as service,
        ):
            try:
                _await_socket(Path(folder, "socket"), service)
                import_images(endpoint, python=False)
                _try(endpoint)
                yield endpoint
            except NoEngine as error:
                pytest.skip(f"no Podman: {error}")
            finally:
                service.send_signal(signal.SIGTERM)
        _kill_what_names(folder)
        unmount = [*command, "system", "reset", "--force"]
        subprocess.run(unmount, capture_output=True, check=False)


def _kill_what_names(folder: str) -> None:
    """Podman's monitors outlive what they have watched by minutes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if f"{folder}/".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


RUNTIME = """#!{python}
import json, os, pathlib, sys
for option, path in zip(sys.argv, sys.argv[1:]):
    if option in ("--bundle", "--process"):
        file = pathlib.Path(path, "config.json") if option == "--bundle" else pathlib.Path(path)
        told = json.loads(file.read_text())
        told.get("process", told).pop("rlimits", None)
        file.write_text(json.dumps(told))
os.execv("{runtime}", ["{runtime}", *sys.argv[1:]])
"""
"""Podman has limits raised, which root may not do everywhere: these stay as they are."""


def _runtime(folder: Path) -> str:
    path = folder / "runtime"
    found = shutil.which("crun") or shutil.which("runc")
    path.write_text(RUNTIME.format(python=sys.executable, runtime=found))
    path.chmod(0o755)
    return str(path)


def _await_socket(path: Path, service: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not path.exists():
        if service.poll() is not None or time.monotonic() > deadline:
            raise NoEngine("its service does not start")
        time.sleep(0.05)


def _try(endpoint: str) -> None:
    """Its runtimes refuse machines whose control groups are of both versions."""
    trial = subprocess.run(
        ["docker", "--host", endpoint, "run", "--detach", "--rm", BUSYBOX, "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if trial.returncode:
        raise NoEngine(trial.stderr.strip())


class TestOnPodman:
    """Some laws that engines might see to in other ways."""

    @pytest.fixture
    async def strategy(self, podman: str, tmp_path: Path) -> AsyncIterator[spi.ExecutionStrategy]:
        settings = DockerSettings(
            endpoint=podman, default_image=BUSYBOX, pull="never", keep_containers="always"
        )
        async with open_strategy(settings, spi.Context("docker", tmp_path, {})) as strategy:
            yield strategy

    place = ExecutionStrategyLaws.place
    witness = ExecutionStrategyLaws.witness
    test_environment = ExecutionStrategyLaws.test_the_environment_is_exactly_what_was_given
    test_streams = ExecutionStrategyLaws.test_pipes_carry_both_ways
    test_children = ExecutionStrategyLaws.test_children_left_behind_are_killed_too
    test_memory = ExecutionStrategyLaws.test_a_process_that_wants_too_much_memory_ends_by_it

    async def test_a_container_serves_one_after_another(
        self, strategy: spi.ExecutionStrategy, tmp_path: Path
    ) -> None:
        for number in range(2):
            place = place_at(tmp_path / "actions" / str(number), strategy.user)
            look = "cat /tmp/left; echo > /tmp/left; id -u; ls /sys/class/net"
            said = await output(strategy, place, look)
            assert said.splitlines()[1:] == ["65534", "lo"]
            assert "No such file" in said
            assert (await outcome(strategy, place.script("exit 3"))).code == 3
        place = place_at(tmp_path / "actions" / "last", strategy.user)
        spec = asking(place.spec("true"), container_image=f"docker://{BUSYBOX}")
        assert await outcome(strategy, spec) == spi.Exit(0)
        assert "sha256:" in await strategy.identify_surroundings(spec.properties)
