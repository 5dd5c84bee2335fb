"""``stoker check``: is this configuration right, here and now?"""

from __future__ import annotations

from pathlib import Path

import click
import trio

from stoker.cli.documents import config_option, load_configuration
from stoker.compose import try_services
from stoker.errors import ConfigurationError
from stoker.plugins import load_catalogue
from stoker.tables import quoted
from stoker.tls import load_tls


@click.command()
@config_option
def check(config_file: Path | None) -> None:
    """Validate the configuration and open every service once.

    Tells how each executor isolates and limits its actions. Does not listen, and needs a state
    directory that no running server uses.
    """
    catalogue = load_catalogue()
    configuration, source = load_configuration(config_file, catalogue)
    load_tls(configuration)
    trial = trio.run(try_services, configuration, catalogue)
    for name, problem in trial.services:
        click.echo(f"{'failed' if problem else 'ok':6} {name}")
    for executor, sentences in trial.enforcement.items():
        click.echo(f"{'':6} [executors.{quoted(executor)}]")
        for sentence in sentences:
            click.echo(f"{'':9}{sentence}")
    if problems := [problem for _, problem in trial.services if problem]:
        raise ConfigurationError(problems)
    click.echo(f"{source}: everything can be opened")
