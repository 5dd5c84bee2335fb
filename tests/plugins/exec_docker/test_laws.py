"""The laws of all strategies, in containers that are kept and in those that are not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import ExecutionStrategyLaws

from .conftest import OpenStrategy


class TestInKeptContainers(ExecutionStrategyLaws):
    """One container serves one process after another."""

    @pytest.fixture
    async def strategy(self, open_docker: OpenStrategy) -> AsyncIterator[spi.ExecutionStrategy]:
        async with open_docker(keep_containers="always") as strategy:
            yield strategy
