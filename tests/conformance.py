"""A pytest plugin: which conformance checks the tests make, and whether they hold.

A test names checks in its source, as ``# BSW-09`` or ``# GTR-01…03, 08``. After a run with
``--conformance`` a table tells every check of `conformance.toml`. What is a decision or a matter of
quality (D and P) may be told in docs/decisions in place of a test.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

_CHECKS = Path(__file__).with_name("conformance.toml")
_DECISIONS = Path(__file__).parent.parent / "docs" / "decisions"
_DECIDABLE = frozenset("DP")
_NAMED = re.compile(r"\b([A-Z]{3})-(\d\d(?:(?:, | and |/|…)(?:\1-)?\d\d\b(?!-))*)")
_PROPERTY = "conformance"
_RANGE = re.compile(r"(\d\d)(?:…(?:[A-Z]{3}-)?(\d\d))?")


class Check(NamedTuple):
    """One check, as ``BSW-09``."""

    group: str
    number: int

    def __str__(self) -> str:
        return f"{self.group}-{self.number:02}"


@dataclass(frozen=True, slots=True)
class Group:
    """The checks that begin alike."""

    section: int
    about: str
    strengths: Mapping[int, str]


def read_groups() -> dict[str, Group]:
    """Every check there is, by the letters that it begins with."""
    with _CHECKS.open("rb") as file:
        document = tomllib.load(file)
    return {
        letters: Group(
            table.pop("section"),
            table.pop("about"),
            {number: strength for strength, numbers in table.items() for number in numbers},
        )
        for letters, table in document.items()
    }


def checks_named_in(source: str) -> Iterator[Check]:
    """The checks that a piece of source names."""
    for letters, numbers in _NAMED.findall(source):
        for first, last in _RANGE.findall(numbers):
            for number in range(int(first), int(last or first) + 1):
                yield Check(letters, number)


def checks_decided() -> set[str]:
    """The checks that docs/decisions names."""
    texts = (path.read_text(encoding="utf-8") for path in _DECISIONS.glob("*.md"))
    return {str(check) for text in texts for check in checks_named_in(text)}


class Report:
    """Collects what became of the tests of each check."""

    def __init__(self) -> None:
        self._outcomes: dict[str, set[str]] = defaultdict(set)
        self._decided = checks_decided()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            # As a property of the test it also comes back from another process (pytest-xdist).
            checks = sorted({str(check) for check in checks_named_in(_source_of(item))})
            item.user_properties.append((_PROPERTY, checks))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            for name, checks in report.user_properties:
                if name == _PROPERTY and isinstance(checks, list):
                    for check in checks:
                        self._outcomes[check].add(report.outcome)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("conformance")
        for line in self._table(read_groups()):
            terminalreporter.write_line(line)

    def _table(self, groups: Mapping[str, Group]) -> Iterator[str]:
        yield f"{'section':>7}  {'checks':<34}{'hold':>5}{'fail':>5}{'told':>5}  neither"
        for letters, group in groups.items():
            states: dict[str, list[str]] = defaultdict(list)
            for number, strength in sorted(group.strengths.items()):
                state = self._state(Check(letters, number), strength)
                states[state].append(f"{number:02}{strength}")
            yield (
                f"{group.section:>7}  {letters + ' ' + group.about:<34}"
                f"{len(states['hold']):>5}{len(states['fail']):>5}{len(states['told']):>5}"
                f"  {' '.join(states['none'])}"
            )
            if states["fail"]:
                yield f"         failing: {' '.join(states['fail'])}"

    def _state(self, check: Check, strength: str) -> str:
        outcomes = self._outcomes.get(str(check), set())
        if "failed" in outcomes:
            return "fail"
        if "passed" in outcomes:
            return "hold"
        return "told" if strength in _DECIDABLE and str(check) in self._decided else "none"


def _source_of(item: pytest.Item) -> str:
    function = getattr(item, "function", None)
    if function is None:
        return ""
    function = inspect.unwrap(function)
    return f"{inspect.getcomments(function) or ''}{inspect.getsource(function)}"
