"""What is told at the end: a table for people, JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.measurement import Row

_PACKAGES = ("stoker", "grpcio", "protobuf", "trio")


def machine() -> dict[str, Any]:
    """What the figures depend on, without anything that names the machine."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {package: version(package) for package in _PACKAGES},
    }


def as_json(row: Row) -> dict[str, Any]:
    """A row with every single figure."""
    return {
        "what": row.what,
        "unit": row.unit,
        "stoker": list(row.ours),
        "against": row.against,
        "other": list(row.theirs),
        "ratio": row.ratio,
        "at_most": row.at_most,
    }


def print_table(rows: Sequence[Row], console: Console) -> None:
    """All rows, each with its median ratio and how far the rounds lie apart."""
    title = "What stoker costs, and what it is held against (less is better)"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("what", no_wrap=True)
    for name in ("stoker", "other"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("the other is", no_wrap=True)
    for name in ("ratio", "in n rounds", "at most"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)


def _cells(row: Row) -> list[str]:
    ratios = row.ratios
    return [
        row.what,
        _figure(row.our_median),
        _figure(row.their_median),
        row.unit,
        row.against,
        f"{row.ratio:.2f}",
        f"{len(ratios)}: {min(ratios):.2f} to {max(ratios):.2f}",
        "" if row.at_most is None else f"{row.at_most:.2f}",
    ]


def _figure(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
