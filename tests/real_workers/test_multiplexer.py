"""Bazel's ExampleWorkerMultiplexer, asked one thing at a time.

It swaps its one stdout around for every request, so that several at a time without an output file
get what belongs to others. What asks it several things at a time is in `test_together.py`.
"""

from __future__ import annotations

from .test_example_worker import OUTPUT, order, said
from .workbench import Workbench


# PWK-17 and PWK-19
async def test_serves_one_after_the_other(bench: Workbench, multiplexer: list[str]) -> None:
    command = [*multiplexer, "@flags"]
    first = await bench.work(command, order("--uppercase", "one"), [OUTPUT])
    second = await bench.work(command, order("--uppercase", "two"), [OUTPUT])
    assert (said(first), said(second)) == (["ONE"], ["TWO"])
    assert (second.worker, second.served) == (first.worker, 2)
    once = await bench.run_once(command, order("--uppercase", "two"), [OUTPUT])
    assert second.result == once.result


# PWK-09 and PWK-10
async def test_is_not_asked_again_once_poisoned(bench: Workbench, multiplexer: list[str]) -> None:
    command = [*multiplexer, "--poison_after=1", "@flags"]
    first = await bench.work(command, order("--write_counter"), [OUTPUT])
    poisoned = await bench.work(command, order("--write_counter"), [OUTPUT])
    assert "I'm a poisoned worker" in poisoned.message
    assert (first.exit_code, poisoned.worker) == (0, None)
    third = await bench.work(command, order("--write_counter"), [OUTPUT])
    assert said(third)[0] == "COUNTER 1"
    assert third.worker != first.worker
