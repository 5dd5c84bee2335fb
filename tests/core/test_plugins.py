"""What the server knows of the plugins that are not installed."""

from __future__ import annotations

import tomllib
from pathlib import Path

from stoker.plugins import SUPPLIERS, load_catalogue

PLUGINS = Path(__file__).parents[2] / "plugins"


def test_whoever_names_a_kind_of_ours_is_told_its_package() -> None:
    ours = {
        tomllib.loads(file.read_text())["project"]["name"]
        for file in PLUGINS.glob("*/pyproject.toml")
    }
    kinds = {(kind.table, kind.name): kind.package for kind in load_catalogue()}
    assert {kind: package for kind, package in kinds.items() if package in ours} == SUPPLIERS
    assert set(SUPPLIERS.values()) == ours
