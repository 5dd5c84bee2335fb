"""A server process for all, a workbench for each, and the programs, where they are."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from stoker.client import open_remote

from ..end_to_end.server_process import LOCAL, ServerProcess, open_server_process
from . import programs
from .workbench import Workbench

FoundT = TypeVar("FoundT")

# One of them takes no notice when its stdin ends.
CONFIGURATION = f"""{LOCAL.replace("slots = 2", "slots = 4")}
[executors.local.workers]
shutdown_grace_seconds = 1.0
cancel_grace_seconds = 1.0
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They start compilers that take seconds to start: not with the fast tests."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


def found_or_skipped(find: Callable[[], FoundT]) -> FoundT:
    """What `find` finds. Where all are to be there, as in CI, an absent one is a failure."""
    try:
        return find()
    except programs.ProgramAbsent as absent:
        if os.environ.get("STOKER_REAL_WORKERS_REQUIRED"):
            pytest.fail(f"{absent}")
        pytest.skip(f"{absent}")


@pytest.fixture(scope="session")
def node() -> str:
    return found_or_skipped(programs.node)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    return found_or_skipped(programs.node_modules)


@pytest.fixture(scope="session")
def example_worker() -> list[str]:
    return found_or_skipped(programs.example_worker)


@pytest.fixture(scope="session")
def multiplexer() -> list[str]:
    return found_or_skipped(lambda: programs.example_worker("ExampleWorkerMultiplexer"))


@pytest.fixture(scope="session")
def java_builder(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("java")
    return found_or_skipped(lambda: programs.java_builder(folder))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with open_server_process(tmp_path_factory.mktemp("server"), CONFIGURATION) as opened:
        yield opened


@pytest.fixture
async def bench(server: ServerProcess) -> AsyncIterator[Workbench]:
    async with open_remote(server.address) as remote:
        yield Workbench(remote)
