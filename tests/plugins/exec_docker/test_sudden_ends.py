"""Servers that are killed, and engines that go away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from stoker import spi
from stoker.testing.execution_strategy_laws import Witness, outcome, run
from stoker_exec_docker import DockerSettings, open_strategy
from stoker_exec_docker.plugin import check_engine
from tests.docker_engine import BUSYBOX, NoEngine, TestEngine, import_images, running_engine

from .conftest import OpenStrategy
from .places import place_at


def containers(endpoint: str) -> list[str]:
    listed = ["docker", "-H", endpoint, "ps", "-aq", "--filter", "label=build.stoker.owner"]
    return subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


async def killed_when_busy(endpoint: str, folder: Path, number: int) -> int:
    """Returns the number that the server had."""
    server = await trio.lowlevel.open_process(
        [
            *(sys.executable, str(Path(__file__).with_name("busy_server.py"))),
            *(endpoint, BUSYBOX, str(folder), str(number)),
        ],
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    async with server.stdout:
        assert await server.stdout.receive_some() == b"busy\n"
    server.send_signal(signal.SIGKILL)
    await server.wait()
    return server.pid


@pytest.mark.parametrize("number", [3, pytest.param(20, marks=pytest.mark.slow)])
async def test_what_a_killed_server_left_is_removed_at_the_next_start(  # ISO-09
    endpoint: str, tmp_path: Path, number: int
) -> None:
    pid = await killed_when_busy(endpoint, tmp_path, number)
    assert len(containers(endpoint)) == number
    settings = DockerSettings(endpoint=endpoint, default_image=BUSYBOX, pull="never")
    # Another server's are not touched.
    async with open_strategy(settings, spi.Context("other", tmp_path, {})):
        assert len(containers(endpoint)) == number
    async with open_strategy(settings, spi.Context("docker", tmp_path, {})) as strategy:
        assert containers(endpoint) == []
        assert str(tmp_path) not in mounts()
        place = place_at(tmp_path / "next" / "1", strategy.user)
        assert await outcome(strategy, place.spec("true")) == spi.Exit(0)
    assert containers(endpoint) == []
    assert f"-{pid}-" not in mounts()


@pytest.fixture
def own_engine() -> Iterator[TestEngine]:
    try:
        with running_engine() as engine:
            import_images(engine.endpoint, python=False)
            yield engine
    except NoEngine as error:
        pytest.skip(f"no container engine: {error}")


async def test_an_engine_may_go_away_and_come_back(own_engine: TestEngine, tmp_path: Path) -> None:
    settings = DockerSettings(
        endpoint=own_engine.endpoint,
        default_image=BUSYBOX,
        pull="never",
        keep_containers="always",
        engine_wait_seconds=30,
    )
    async with open_strategy(settings, spi.Context("docker", tmp_path, {})) as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        other = place_at(tmp_path / "actions" / "2", strategy.user)
        assert await outcome(strategy, other.spec("true")) == spi.Exit(0)
        with pytest.raises(spi.Unavailable):  # noqa: PT012  # two things that happen at once
            async with strategy.start(place.script("echo; sleep 1000", pipes=True)) as process:
                assert process.stdout is not None
                await process.stdout.receive_some()
                await trio.to_thread.run_sync(own_engine.stop)
                await process.wait()
        async with trio.open_nursery() as nursery:

            async def run_one() -> None:
                assert await outcome(strategy, other.spec("true")) == spi.Exit(0)

            nursery.start_soon(run_one)
            await trio.to_thread.run_sync(own_engine.start)
        assert await outcome(strategy, place.spec("true")) == spi.Exit(0)
    assert containers(own_engine.endpoint) == []


async def test_an_engine_that_stays_away_is_unavailable_within_the_bound(
    own_engine: TestEngine, tmp_path: Path
) -> None:
    settings = DockerSettings(
        endpoint=own_engine.endpoint, default_image=BUSYBOX, engine_wait_seconds=0.2
    )
    async with open_strategy(settings, spi.Context("docker", tmp_path, {})) as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        await trio.to_thread.run_sync(own_engine.stop)
        with pytest.raises(spi.Unavailable, match="socket"):
            await run(strategy, place.spec("true"))
        await trio.to_thread.run_sync(own_engine.start)


async def test_an_engine_that_stands_still_is_unavailable_within_the_bound(
    own_engine: TestEngine, tmp_path: Path
) -> None:
    settings = DockerSettings(
        endpoint=own_engine.endpoint,
        default_image=BUSYBOX,
        pull="never",
        keep_containers="always",
        engine_wait_seconds=0.5,
        call_timeout_seconds=3,
    )
    async with open_strategy(settings, spi.Context("docker", tmp_path, {})) as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        assert await outcome(strategy, place.spec("true")) == spi.Exit(0)
        own_engine.send(signal.SIGSTOP)
        try:
            with trio.fail_after(60), pytest.raises(spi.Unavailable):
                await run(strategy, place.spec("true"))
        finally:
            own_engine.send(signal.SIGCONT)
        assert await outcome(strategy, place.spec("true")) == spi.Exit(0)


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"OSType": "windows"}, "Linux"),
        ({"CgroupDriver": "none"}, "control groups"),
        ({"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}, "rootless"),
        ({"SecurityOptions": ["name=userns"]}, "userns"),
    ],
)
def test_what_keeps_an_engine_from_being_used_is_told(facts: dict[str, object], word: str) -> None:
    with pytest.raises(spi.ConfigurationError, match=word):
        check_engine(facts, "strategies.boxes")


async def test_trouble_with_the_engine_is_told(tmp_path: Path) -> None:
    async def failure(endpoint: str) -> str:
        context = spi.Context("boxes", tmp_path, {})
        with pytest.raises(spi.StokerError) as caught:
            async with open_strategy(DockerSettings(endpoint=endpoint), context):
                pass
        return str(caught.value)

    (tmp_path / "file").touch()
    assert "there is no socket /no/socket" in await failure("unix:///no/socket")
    assert "no container engine listens" in await failure(f"unix://{tmp_path}/file")
    assert "strategies.boxes.endpoint" in await failure("tcp://127.0.0.1:1")


async def test_what_it_does_is_told(open_docker: OpenStrategy) -> None:
    async with open_docker(keep_containers="always") as strategy:
        sentences = "\n".join(strategy.enforcement())
    assert "memory limits are enforced" in sentences
    if os.geteuid() == 0:
        assert "one action after another" in sentences
        assert "degraded" not in sentences


async def test_an_engine_that_is_killed_when_busy_and_started_again_serves_on(
    own_engine: TestEngine, tmp_path: Path
) -> None:
    settings = DockerSettings(
        endpoint=own_engine.endpoint,
        default_image=BUSYBOX,
        pull="never",
        keep_containers="always",
        engine_wait_seconds=60,
    )
    async with open_strategy(settings, spi.Context("docker", tmp_path, {})) as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        other = place_at(tmp_path / "actions" / "2", strategy.user)
        assert await outcome(strategy, other.spec("true")) == spi.Exit(0)
        witness = Witness(place.root / "witness")
        with pytest.raises(spi.Unavailable):  # noqa: PT012  # two things that happen at once
            async with strategy.start(place.script("exec 9>witness; echo on >&9; sleep 1000")) as p:
                await witness.wait_for("on")
                await trio.to_thread.run_sync(own_engine.stop, signal.SIGKILL)
                await p.wait()
        await witness.wait_until_all_are_gone()
        witness.close()
        await trio.to_thread.run_sync(own_engine.start)
        assert await outcome(strategy, place.spec("true")) == spi.Exit(0)
    assert containers(own_engine.endpoint) == []
