"""What is queued: one run of an action. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from stoker.action import LoadedAction
from stoker.scheduler.fairness import Level, Party

if TYPE_CHECKING:
    from stoker.scheduler.kinds import Kind


class Stage(Enum):
    """Where a task stands."""

    QUEUED = "queued"
    EXECUTING = "executing"
    COMPLETED = "completed"


def merge_key(action: LoadedAction) -> Hashable:
    """Equal for identical actions of one instance."""
    return (action.namespace, action.digest)


class Assignment(NamedTuple):
    """A task in the hands of an executor, for one attempt. Compared by identity where it counts:
    the same executor may be given the same task again."""

    task: Task
    executor: str


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
    held: Assignment | None = None
    """Who has it now, from when it is handed out until they let go of it, or it is lost."""
    saving: str | None = None
    """The executor that takes nothing behind this task, so that there will be room for it."""
    tried: list[str] = field(default_factory=list)
    """The executors that it was handed to, in order."""
    merge_key: Hashable = field(init=False)
    """Equal for tasks that may be one (EXE-21, EXE-22); unique where they may not."""
    level: Level = field(init=False)
    """The order within a tenant: by priority value, favoured mnemonics first."""

    def __post_init__(self) -> None:
        self.merge_key = merge_key(self.action) if self.action.cacheable else self
        self.lift(self.priority)

    def lift(self, priority: int) -> None:
        """It has this priority from now on."""
        self.priority = priority
        self.level = (priority, 0 if self.favoured else 1)

    @property
    def executor(self) -> str | None:
        """Who has it."""
        return self.held.executor if self.held else None

    @property
    def attempts(self) -> int:
        """How often it was handed out."""
        return len(self.tried)
