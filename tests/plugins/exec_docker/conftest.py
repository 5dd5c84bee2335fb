"""An engine for the tests of this folder, and strategies on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from stoker import spi
from stoker_exec_docker import DockerSettings, DockerStrategy, open_strategy
from tests.docker_engine import BUSYBOX, NoEngine, some_endpoint

from .made_images import MakeImage, image_maker

OpenStrategy = Callable[..., AbstractAsyncContextManager[DockerStrategy]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They start an engine, and containers by the hundred: not with the fast tests."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """A real engine; without one the test is skipped, with the reason."""
    try:
        with some_endpoint() as found:
            yield found
    except NoEngine as error:
        pytest.skip(f"no container engine: {error}")


@pytest.fixture
def make_image(endpoint: str) -> Iterator[MakeImage]:
    """Makes images that are gone after the test."""
    with image_maker(endpoint) as make:
        yield make


@pytest.fixture
def open_docker(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> OpenStrategy:
    """Opens a strategy on the engine, with the settings given."""
    folder = tmp_path_factory.mktemp("server")

    def open_with(
        name: str = "docker", **settings: Any
    ) -> AbstractAsyncContextManager[DockerStrategy]:
        chosen = {"endpoint": endpoint, "default_image": BUSYBOX, "pull": "never"} | settings
        context = spi.Context(name, Path(folder), {})
        return open_strategy(DockerSettings(**chosen), context)

    return open_with
