"""What the tests of this sandbox share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import Workplace
from stoker_exec_local import LocalStrategy
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
def strategy() -> spi.ExecutionStrategy:
    return LocalStrategy()


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    folder = tmp_path / "place"
    folder.mkdir()
    return Workplace(folder)
