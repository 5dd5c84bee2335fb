"""What a pool tells of its workers, for those who run the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from stoker.workers.key import WorkerKey

State = Literal["starting", "idle", "busy", "recovering", "ending"]
"""`recovering`: a request was given up, and its answer is still awaited."""


class WorkerCounts(NamedTuple):
    """What a pool holds at one moment."""

    places: int
    """Processes that are there, or begin or end; at most `max_workers`."""
    idle: int
    """Those that wait for work."""
    waiting: int
    """Leases that wait for a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """One worker at one moment."""

    name: str
    process: str
    """Such as ``process 4711``."""
    state: State
    in_flight: int
    """Requests that it has and has not answered."""
    served: int
    """Requests that it has answered."""
    memory_bytes: int | None
    """When it was measured last; None before, and where it cannot be."""
    age_seconds: float
    idle_seconds: float
    """For how long it has had nothing to do."""
    log: str
    """Where its stderr is."""
    tools_by: str = ""
    """Who said which inputs are the tool, for the action that it was started for: as for
    `WorkerPlan.tools_by`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReport:
    """The workers of one key at one moment, and what its actions met with since the server began,
    or since the key was forgotten last: keys without workers are remembered for a while."""

    key: WorkerKey
    mnemonic: str
    workers: Sequence[WorkerReport]
    waiting: int
    """Actions that wait for a worker of this key."""
    hits: int
    """Actions that got a warm worker."""
    misses: Mapping[str, int]
    """Actions that a worker was started for, by the reason: ``first`` of its mnemonic, ``busy``
    where all interchangeable workers were busy, what has become of the last one as for
    `PoolReport.ended`, or ``key`` where another key of the mnemonic is known already."""
    nearest_key_differs_in: tuple[str, ...]
    """The components of the key in which the nearest other key of the mnemonic differed when this
    one was new."""
    last_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """All of a pool at one moment."""

    max_workers: int
    places: int
    """Processes that are there, or begin or end."""
    waiting: int
    memory_bytes: int | None
    """What all workers used together when they were measured last."""
    max_memory_bytes: int | None
    hits: int
    misses: Mapping[str, int]
    """By the reason, as for `KeyReport`. Beside ``key``, ``key:argv`` and the like count each
    component in which the nearest key differed; they are no further misses."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """Workers that have ended, by the reason: ``retired`` after as many requests as its terms
    allow, ``expired``, ``evicted`` for its place or for its memory, ``invocation`` when that it
    served was over, ``drained`` with its executor, ``failed``, ``cancelled`` in the middle of a
    request, ``closed`` with the pool."""
    keys: Sequence[KeyReport] = ()
