"""The local strategy in each of its modes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import Witness, Workplace
from stoker_exec_local import LocalStrategy, Settings, open_strategy

OpenStrategy = Callable[..., AbstractAsyncContextManager[LocalStrategy]]


@pytest.fixture
def open_local_strategy(tmp_path: Path) -> OpenStrategy:
    """Opens a strategy with the settings given."""

    def open_with(**settings: Any) -> AbstractAsyncContextManager[LocalStrategy]:
        if settings.get("user") is not None and os.geteuid() != 0:
            pytest.skip("only root can run processes as another user")
        return open_strategy(Settings(**settings), spi.Context("here", tmp_path, {}))

    return open_with


@pytest.fixture(params=["auto", "never"], ids=["cgroups", "supervisors"])
async def strategy(
    request: pytest.FixtureRequest, open_local_strategy: OpenStrategy
) -> AsyncIterator[LocalStrategy]:
    """A strategy that ends process trees by control groups, if they can be had, and one without."""
    async with open_local_strategy(cgroups=request.param) as opened:
        yield opened


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture
async def witness(place: Workplace) -> AsyncIterator[Witness]:
    witness = Witness(place.root / "witness")
    yield witness
    witness.close()
