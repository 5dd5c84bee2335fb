"""What docs/scheduling says of the order, played against a virtual clock."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCHEDULING = Path(__file__).parents[3] / "docs" / "scheduling"


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """The program that draws the plot."""
    spec = importlib.util.spec_from_file_location("simulation", SCHEDULING / "simulation.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Where its dataclasses look for what their annotations name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_newcomer_waits_for_one_slot_to_become_free(simulation: ModuleType) -> None:  # SCH-03
    for slots in (1, 8):
        build = [simulation.Arrival(0, "build", invocation="build") for _ in range(1_000)]
        single = simulation.Arrival(10.5, "single", invocation="single")
        ran = simulation.play([*build, single], slots=slots, ageing_seconds=5)
        assert next(r.waited for r in ran if r.arrival is single) <= 1
        assert len(ran) == 1_001


def test_tenants_and_their_invocations_have_equal_parts(simulation: ModuleType) -> None:  # SCH-03
    arrivals = [
        simulation.Arrival(0, tenant + invocation, tenant=tenant, invocation=invocation)
        for tenant, invocation in (("a", "1"), ("a", "2"), ("b", "3"))
        for _ in range(400)
    ]
    ran = simulation.play(arrivals, slots=8, ageing_seconds=1e9)[:400]
    begun = [sum(r.arrival.flow == flow for r in ran) for flow in ("a1", "a2", "b3")]
    assert begun == pytest.approx([100, 100, 200], abs=8)


def test_who_has_long_actions_holds_no_more_slots(simulation: ModuleType) -> None:  # SCH-03
    arrivals = [
        simulation.Arrival(0, f"{seconds:g}", seconds, invocation=f"{seconds:g}")
        for seconds in (1.0, 50.0)
        for _ in range(400)
    ]
    ran = simulation.play(arrivals, slots=8, ageing_seconds=1e9)
    short = [r for r in ran if r.arrival.seconds == 1.0]
    # Half of the slots are theirs, so that 400 seconds of work are done in 100.
    assert max(r.ended for r in short) == pytest.approx(100, abs=2)


def test_urgent_ones_go_first_and_nothing_waits_for_ever(simulation: ModuleType) -> None:  # SCH-02
    def waits(ageing_seconds: float) -> tuple[float, float, float]:
        ran = simulation.play(simulation.priorities(), slots=8, ageing_seconds=ageing_seconds)
        patient = [r.waited for r in ran if r.arrival.flow == "not urgent"]
        early = [r for r in ran if r.arrival.time < 60 and r.arrival.flow != "not urgent"]
        return min(patient), max(patient), max(r.waited for r in early)

    least, most, early = waits(60)
    assert least >= 59
    # Overdue, it lets three others begin at most: half a second of this executor.
    assert most <= 61
    assert early < 60
    assert waits(1e9)[1] > 100


def test_a_long_wait_of_many_leaves_three_turns_of_four_to_others(
    simulation: ModuleType,
) -> None:  # SCH-02
    old = [simulation.Arrival(0, "old", priority=10) for _ in range(400)]
    urgent = [simulation.Arrival(20.0, "urgent", priority=-10) for _ in range(100)]
    ran = simulation.play([*old, *urgent], slots=1, ageing_seconds=10)
    after = [r for r in ran if r.begun >= 20][:100]
    assert sum(r.arrival.flow == "old" for r in after) == pytest.approx(25, abs=2)


def test_large_actions_are_not_starved(simulation: ModuleType) -> None:  # SCH-04
    ran = simulation.play(simulation.large_ones(), slots=8, ageing_seconds=1e9)
    large = [r for r in ran if r.arrival.flow == "the whole executor"]
    # They wait for what runs already, of which nothing takes longer than 1.2 s.
    assert len(large) == 5
    assert max(r.waited for r in large) <= 1.3
    for one in large:
        assert not any(r.begun < one.ended and r.ended > one.begun for r in ran if r is not one)


def test_the_plot_is_that_of_the_program(simulation: ModuleType) -> None:
    scenes = {
        title: simulation.play(
            arrivals(), slots=simulation.SLOTS, ageing_seconds=simulation.AGEING_SECONDS
        )
        for title, arrivals in simulation.SCENES.items()
    }
    assert (SCHEDULING / "order.svg").read_text(encoding="utf-8") == simulation.draw(scenes)
