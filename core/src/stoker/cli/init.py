"""``stoker init``: a TOML file to begin with."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default="stoker.toml")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def init(file: Path, force: bool) -> None:
    """Write a commented stoker.toml."""
    text = resources.files("stoker.cli").joinpath("stoker.toml").read_text(encoding="utf-8")
    try:
        with file.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise click.ClickException(f"{file} is there already; --force writes over it") from None
    click.echo(f"wrote {file}; next: stoker check, then stoker serve")
