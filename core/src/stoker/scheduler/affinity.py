"""Which executors have lately run something like an action, and are warm for it. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator

from stoker.action import LoadedAction

_ASKING_FOR_WORKERS = ("persistentWorkerKey", "supports-workers", "persistent-workers")

_REMEMBERED = 4096
"""Keys that are remembered: more than the tools and input roots that are in use at a time."""


def affinity_keys(action: LoadedAction) -> Iterator[Hashable]:
    """What makes an executor warm for `action`, what saves most first.

    The same tool may have a worker there that still runs; the same input root may still be laid
    out.
    """
    # Those without a worker are spread as evenly as can be.
    if any(name in action.platform for name in _ASKING_FOR_WORKERS):
        key = action.platform.get("persistentWorkerKey", ())
        yield ("tool", action.namespace, key, action.mnemonic)
    if action.input_root.size_bytes:
        yield ("inputs", action.input_root)


class Affinity:
    """Remembers by what has begun where. A hint: nothing waits for a warm executor (SCH-09)."""

    def __init__(self) -> None:
        self._warm: OrderedDict[Hashable, set[str]] = OrderedDict()

    def note(self, action: LoadedAction, executor: str) -> None:
        """`action` begins on `executor`."""
        for key in affinity_keys(action):
            self._warm.setdefault(key, set()).add(executor)
            self._warm.move_to_end(key)
        while len(self._warm) > _REMEMBERED:
            self._warm.popitem(last=False)

    def prefer(self, action: LoadedAction, fitting: Collection[str]) -> str | None:
        """The first of `fitting` that is warm for `action`, or the first of all."""
        for key in affinity_keys(action) if len(fitting) > 1 else ():
            warm = self._warm.get(key, ())
            if found := next((executor for executor in fitting if executor in warm), None):
                return found
        return next(iter(fitting), None)
