"""Actions for a scheduler, which are never run."""

from __future__ import annotations

from stoker.action import LoadedAction
from stoker.digest import SHA256
from stoker.protos import remote_execution_pb2 as reapi


def make_action(name: str) -> LoadedAction:
    """An action that is told by its name."""
    return LoadedAction(
        namespace="",
        digest=SHA256.digest(name.encode()),
        action=reapi.Action(),
        command=reapi.Command(arguments=["true"]),
        input_root=SHA256.empty,
        platform={},
        timeout_seconds=None,
    )
