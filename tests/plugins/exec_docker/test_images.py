"""Images that the engine fetches, from a registry on this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from stoker import spi
from tests.docker_engine import BUSYBOX, PYTHON

from .conftest import OpenStrategy
from .places import output, place_at
from .registry import Registry, open_registry


@pytest.fixture
def registry() -> Iterator[Registry]:
    with open_registry() as registry:
        yield registry


async def test_an_image_is_fetched_once_for_all_who_ask_at_once(  # ISO-02
    open_docker: OpenStrategy, tmp_path: Path, registry: Registry
) -> None:
    name = registry.publish("tools/once:1", "first")
    registry.gate.clear()
    said: list[str] = []
    async with open_docker(pull="missing") as strategy:

        async def run_one(number: int) -> None:
            place = place_at(tmp_path / "actions" / str(number), strategy.user)
            said.append(await output(strategy, place, "cat /said", container_image=name))

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(run_one, number)
            with trio.move_on_after(0.5):
                await run_one(9)  # gives up, and the others get it all the same
            registry.gate.set()
    assert said == ["first"] * 3
    manifests = [asked for path, asked in registry.asked.items() if "/manifests/1" in path]
    assert sum(manifests) == 1


async def test_what_a_tag_stands_for_is_asked_again_where_that_is_set(  # ISO-02
    open_docker: OpenStrategy, registry: Registry
) -> None:
    properties = {"container-image": (registry.publish("tools/moving:1", "first"),)}
    async with open_docker(pull="always", pull_again_seconds=0.001) as strategy:
        first = await strategy.identify_surroundings(properties)
        registry.publish("tools/moving:1", "second")
        second = await strategy.identify_surroundings(properties)
    assert first != second
    registry.publish("tools/moving:1", "third")
    async with open_docker(pull="missing") as strategy:
        assert await strategy.identify_surroundings(properties) == second


async def test_a_name_that_comes_to_mean_another_image_is_noticed(
    open_docker: OpenStrategy, endpoint: str
) -> None:
    def name_it(image: str) -> None:
        tag = ["docker", "-H", endpoint, "tag", image, "stoker-test-moving:1"]
        subprocess.run(tag, check=True)

    properties = {"container-image": ("stoker-test-moving:1",)}
    async with open_docker() as strategy:
        answers = []
        for image in (BUSYBOX, PYTHON, BUSYBOX):
            await trio.to_thread.run_sync(name_it, image)
            answers.append(await strategy.identify_surroundings(properties))
            assert answers[-1] == await strategy.identify_surroundings(properties)
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize(
    ("status", "error"), [(404, spi.FailedPrecondition), (503, spi.Unavailable)]
)
async def test_trouble_is_told_by_name_and_never_remembered(  # ISO-02
    open_docker: OpenStrategy,
    registry: Registry,
    status: int,
    error: type[spi.StokerError],
) -> None:
    name = registry.publish(f"tools/trouble{status}:1", "there")
    properties = {"container-image": (f"docker://{name}",)}
    async with open_docker(pull="missing") as strategy:
        registry.status = status
        with pytest.raises(error, match=name):
            await strategy.identify_surroundings(properties)
        registry.status = 0
        assert "sha256:" in await strategy.identify_surroundings(properties)


async def test_a_registry_that_is_not_there_is_unavailable(open_docker: OpenStrategy) -> None:
    async with open_docker(pull="missing") as strategy:
        with pytest.raises(spi.Unavailable, match=r"127\.0\.0\.1:1/a"):
            await strategy.identify_surroundings({"container-image": ("127.0.0.1:1/a",)})
        with pytest.raises(spi.FailedPrecondition, match="UPPER"):
            await strategy.identify_surroundings({"container-image": ("127.0.0.1:1/UPPER",)})
