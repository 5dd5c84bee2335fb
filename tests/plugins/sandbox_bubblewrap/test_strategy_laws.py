"""The laws of strategies hold for the local strategy within this sandbox, as they do without."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from stoker import spi
from stoker.execution.enclosed import Enclosed
from stoker.testing.execution_strategy_laws import (
    ExecutionStrategyLaws,
    Witness,
    Workplace,
)

OpenBox = Callable[..., AbstractAsyncContextManager[spi.Sandbox]]


class TestEnclosed(ExecutionStrategyLaws):
    """The laws of stoker.testing, with either way to show the input root."""

    @pytest.fixture(params=["as-laid", "overlay"])
    async def strategy(
        self,
        request: pytest.FixtureRequest,
        open_box: OpenBox,
        strategy: spi.ExecutionStrategy,
    ) -> AsyncIterator[spi.ExecutionStrategy]:
        async with open_box(inputs=request.param) as sandbox:
            yield Enclosed(strategy, sandbox)

    @pytest.fixture
    async def witness(self, place: Workplace) -> AsyncIterator[Witness]:
        # A named pipe seen through an overlay is another pipe.
        witness = Witness(place.spec("true").temporary_directory / "witness")
        yield witness
        witness.close()
