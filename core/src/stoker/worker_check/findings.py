"""What came of trying a program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Verdict(StrEnum):
    """What a finding means for those who want to use the program."""

    GOOD = "good"
    NOTE = "note"
    TRAP = "trap"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried."""

    check: str
    """A short name, for scripts too."""
    verdict: Verdict
    sentence: str


@dataclass(slots=True)
class ProtocolReport:
    """All that was tried in one protocol."""

    protocol: str
    findings: list[Finding] = field(default_factory=list)
    usable: bool = False
    """Whether it answers request after request."""
    multiplex: str = ""
    """Why it may be given several requests at once, in words for a comment; empty if it may not."""
    cancellation: bool = False
    """Whether it was seen to heed a cancel request."""

    def add(self, check: str, verdict: Verdict, sentence: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(check, verdict, sentence))

    def condemn(self) -> None:
        """Have the last finding count as a trap: it is why the program cannot be used at all, and
        not only that it speaks another protocol."""
        self.findings[-1] = replace(self.findings[-1], verdict=Verdict.TRAP)


def choose(reports: Iterable[ProtocolReport]) -> ProtocolReport | None:
    """The protocol to use: the usable one with the fewest traps, the first of equals."""
    usable = [report for report in reports if report.usable]
    return min(usable, key=_traps, default=None)


def _traps(report: ProtocolReport) -> int:
    return sum(finding.verdict is Verdict.TRAP for finding in report.findings)
