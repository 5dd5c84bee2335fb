"""What is queued: one run of an action. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from stoker.action import LoadedAction
from stoker.resources import Request
from stoker.scheduler.fairness import Level, Party
from stoker.scheduler.matching import Amounts


class Stage(Enum):
    """Where a task stands."""

    QUEUED = "queued"
    EXECUTING = "executing"
    COMPLETED = "completed"


def merge_key(action: LoadedAction) -> Hashable:
    """Equal for identical actions of one instance."""
    return (action.namespace, action.digest)


class Kind(NamedTuple):
    """What tasks have in common that can take each other's place."""

    eligible: frozenset[str]
    """The executors that satisfy their requirements, and are large enough."""
    request: Request
    amounts: Amounts = ()


@dataclass(eq=False, slots=True)
class Task:
    """One run of an action, on behalf of one or more operations."""

    action: LoadedAction
    priority: int
    sequence: int
    kind: Kind
    queued_at: float
    """When it was accepted, in seconds of the caller's clock."""
    favoured: bool = False
    """Whether its mnemonic goes before others of the same priority."""
    parties: list[Party] = field(default_factory=list)
    """On whose behalf it waits. What it holds counts for the first, who came first."""
    stage: Stage = Stage.QUEUED
    executor: str | None = None
    """Who has it: its share of that executor is taken until the executor lets go of it."""
    saving: str | None = None
    """The executor that takes nothing behind this task, so that there will be room for it."""
    tried: list[str] = field(default_factory=list)
    """The executors that it was handed to, in order."""

    @property
    def attempts(self) -> int:
        """How often it was handed out."""
        return len(self.tried)

    @property
    def merge_key(self) -> Hashable:
        """Equal for tasks that may be one (EXE-21, EXE-22); unique where they may not."""
        return merge_key(self.action) if self.action.cacheable else self

    @property
    def level(self) -> Level:
        """The order within a tenant: by priority value, favoured mnemonics first."""
        return (self.priority, 0 if self.favoured else 1)
