"""The table of conformance checks tells what the tests name."""

from __future__ import annotations

from .conformance import Check, checks_named_in, read_groups


def test_how_checks_are_named() -> None:
    source = "# BSW-09\n# GTR-01…03, 08; EXE-21/22 and RUN-05; PWK-04 and 06, nothing-12"
    named = {str(check) for check in checks_named_in(source)}
    assert named == {
        *("BSW-09", "GTR-01", "GTR-02", "GTR-03", "GTR-08", "EXE-21", "EXE-22", "RUN-05"),
        *("PWK-04", "PWK-06"),
    }


def test_the_list_is_whole() -> None:
    groups = read_groups()
    checks = [Check(letters, n) for letters, group in groups.items() for n in group.strengths]
    assert len(checks) == 387
    for letters, group in groups.items():
        assert sorted(group.strengths) == [*range(1, len(group.strengths) + 1)], letters
