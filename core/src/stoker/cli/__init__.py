"""The command line: one file a command.

Errors are sentences on stderr, with exit code 1 (2 for wrong usage), never a traceback: a
traceback means a bug.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

# gRPC's C core writes lines of its own to stderr, about what is told here in a sentence anyway. It
# reads this when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from stoker import __version__
from stoker.cli.printable import printable_lines
from stoker.errors import ConfigurationError, StokerError, sole_cause
from stoker.rpc import RpcError

COMMANDS = (
    "serve",
    "init",
    "check",
    "config",
    "plugins",
    "run",
    "tail",
    "operations",
    "explain",
    "workers",
    "drain",
    "cas",
    "ac",
    "worker-check",
)


class _Commands(click.Group):
    """Imports a command when it is named: `stoker run` need not wait for the server's imports."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = name.replace("-", "_")
        command = getattr(importlib.import_module(f"stoker.cli.{module}"), module)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stoker")
def commands() -> None:
    """A remote build execution server that keeps compilers hot."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    try:
        _check_encoding(sys.argv[1:] if arguments is None else arguments)
        code = commands.main(arguments, prog_name="stoker", standalone_mode=False)
    except BaseException as error:  # noqa: BLE001 - what is no known failure is raised again
        sys.exit(_exit_code(error))
    sys.exit(code if isinstance(code, int) else 0)


def _check_encoding(arguments: Sequence[str]) -> None:
    """What is sent to a server is UTF-8."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise click.UsageError(f"argument {argument!r} is not valid UTF-8") from None


def _exit_code(error: BaseException) -> int:
    """Tell what went wrong, and return the code to exit with. Raises `error` where it is a bug."""
    cause = sole_cause(error)
    if isinstance(cause, click.ClickException):
        cause.show()
        return cause.exit_code
    if isinstance(cause, click.Abort | KeyboardInterrupt):
        return 130
    if isinstance(cause, BrokenPipeError):
        return 0
    for sentence in _sentences(error, cause):
        click.echo(f"Error: {printable_lines(sentence)}", err=True)
    return 1


def _sentences(error: BaseException, cause: BaseException) -> Iterable[str]:
    match cause:
        case ConfigurationError(problems=problems):
            return problems
        case RpcError(message=message):
            return [message]
        case OSError(strerror=str(reason), filename=str() | Path() as file):
            return [f"{file}: {reason}"]
        case StokerError() | OSError():
            return [str(cause)]
    raise error
