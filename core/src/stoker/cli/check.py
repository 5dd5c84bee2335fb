"""``stoker check``: is this configuration right, here and now?"""

from __future__ import annotations

from pathlib import Path

import click
import trio

from stoker.cli.documents import config_option, load_configuration
from stoker.compose import load_tls, try_services
from stoker.errors import ConfigurationError
from stoker.plugins import load_catalogue


@click.command()
@config_option
def check(config_file: Path | None) -> None:
    """Validate the configuration and open every service once.

    Does not listen, and needs a state directory that no running server uses.
    """
    catalogue = load_catalogue()
    configuration, source = load_configuration(config_file, catalogue)
    load_tls(configuration)
    outcomes = trio.run(try_services, configuration, catalogue)
    for name, problem in outcomes:
        click.echo(f"{'failed' if problem else 'ok':6} {name}")
    if problems := [problem for _, problem in outcomes if problem]:
        raise ConfigurationError(problems)
    click.echo(f"{source}: everything can be opened")
