"""``stoker config``: what the server would really use."""

from __future__ import annotations

from pathlib import Path

import click
import tomli_w

from stoker.cli.documents import config_option, load_configuration
from stoker.config import effective_document
from stoker.plugins import load_catalogue


@click.command()
@config_option
@click.option("--local-execution", is_flag=True, help="As for stoker serve.")
def config(config_file: Path | None, local_execution: bool) -> None:
    """Print the effective configuration, defaults included, as TOML."""
    configuration, source = load_configuration(
        config_file, load_catalogue(), local_execution=local_execution
    )
    click.echo(f"# from {source}")
    click.echo(tomli_w.dumps(effective_document(configuration)), nl=False)
