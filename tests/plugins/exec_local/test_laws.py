"""The laws of all strategies, in each way that the local one can start and end processes.

With control groups they are spawned, as another user forked: all laws hold there. How they are
started without control groups is the same again, but not how they end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import ExecutionStrategyLaws

from .conftest import OpenStrategy


class LawsOfEnds:
    """Those laws that are kept in another way without control groups."""

    place = ExecutionStrategyLaws.place
    witness = ExecutionStrategyLaws.witness
    test_code = ExecutionStrategyLaws.test_an_exit_code_is_reported_as_it_is
    test_signal = ExecutionStrategyLaws.test_a_signal_is_reported_as_shells_do
    test_descriptors = ExecutionStrategyLaws.test_nothing_is_open_but_the_three_streams
    test_streams = ExecutionStrategyLaws.test_pipes_carry_both_ways
    test_absent = ExecutionStrategyLaws.test_a_program_that_is_absent_is_named
    test_leaving = ExecutionStrategyLaws.test_leaving_leaves_no_process
    test_children = ExecutionStrategyLaws.test_children_left_behind_are_killed_too
    test_daemon = ExecutionStrategyLaws.test_a_daemon_whose_parents_have_ended_is_killed_too
    test_daemons_hear = ExecutionStrategyLaws.test_terminate_reaches_daemons
    test_tree_hears = ExecutionStrategyLaws.test_terminate_reaches_the_whole_tree
    test_hundred = ExecutionStrategyLaws.test_a_hundred_processes_at_once
    test_storm = ExecutionStrategyLaws.test_a_storm_of_cancellations_leaves_no_process
    test_memory = ExecutionStrategyLaws.test_a_process_that_wants_too_much_memory_ends_by_it
    test_processes = ExecutionStrategyLaws.test_a_process_that_starts_too_many_others_fails_by_it
    test_bomb = ExecutionStrategyLaws.test_a_fork_bomb_ends_with_its_process
    test_memory_use = ExecutionStrategyLaws.test_memory_is_measured_of_the_whole_tree_or_not_at_all
    test_usage = ExecutionStrategyLaws.test_what_was_used_is_told


class TestAsItComes(ExecutionStrategyLaws):
    """With control groups, where they can be had."""

    @pytest.fixture
    async def strategy(
        self, open_local_strategy: OpenStrategy
    ) -> AsyncIterator[spi.ExecutionStrategy]:
        async with open_local_strategy() as strategy:
            yield strategy


class TestWithoutControlGroups(LawsOfEnds):
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


class TestAsAnotherUserWithoutControlGroups(LawsOfEnds):
    """With another user, and a supervisor for each process."""

    @pytest.fixture
    async def strategy(
        self, open_local_strategy: OpenStrategy
    ) -> AsyncIterator[spi.ExecutionStrategy]:
        async with open_local_strategy(user="nobody", cgroups="never") as strategy:
            yield strategy
