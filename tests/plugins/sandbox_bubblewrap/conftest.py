"""What the tests of this sandbox share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import Workplace
from stoker_exec_local import stoker_execution_strategies
from stoker_sandbox_bubblewrap import stoker_sandboxes

OpenBox = Callable[..., AbstractAsyncContextManager[spi.Sandbox]]


@pytest.fixture
def open_box(tmp_path: Path) -> OpenBox:
    """Opens a sandbox with these settings."""
    configuration = tmp_path / "configuration"
    configuration.mkdir(exist_ok=True)

    def open_box(**settings: Any) -> AbstractAsyncContextManager[spi.Sandbox]:
        provider = stoker_sandboxes()["bubblewrap"]
        context = spi.Context("box", settings.pop("folder", configuration), {})
        return provider.open(provider.settings(**settings), context)

    return open_box


@pytest.fixture
async def strategy(tmp_path: Path) -> AsyncIterator[spi.ExecutionStrategy]:
    provider = stoker_execution_strategies()["local"]
    async with provider.open(provider.settings(), spi.Context("local", tmp_path, {})) as opened:
        yield opened


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    folder = tmp_path / "place"
    folder.mkdir()
    return Workplace(folder)
