"""The laws of strategies hold for the local strategy within this sandbox, as they do without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stoker import spi
from stoker.execution.enclosed import Enclosed
from stoker.testing.execution_strategy_laws import (
    ExecutionStrategyLaws,
    Witness,
    Workplace,
)
from stoker_exec_local import LocalStrategy
from stoker_sandbox_bubblewrap import stoker_sandboxes


class TestEnclosed(ExecutionStrategyLaws):
    """The laws of stoker.testing, with either way to show the input root."""

    @pytest.fixture(params=["as-laid", "overlay"])
    async def strategy(
        self, request: pytest.FixtureRequest, tmp_path: Path
    ) -> AsyncIterator[spi.ExecutionStrategy]:
        provider = stoker_sandboxes()["bubblewrap"]
        settings = provider.settings(inputs=request.param)
        async with provider.open(settings, spi.Context("box", tmp_path, {})) as sandbox:
            yield Enclosed(LocalStrategy(), sandbox)

    @pytest.fixture
    async def witness(self, place: Workplace) -> AsyncIterator[Witness]:
        # A named pipe seen through an overlay is another pipe.
        witness = Witness(place.spec("true").temporary_directory / "witness")
        yield witness
        witness.close()
