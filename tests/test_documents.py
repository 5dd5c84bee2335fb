"""What documents say of the configuration: all of it, and nothing that is not so."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from stoker.config import check_document
from stoker.errors import ConfigurationError
from stoker.plugins import load_catalogue
from stoker.spi import Settings

HOME = Path(__file__).parent.parent
SAMPLE = HOME / "core" / "src" / "stoker" / "cli" / "stoker.toml"
DOCUMENTS = sorted(
    {
        HOME / "README.md",
        *(HOME / "docs").glob("guides/*.md"),
        *(HOME / "docs").glob("scheduling/*.md"),
        *(HOME / "plugins").glob("*/README.md"),
    }
)
TABLE_NAMES = {"limits", "rules", "workers"}
"""Settings that are tables of their own."""


def problems_of(toml: str) -> list[str]:
    try:
        check_document(tomllib.loads(toml), HOME, load_catalogue())
    except ConfigurationError as error:
        return [*error.problems]
    return []


def is_of_a_part(problem: str) -> bool:
    """What is said of a piece of TOML only as it is a piece."""
    return "there is no [instances.NAME]" in problem or "needs the key 'strategy'" in problem


def settings_below(parent: type[Settings]) -> Iterator[type[Settings]]:
    for child in parent.__subclasses__():
        yield child
        yield from settings_below(child)


def test_the_sample_is_right_also_where_its_marks_are_taken_away() -> None:
    sample = SAMPLE.read_text(encoding="utf-8")
    assert problems_of(sample) == []
    whole = re.sub(r"^# (?=\[|\w+ = )", "", sample, flags=re.MULTILINE)
    assert whole.count("\n[") > sample.count("\n[") + 4
    assert problems_of(whole) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(HOME)))
def test_all_toml_in_documents_is_right(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for piece in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        assert not [each for each in problems_of(piece) if not is_of_a_part(each)]


def test_every_setting_is_told_somewhere() -> None:
    load_catalogue()
    texts = [path.read_text(encoding="utf-8") for path in (SAMPLE, *DOCUMENTS)]
    known = [each for each in settings_below(Settings) if each.__module__.startswith("stoker")]
    assert len(known) > 20
    names = {field.encode_name for each in known for field in msgspec.structs.fields(each)}
    untold = {
        name
        for name in names - TABLE_NAMES
        if not any(re.search(rf"(?<!\w){name}(?=\s*=|`)", text) for text in texts)
    }
    assert untold == set()
