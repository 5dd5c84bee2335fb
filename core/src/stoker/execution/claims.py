"""What actions need of a folder that they share while they run, and when one must wait. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Set
from dataclasses import dataclass

from stoker.action import LoadedAction, resolve_output
from stoker.execution.union import agree, find
from stoker.storage.input_tree import InputDirectory, InputTree, entry_in


@dataclass(eq=False, slots=True)
class Claim:
    """What one action reads and writes. Nobody else may change it until it is given back."""

    root: InputDirectory
    outputs: frozenset[str]
    """Relative to the input root."""
    folders: frozenset[str]
    """Those that must be there: where it works, and where its outputs go."""
    is_alone: bool
    """Whether it agrees with no other."""
    is_laid_out: bool = False
    """Whether it has begun to use the folder."""

    def agrees_with(self, other: Claim) -> bool:
        """Whether both may use the folder at once: what is in both trees is the same, and what
        one writes is no input or output of the other, nor above or below one."""
        return (
            not (self.is_alone or other.is_alone)
            and not _meet(self.outputs, other.outputs)
            and not _disturbs(self, other)
            and not _disturbs(other, self)
            and agree(self.root, other.root)
        )


def claim(action: LoadedAction, tree: InputTree, folders: Set[str], *, is_alone: bool) -> Claim:
    """The claim of `action`, which needs `folders`.

    One whose outputs lie behind a symbolic link of its tree is alone: where they are written is
    not for us to know.
    """
    directory = action.command.working_directory
    outputs = frozenset(resolve_output(directory, path) for path in action.output_paths)
    behind_link = any(_leads_through_link(tree.root, path) for path in (*outputs, *folders))
    return Claim(tree.root, outputs, frozenset(folders), is_alone or behind_link)


class Claims:
    """The claims on one folder, first come first served.

    One that waits holds up those that come later only where they do not agree with it.
    """

    def __init__(self) -> None:
        self._held: list[Claim] = []
        self._waiting: dict[Claim, Callable[[], object]] = {}

    def __len__(self) -> int:
        """How many are held."""
        return len(self._held)

    def ask(self, new: Claim, on_granted: Callable[[], object]) -> None:
        """Hold `new` as soon as it may be; `on_granted` is called then, perhaps at once."""
        self._waiting[new] = on_granted
        self._grant()

    def give_back(self, done: Claim) -> None:
        """`done` is held, or waited for, no more."""
        if done in self._waiting:
            del self._waiting[done]
        else:
            self._held.remove(done)
        self._grant()

    def others(self, own: Claim) -> bool:
        """Whether anybody but `own` uses the folder."""
        return any(held.is_laid_out for held in self._held if held is not own)

    def _grant(self) -> None:
        ahead: list[Claim] = []
        for new, on_granted in list(self._waiting.items()):
            if all(map(new.agrees_with, (*self._held, *ahead))):
                del self._waiting[new]
                self._held.append(new)
                on_granted()
            else:
                ahead.append(new)


def _meet(ones: Collection[str], others: Set[str]) -> bool:
    """Whether a path of one is, or is above, one of the other."""
    return _is_above(ones, others) or _is_above(others, ones)


def _is_above(tops: Collection[str], paths: Collection[str]) -> bool:
    """Whether some of `tops` is one of `paths`, or above one."""
    return bool(tops) and any(above in tops for path in paths for above in _with_parents(path))


def _disturbs(writer: Claim, other: Claim) -> bool:
    """Whether what `writer` makes gets in the way of `other`."""
    return (
        _is_above(writer.outputs, other.folders)
        or any(_is_in_the_way(other.root, path) for path in (*writer.outputs,))
        or any(_is_blocked(other.root, path) for path in writer.folders)
    )


def _is_in_the_way(root: InputDirectory, path: str) -> bool:
    return find(root, path) is not None or _is_blocked(root, path)


def _is_blocked(root: InputDirectory, path: str) -> bool:
    """Whether `path` cannot be a folder beside `root`, as a file or link is there or above."""
    directory = root
    for name in path.split("/") if path else ():
        entry = entry_in(directory, name)
        if not isinstance(entry, InputDirectory):
            return entry is not None
        directory = entry
    return False


def _leads_through_link(root: InputDirectory, path: str) -> bool:
    return any(isinstance(find(root, above), str) for above in _with_parents(path))


def _with_parents(path: str) -> Iterator[str]:
    """`path`, what is above it, and the top."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""
