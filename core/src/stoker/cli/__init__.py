"""The command line: one file a command.

Errors are sentences on stderr, with exit code 1 (2 for wrong usage), never a traceback: a
traceback means a bug.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

# gRPC's C core writes lines of its own to stderr, about what is told here in a sentence anyway. It
# reads this when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from stoker import __version__
from stoker.errors import ConfigurationError, StokerError, sole_cause
from stoker.rpc import RpcError

COMMANDS = ("serve", "init", "check", "config", "plugins", "run", "cas", "ac")


class _Commands(click.Group):
    """Imports a command when it is named: `stoker run` need not wait for the server's imports."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"stoker.cli.{name}"), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stoker")
def commands() -> None:
    """A remote build execution server that keeps compilers hot."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    try:
        code = commands.main(arguments, prog_name="stoker", standalone_mode=False)
    except BaseException as error:  # noqa: BLE001 - what is no known failure is raised again
        sys.exit(_exit_code(error))
    sys.exit(code if isinstance(code, int) else 0)


def _exit_code(error: BaseException) -> int:
    """Tell what went wrong, and return the code to exit with. Raises `error` where it is a bug."""
    match sole_cause(error):
        case click.ClickException() as failure:
            failure.show()
            return failure.exit_code
        case click.Abort() | KeyboardInterrupt():
            return 130
        case BrokenPipeError():
            return 0
        case ConfigurationError(problems=problems):
            for problem in problems:
                click.echo(f"Error: {problem}", err=True)
            return 1
        case RpcError(message=message):
            click.echo(f"Error: {message}", err=True)
            return 1
        case StokerError() | OSError() as failure:
            click.echo(f"Error: {failure}", err=True)
            return 1
    raise error
