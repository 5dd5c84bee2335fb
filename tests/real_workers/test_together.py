"""Bazel's ExampleWorkerMultiplexer, asked several things at a time.

It swaps its one stdout around for every request. Asked for output files, by three tasks that begin
together, it gets away with that; otherwise texts end up in each other's answers or raw in the
stream, and answers get lost.
"""

from __future__ import annotations

from functools import partial

import trio

from ..end_to_end.actions import Tree
from .workbench import Done, Workbench

TOGETHER = {"supports-multiplex-workers": "1"}
DEADLINE_EXCEEDED = 4


class Crowd:
    """Requests to one worker, each with a flag file of its own, so that they fit in one folder."""

    def __init__(self, bench: Workbench, program: list[str]) -> None:
        self._bench = bench
        self._program = program
        self.done: dict[str, Done] = {}

    async def work(
        self,
        word: str,
        *flags: str,
        writes_file: bool = True,
        timeout_seconds: int | None = None,
    ) -> None:
        if writes_file:
            flags = (f"--output_file=out/{word}", *flags)
        lines = "".join(f"{line}\n" for line in (*flags, "--uppercase", word))
        self.done[word] = await self._bench.work(
            [*self._program, f"@flags/{word}"],
            Tree({f"flags/{word}": lines.encode()}),
            [f"out/{word}"] if writes_file else [],
            platform=TOGETHER,
            timeout_seconds=timeout_seconds,
        )


# PWK-19
async def test_one_process_serves_several_at_a_time(
    bench: Workbench, multiplexer: list[str]
) -> None:
    crowd = Crowd(bench, multiplexer)
    await crowd.work("first")
    words = ("one", "two", "three")
    async with trio.open_nursery() as nursery:
        for word in words:
            nursery.start_soon(crowd.work, word, "--delay")
    for word in words:
        delay, text = crowd.done[word].outputs[f"out/{word}"].decode().splitlines()
        assert (delay.split()[0], text) == ("DELAY", word.upper())
    one, two, three = (crowd.done[word] for word in words)
    assert one.overlaps(two) or two.overlaps(three) or three.overlaps(one)
    assert {each.worker for each in crowd.done.values()} == {crowd.done["first"].worker}
    # Answers that come together are counted each by itself.
    assert sorted(each.served for each in crowd.done.values()) == [1, 2, 3, 4]


async def test_nobody_is_kept_waiting_by_what_it_mixes_up(
    bench: Workbench, multiplexer: list[str]
) -> None:
    crowd = Crowd(bench, multiplexer)
    for number in range(2):
        async with trio.open_nursery() as nursery:
            # What ends while another waits takes the other's stdout away.
            for word, flags in (("late", ["--delay"]), ("later", ["--delay"]), ("soon", [])):
                name = f"{word}{number}"
                work = partial(crowd.work, name, *flags, writes_file=False, timeout_seconds=4)
                nursery.start_soon(work)
    ended = crowd.done.values()
    # PWK-09: who lost an answer by what it printed raw is told of that, and was served otherwise.
    # One that is lost in silence costs its action the time that it has, and that is all.
    assert any(each.message for each in ended)
    assert {each.status for each in ended} <= {0, DEADLINE_EXCEEDED}
    assert {each.exit_code for each in ended if not each.status} == {0}
    await crowd.work("well")
    assert crowd.done["well"].outputs["out/well"] == b"WELL\n"
