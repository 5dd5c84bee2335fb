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

    test_a_hundred_processes_at_once = pytest.mark.slow(
        ExecutionStrategyLaws.test_a_hundred_processes_at_once
    )


class TestInContainersOfTheirOwn:
    """Those laws that are kept in another way where each process has a fresh container."""

    @pytest.fixture
    async def strategy(self, open_docker: OpenStrategy) -> AsyncIterator[spi.ExecutionStrategy]:
        async with open_docker(keep_containers="never") as strategy:
            yield strategy

    place = ExecutionStrategyLaws.place
    witness = ExecutionStrategyLaws.witness
    test_working_directory = ExecutionStrategyLaws.test_the_working_directory_is_below_the_root
    test_streams = ExecutionStrategyLaws.test_pipes_carry_both_ways
    test_absent = ExecutionStrategyLaws.test_a_program_that_is_absent_is_named
    test_children = ExecutionStrategyLaws.test_children_left_behind_are_killed_too
    test_tree_hears = ExecutionStrategyLaws.test_terminate_reaches_the_whole_tree
    test_storm = ExecutionStrategyLaws.test_a_storm_of_cancellations_leaves_no_process
    test_memory = ExecutionStrategyLaws.test_a_process_that_wants_too_much_memory_ends_by_it
    test_bomb = ExecutionStrategyLaws.test_a_fork_bomb_ends_with_its_process
    test_others = pytest.mark.slow(
        ExecutionStrategyLaws.test_a_process_lives_as_long_as_it_is_wanted_while_others_come_and_go
    )
