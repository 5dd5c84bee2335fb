"""Plays stoker's queue against a virtual clock, and draws what comes of it.

``python docs/scheduling/simulation.py`` writes order.svg beside this file. The tests of the queue
play the same, and hold the claims of README.md against it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from stoker.action import LoadedAction
from stoker.digest import SHA256
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Capacity
from stoker.scheduler.matching import Offer
from stoker.scheduler.queue import Assignment, Policy, Queue, Task

GIB = 1024**3


class Arrival(NamedTuple):
    """An action, and when it comes."""

    time: float
    flow: str
    """Of what it is told in the end: one curve of the plot."""
    seconds: float = 1.0
    """How long it runs."""
    tenant: str = ""
    invocation: str = ""
    priority: int = 0
    cpus: str = "1"


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of it."""

    arrival: Arrival
    begun: float
    ended: float

    @property
    def waited(self) -> float:
        return self.begun - self.arrival.time


def play(arrivals: Iterable[Arrival], *, slots: int, ageing_seconds: float) -> list[Ran]:
    """Run `arrivals` on one executor with as many processors as slots, in order of beginning."""
    return _Play(slots, ageing_seconds).run(sorted(arrivals, key=lambda a: a.time))


class _Play:
    def __init__(self, slots: int, ageing_seconds: float) -> None:
        capacity = Capacity.of_executor(
            slots=slots, cpus=slots, memory_bytes=GIB, default_memory_bytes=None
        )
        self._executors = {"executor": Offer({}, capacity)}
        self._queue = Queue(
            self._executors, max_queued=1_000_000, policy=Policy(ageing_seconds=ageing_seconds)
        )
        for _ in range(slots):
            self._queue.offer("executor", now=0)
        self._numbers = count()
        self._arrival: dict[Task, Arrival] = {}
        self._ends: list[tuple[float, int, Assignment]] = []
        self._ran: list[Ran] = []

    def run(self, arrivals: Sequence[Arrival]) -> list[Ran]:
        for arrival in arrivals:
            self._run_until(arrival.time)
            number = next(self._numbers)
            action = _action(number, arrival)
            task, assignments = self._queue.add(
                action, arrival.priority, self._executors, now=arrival.time
            )
            self._arrival[task] = arrival
            self._begin(assignments, arrival.time)
        self._run_until(float("inf"))
        return self._ran

    def _run_until(self, time: float) -> None:
        while self._ends and self._ends[0][0] <= time:
            now, _, ended = heapq.heappop(self._ends)
            self._begin(self._queue.complete(ended.task, now=now), now)
            self._begin(self._queue.release(ended, now=now), now)
            self._begin(self._queue.offer("executor", now=now), now)

    def _begin(self, assignments: Iterable[Assignment], now: float) -> None:
        for assignment in assignments:
            arrival = self._arrival[assignment.task]
            end = now + arrival.seconds
            heapq.heappush(self._ends, (end, next(self._numbers), assignment))
            self._ran.append(Ran(arrival, now, end))


def _action(number: int, arrival: Arrival) -> LoadedAction:
    return LoadedAction(
        namespace=arrival.tenant,
        digest=SHA256.digest(str(number).encode()),
        action=reapi.Action(do_not_cache=True),
        command=reapi.Command(arguments=["true"]),
        input_root=SHA256.empty,
        platform={"cpus": (arrival.cpus,)},
        timeout_seconds=None,
        metadata=reapi.RequestMetadata(tool_invocation_id=arrival.invocation),
    )


# --- what is played

AGEING_SECONDS = 60.0
SLOTS = 8


def newcomers() -> list[Arrival]:
    """A build of 1,600 actions, and others with one action each."""
    build = [Arrival(0, "a build of 1,600", invocation="build") for _ in range(1_600)]
    single = [Arrival(10.5 + 15 * i, "single actions", invocation=f"single {i}") for i in range(12)]
    return [*build, *single]


def priorities() -> list[Arrival]:
    """More urgent actions than the slots can take, and a few that are not urgent at all."""
    urgent = [Arrival(i / 10, "urgent, without end", priority=-10) for i in range(1_600)]
    patient = [Arrival(5.0 + 10 * i, "not urgent", priority=10) for i in range(10)]
    return [*urgent, *patient]


def large_ones() -> list[Arrival]:
    """Small actions without end, and some that need the whole executor."""
    small = [
        Arrival(i / 10, "small, without end", 1.0 + i % 3 / 10, invocation="small")
        for i in range(1_600)
    ]
    large = [
        Arrival(20.0 + 30 * i, "the whole executor", invocation="large", cpus=str(SLOTS))
        for i in range(5)
    ]
    return [*small, *large]


SCENES = {
    "Newcomers beside a large build": newcomers,
    "Patience, by ageing after 60 s": priorities,
    "Whole-executor actions among small ones": large_ones,
}

# --- what is drawn

WIDTH, HEIGHT, MARGIN = 640, 210, 56
COLOURS = ("#4477aa", "#cc6633")


def draw(scenes: Mapping[str, Sequence[Ran]]) -> str:
    """Each scene's waits by time of arrival, as SVG."""
    height = HEIGHT * len(scenes)
    panels = [_panel(title, ran, i * HEIGHT) for i, (title, ran) in enumerate(scenes.items())]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n{"".join(panels)}</svg>\n'
    )


def _panel(title: str, ran: Sequence[Ran], top: int) -> str:
    latest = max(r.arrival.time for r in ran) or 1
    begun = max(r.begun for r in ran)
    span = max(latest, begun)
    longest = max(r.waited for r in ran) or 1
    left, bottom = MARGIN, top + HEIGHT - 34
    wide, tall = WIDTH - MARGIN - 16, HEIGHT - 72
    lines = [
        f'<text x="{left}" y="{top + 18}" font-size="13" font-weight="bold">{title}</text>',
        f'<path d="M{left} {bottom - tall}V{bottom}H{left + wide}" fill="none" stroke="#666"/>',
        f'<text x="{left - 4}" y="{bottom - tall + 8}" text-anchor="end">{longest:.0f} s</text>',
        f'<text x="{left - 4}" y="{bottom}" text-anchor="end">0 s</text>',
        f'<text x="{left + wide}" y="{bottom + 14}" text-anchor="end">begun at {span:.0f} s</text>',
        f'<text x="{left}" y="{bottom + 14}">waited, by the time of beginning</text>',
    ]
    for i, flow in enumerate(dict.fromkeys(r.arrival.flow for r in ran)):
        own = [r for r in ran if r.arrival.flow == flow]
        # Of many, one in ten shows as much.
        shown = own[:: max(1, len(own) // 200)]
        radius = 1.5 if len(own) > 200 else 4
        lines += [
            f'<circle cx="{left + wide * r.begun / span:.1f}" '
            f'cy="{bottom - tall * r.waited / longest:.1f}" r="{radius}" fill="{COLOURS[i]}"/>'
            for r in shown
        ]
        worst = max(r.waited for r in own)
        lines.append(
            f'<text x="{left + 10 + 280 * i}" y="{top + 34}" fill="{COLOURS[i]}">'
            f"{flow}: {worst:.1f} s at most</text>"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    scenes = {
        title: play(arrivals(), slots=SLOTS, ageing_seconds=AGEING_SECONDS)
        for title, arrivals in SCENES.items()
    }
    Path(__file__).with_name("order.svg").write_text(draw(scenes), encoding="utf-8")


if __name__ == "__main__":
    main()
