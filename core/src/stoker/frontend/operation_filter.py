"""Filters of ListOperations: a part of AIP-160, https://google.aip.dev/160 (OPS-20).

Comparisons of a field with a value, joined by ``AND``::

    stage = EXECUTING AND mnemonic = Javac AND target != "//some:target"

A value with other than letters, digits and ``_-./:@+`` is put into double quotes. There is no
``OR``, ``NOT``, parenthesis, order or wildcard.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from stoker.errors import InvalidRequest
from stoker.scheduler.operation import Operation
from stoker.scheduler.task import Stage

MAX_COMPARISONS = 32
"""How many comparisons a filter may have: each is made with each of a hundred thousand operations,
and nobody else has his turn while some hundreds of these are looked at."""
MAX_CHARACTERS = 16_384
"""How long a filter may be."""

Matches = Callable[[Operation], bool]

_COMPARISON = re.compile(
    r"""\s*(?P<field>\w+)\s*(?P<operator>!=|=)\s*(?P<value>"(?:[^"\\]|\\.)*"|[\w\-./:@+]+)"""
)
_AND = re.compile(r"\s+AND(?=\s)")
_GRAMMAR = (
    'write comparisons as FIELD = VALUE or FIELD != "VALUE", joined by AND, with no OR, NOT, '
    "parentheses or wildcards"
)


@dataclass(frozen=True, slots=True)
class _Comparison:
    matches: Matches
    negated: bool


class OperationFilter:
    """Which operations are wanted."""

    def __init__(self, text: str) -> None:
        """Raises InvalidRequest, telling what is wrong and what is allowed."""
        if len(text) > MAX_CHARACTERS:
            raise InvalidRequest(
                f"filter: {len(text)} characters are too long, {MAX_CHARACTERS} may be"
            )
        self._comparisons = [*islice(_parse(text), MAX_COMPARISONS + 1)] if text.strip() else []
        if len(self._comparisons) > MAX_COMPARISONS:
            raise InvalidRequest(f"filter: {MAX_COMPARISONS} comparisons may be, and no more")

    def matches(self, operation: Operation) -> bool:
        """Whether `operation` is wanted."""
        return all(one.matches(operation) != one.negated for one in self._comparisons)


def _parse(text: str) -> Iterator[_Comparison]:
    position = 0
    while True:
        found = _COMPARISON.match(text, position)
        if found is None:
            raise _unreadable(text, position)
        yield _comparison(found["field"], found["operator"], _value(found["value"]))
        position = found.end()
        if not text[position:].strip():
            return
        joined = _AND.match(text, position)
        if joined is None:
            raise _unreadable(text, position)
        position = joined.end()


def _unreadable(text: str, position: int) -> InvalidRequest:
    rest = text[position:].strip()
    where = f"from {rest[:40]!r} on" if rest else "at its end"
    return InvalidRequest(f"filter {text[:200]!r} cannot be read {where}: {_GRAMMAR}")


def _value(written: str) -> str:
    if not written.startswith('"'):
        return written
    return re.sub(r"\\(.)", r"\1", written[1:-1])


def _comparison(field: str, operator: str, value: str) -> _Comparison:
    make = _FIELDS.get(field)
    if make is None:
        raise InvalidRequest(
            f"filter: there is no field {field!r}; there are {', '.join(sorted(_FIELDS))}"
        )
    return _Comparison(make(value), negated=operator == "!=")


def _stage(value: str) -> Matches:
    names = {stage.name: stage for stage in Stage}
    wanted = names.get(value.upper())
    if wanted is None:
        raise InvalidRequest(f"filter: {value!r} is no stage; stages are {', '.join(names)}")
    return lambda operation: operation.stage is wanted


def _done(value: str) -> Matches:
    if value not in ("true", "false"):
        raise InvalidRequest(f"filter: done is true or false, not {value!r}")
    return lambda operation: (operation.stage is Stage.COMPLETED) == (value == "true")


def _action(value: str) -> Matches:
    if not re.fullmatch("[0-9a-f]+(/[0-9]+)?", value):
        raise InvalidRequest(
            f"filter: {value!r} is no action; write HASH/SIZE, or the first digits of HASH"
        )
    if "/" in value:
        return lambda operation: str(operation.action_digest) == value
    return lambda operation: operation.action_digest.hash.startswith(value)


def _text(of: Callable[[Operation], str]) -> Callable[[str], Matches]:
    return lambda value: lambda operation: of(operation) == value


_FIELDS: dict[str, Callable[[str], Matches]] = {
    "stage": _stage,
    "done": _done,
    "action": _action,
    "mnemonic": _text(lambda operation: operation.mnemonic),
    "target": _text(lambda operation: operation.target),
    "invocation": _text(lambda operation: operation.invocation),
    "executor": _text(lambda operation: operation.executor),
    "principal": _text(lambda operation: operation.principal),
}
