"""Which executors have lately run something like an action, and are warm for it. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator

from stoker.action import LoadedAction

_ASKING_FOR_WORKERS = ("persistentWorkerKey", "supports-workers", "persistent-workers")

_REMEMBERED = 32_768
"""Keys that are remembered: more than the tools, and the actions of a large build or two."""


def affinity_keys(action: LoadedAction) -> Iterator[Hashable]:
    """What makes an executor warm for `action`, what saves most first.

    The same tool may have a worker there that still runs; the same input root may still be laid
    out; and what made the same output had an input root that was near to this one, as it is the
    same action before an edit.
    """
    # Those without a worker are spread as evenly as can be.
    if any(name in action.platform for name in _ASKING_FOR_WORKERS):
        key = action.platform.get("persistentWorkerKey", ())
        yield ("tool", action.namespace, key, action.mnemonic)
    if action.input_root.size_bytes:
        yield ("inputs", action.input_root)
        if output := next(iter(action.output_paths), None):
            # Targets alone are no sign: the actions of one target may have little in common.
            yield ("near", action.namespace, action.target, action.mnemonic, output)


class Affinity:
    """Remembers by what has begun where. A hint: nothing waits for a warm executor (SCH-09)."""

    def __init__(self) -> None:
        # By hashes: a key that is taken for another one is a bad hint, and nothing worse.
        self._warm: OrderedDict[int, tuple[str, ...]] = OrderedDict()

    def note(self, action: LoadedAction, executor: str) -> None:
        """`action` begins on `executor`."""
        for key in map(hash, affinity_keys(action)):
            warm = self._warm.get(key, ())
            if executor not in warm:
                self._warm[key] = (*warm, executor)
            self._warm.move_to_end(key)
        while len(self._warm) > _REMEMBERED:
            self._warm.popitem(last=False)

    def prefer(self, action: LoadedAction, fitting: Collection[str]) -> str | None:
        """The first of `fitting` that is warm for `action`, or the first of all."""
        for key in map(hash, affinity_keys(action)) if len(fitting) > 1 else ():
            warm = self._warm.get(key, ())
            if found := next((executor for executor in fitting if executor in warm), None):
                return found
        return next(iter(fitting), None)
