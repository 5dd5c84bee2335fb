"""``stoker plugins``: what is installed."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from stoker.plugins import HOOKS, NOUNS, SUPPLIERS, Catalogue, load_catalogue


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def plugins(as_json: bool) -> None:
    """List every kind that a TOML file may name, and the package it comes from."""
    catalogue = load_catalogue()
    if as_json:
        click.echo(json.dumps(_rows(catalogue), indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("service", "kind", "package", "version", "what it is"):
        table.add_column(heading)
    for row in _rows(catalogue):
        table.add_row(*(row[key] for key in ("service", "kind", "package", "version", "summary")))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # scripts and pipes get whole lines
    console.print(table)
    for (where, kind), package in SUPPLIERS.items():
        if kind not in catalogue.kinds(where):
            click.echo(f"not installed: {NOUNS[where]} {kind!r}, from {package}")


def _rows(catalogue: Catalogue) -> list[dict[str, str]]:
    return [
        {
            "service": NOUNS[table],
            "kind": kind.name,
            "package": kind.package,
            "version": kind.version,
            "summary": kind.provider.summary,
        }
        for table in HOOKS
        for kind in catalogue.kinds(table).values()
    ]
