"""Which of the roots that are laid out and idle an action takes, and which give way.

Pure: no await, no clock, no disk.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Generic, Protocol, TypeVar

from stoker.storage.input_tree import InputDirectory, InputTree

_COST_OF_A_NEW_ROOT = 20
"""About what making its folders and streams costs, in entries that are made or removed."""


class Laid(Protocol):
    """What a root must tell."""

    @property
    def directory(self) -> InputDirectory | None:
        """What it holds."""

    def cost(self, tree: InputTree) -> int:
        """About how many entries must be made or removed to lay out `tree`."""


LaidT = TypeVar("LaidT", bound=Laid)


class RootPool(Generic[LaidT]):
    """Idle roots, the least recently used first."""

    def __init__(self, *, max_roots: int, max_entries: int, max_bytes: int) -> None:
        """Keep at most so many roots, with so many entries and bytes together.

        What several roots share, as links do, is counted for each of them.
        """
        self._max_roots = max_roots
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._idle: list[LaidT] = []

    @property
    def is_open(self) -> bool:
        """Whether it keeps anything."""
        return self._max_roots > 0

    @property
    def idle(self) -> Sequence[LaidT]:
        """All of them."""
        return tuple(self._idle)

    def take(self, tree: InputTree) -> LaidT | None:
        """The root that is nearest to `tree`, if that is worth more than a new one.

        One that holds the same tree costs nothing; of several the one used last is taken.
        """
        cheapest, lowest = None, tree.root.entries + _COST_OF_A_NEW_ROOT
        for root in reversed(self._idle):
            cost = root.cost(tree)
            if cost < lowest:
                cheapest, lowest = root, cost
            if not cost:
                break
        if cheapest is not None:
            self._idle.remove(cheapest)
        return cheapest

    def give_back(self, root: LaidT) -> list[LaidT]:
        """Keep `root`. Returns those that give way, which may be `root` itself."""
        self._idle.append(root)
        if self._is_too_much([root]):
            # Alone: the others would have to go first, and then it all the same.
            return [self._idle.pop()]
        leaving = []
        while self._is_too_much(self._idle):
            leaving.append(self._idle.pop(0))
        return leaving

    def take_oldest(self) -> LaidT | None:
        """The root that was not used for longest, which is kept no more."""
        return self._idle.pop(0) if self._idle else None

    def _is_too_much(self, roots: Collection[LaidT]) -> bool:
        held = [root.directory for root in roots if root.directory is not None]
        return (
            len(roots) > self._max_roots
            or sum(directory.entries for directory in held) > self._max_entries
            or sum(directory.size_bytes for directory in held) > self._max_bytes
        )
