"""The laws of all strategies, in each way that the local one can end process trees."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import ExecutionStrategyLaws

from .conftest import OpenStrategy


class TestAsItComes(ExecutionStrategyLaws):
    """With control groups, where they can be had."""

    @pytest.fixture
    async def strategy(
        self, open_local_strategy: OpenStrategy
    ) -> AsyncIterator[spi.ExecutionStrategy]:
        async with open_local_strategy() as strategy:
            yield strategy


class TestWithoutControlGroups(ExecutionStrategyLaws):
    """With a supervisor for each process."""

    @pytest.fixture
    async def strategy(
        self, open_local_strategy: OpenStrategy
    ) -> AsyncIterator[spi.ExecutionStrategy]:
        async with open_local_strategy(cgroups="never") as strategy:
            yield strategy


class TestAsAnotherUser(ExecutionStrategyLaws):
    """With another user than the server."""

    @pytest.fixture
    async def strategy(
        self, open_local_strategy: OpenStrategy
    ) -> AsyncIterator[spi.ExecutionStrategy]:
        async with open_local_strategy(user="nobody") as strategy:
            yield strategy


class TestAsAnotherUserWithoutControlGroups(ExecutionStrategyLaws):
    """With another user, and a supervisor for each process."""

    @pytest.fixture
    async def strategy(
        self, open_local_strategy: OpenStrategy
    ) -> AsyncIterator[spi.ExecutionStrategy]:
        async with open_local_strategy(user="nobody", cgroups="never") as strategy:
            yield strategy
