"""Why a task waits, as sentences. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

GONE = "it is not there"
KEPT_FREE = "it is kept free for an action before this one"

_NAMED = 5


class Outlook(NamedTuple):
    """How a task that waits stands now."""

    obstacles: Mapping[str, str]
    """The executors that could take it, and what keeps it from each."""
    others_queued: int
    executing: int
    same_invocation: int
    """How many of those are on behalf of the invocation that it came with first."""
    kept_free: str
    """The executor that takes nothing behind it, so that there will be room for it; or nothing."""

    def sentence(self) -> str:
        """The same, in the past tense of a record."""
        executors: dict[str, list[str]] = {}
        for name, obstacle in self.obstacles.items():
            executors.setdefault(obstacle, []).append(name)
        parts = [f"{obstacle} ({_names(names)})" for obstacle, names in executors.items()]
        parts.append(
            f"{self.others_queued} others were queued and {self.executing} ran, "
            f"{self.same_invocation} of these for the same invocation"
        )
        return "; ".join(parts)


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(sorted(names)[:_NAMED])}{more}"
