"""The slots of executors, and what those who run a server are told of them and of what waits."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from stoker.scheduler.leasing import Seat


class WaitingLine(NamedTuple):
    """What waits for the same executors."""

    tasks: int
    seconds: float
    """How long the first of it has waited."""


class ExecutorState(NamedTuple):
    """How an executor stands."""

    name: str
    away: str | None
    """Why it takes nothing new; None where it does."""
    free_slots: int
    """How many slots wait for an action."""
    busy_slots: int
    """How many have one, or clean up after one."""
    lost: int
    """How often an action was lost here."""


class Floor:
    """The slots of one executor."""

    def __init__(self) -> None:
        self.idle: deque[Seat] = deque()
        self.busy = 0
        self.lost = 0
