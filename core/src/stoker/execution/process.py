"""What to start for an action: its program, environment and folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stoker.action import LoadedAction
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import ProcessSpec

DEFAULT_ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
"""What every action's environment begins with, whatever the server's own is (RUN-10)."""


class ActionFolders:
    """The folders and files that one action has to itself."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.root = top / "root"
        """The input root."""
        self.temporary = top / "tmp"
        """HOME and TMPDIR."""
        self.stdout = top / "stdout"
        """Where stdout is spooled."""
        self.stderr = top / "stderr"
        """Where stderr is spooled."""


def environment_of(command: reapi.Command, private: Path | None = None) -> dict[str, str]:
    """The whole environment of `command`: the defaults, and over them the command's own variables.

    HOME and TMPDIR are the folder `private`; without one they are not set, as for the key of a
    persistent worker. Of a name that comes twice the last value counts (RUN-11).
    """
    environment = dict(DEFAULT_ENVIRONMENT)
    if private is not None:
        environment |= {"HOME": str(private), "TMPDIR": str(private)}
    return environment | {pair.name: pair.value for pair in command.environment_variables}


def process_spec(action: LoadedAction, folders: ActionFolders) -> ProcessSpec:
    """The one process that `action` asks for, with its folders in `folders`."""
    command = action.command
    return ProcessSpec(
        argv=tuple(command.arguments),
        environment=environment_of(command, folders.temporary),
        root=folders.root,
        working_directory=command.working_directory,
        temporary_directory=folders.temporary,
        stdout=folders.stdout,
        stderr=folders.stderr,
        properties=action.platform,
        namespace=action.namespace,
    )
