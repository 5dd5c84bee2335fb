"""Where a command's configuration comes from: a TOML file, or the built-in default."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from stoker.config import Configuration, check_document, default_document, read_toml
from stoker.errors import ConfigurationError
from stoker.plugins import Catalogue

DEFAULT_FILE = Path("stoker.toml")

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The TOML file; stoker.toml of this folder if there is one, otherwise built-in defaults.",
)


def load_configuration(
    file: Path | None,
    catalogue: Catalogue,
    *,
    local_execution: bool = False,
    listen: Sequence[str] = (),
) -> tuple[Configuration, str]:
    """The configuration that a command is to use, and where it came from, in words.

    `listen`, where it is given, takes the place of the configured addresses. Raises
    ConfigurationError with all that is wrong.
    """
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    if file is None:
        document = default_document(state_directory(), local_execution=local_execution)
        configuration = check_document(_listening(document, listen), Path.cwd(), catalogue)
        return configuration, "built-in defaults"
    if local_execution:
        raise ConfigurationError(
            [f"--local-execution is for the built-in defaults; {file} says itself what runs where"]
        )
    try:
        document = _listening(read_toml(file), listen)
        configuration = check_document(document, file.absolute().parent, catalogue)
    except ConfigurationError as error:
        raise ConfigurationError([_in_file(file, problem) for problem in error.problems]) from error
    return configuration, str(file)


def _listening(document: dict[str, Any], listen: Sequence[str]) -> dict[str, Any]:
    server = document.get("server", {})
    if not listen or not isinstance(server, dict):
        return document
    return {**document, "server": {**server, "listen": list(listen)}}


def _in_file(file: Path, problem: str) -> str:
    return problem if str(file) in problem else f"{file}: {problem}"


def state_directory() -> Path:
    """Where the built-in default keeps its data: STOKER_STATE, or stoker's part of XDG's state."""
    if chosen := os.environ.get("STOKER_STATE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "stoker"
