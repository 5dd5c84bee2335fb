"""Which of the operator's rules counts for an action."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from stoker.workers.settings import WorkerRule

_NO_RULE = WorkerRule()


def find_rule(rules: Iterable[WorkerRule], mnemonic: str, program: str) -> WorkerRule:
    """The first of `rules` that fits, alone; one that changes nothing where none does."""
    for rule in rules:
        if _fits(rule.mnemonics, mnemonic) and _fits(rule.programs, program):
            return rule
    return _NO_RULE


def rules_never_reached(rules: Sequence[WorkerRule]) -> Iterable[tuple[int, int]]:
    """Rules that never count, each with the earlier one that fits whatever it fits, by position.

    One that several earlier ones leave nothing for is not found.
    """
    for position, rule in enumerate(rules):
        for earlier in range(position):
            if _covers(rules[earlier], rule):
                yield position, earlier
                break


def matches_any(patterns: Iterable[str], text: str) -> bool:
    """Whether `text` fits one of the shell patterns, in which ``*`` stands for slashes too."""
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _fits(patterns: Sequence[str], text: str) -> bool:
    return not patterns or matches_any(patterns, text)


def _covers(earlier: WorkerRule, later: WorkerRule) -> bool:
    return _includes(earlier.mnemonics, later.mnemonics) and _includes(
        earlier.programs, later.programs
    )


def _includes(wider: Sequence[str], narrower: Sequence[str]) -> bool:
    if not wider or "*" in wider:
        return True
    return bool(narrower) and all(
        pattern in wider or (not set(pattern) & set("*?[") and matches_any(wider, pattern))
        for pattern in narrower
    )
