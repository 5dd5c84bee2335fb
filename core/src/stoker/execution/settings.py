"""What can be set of how an executor treats its actions."""

from __future__ import annotations

from typing import Annotated

import msgspec

from stoker.action import LoadedAction
from stoker.errors import InvalidRequest
from stoker.spi import Settings

_Seconds = Annotated[float, msgspec.Meta(gt=0)]


class ExecutionSettings(Settings, frozen=True):
    """How an executor treats its actions."""

    default_timeout_seconds: _Seconds = 3600.0
    """For actions that set no timeout themselves (EXE-11)."""
    maximum_timeout_seconds: _Seconds = 24 * 3600.0
    """An action that asks for more is refused (EXE-10)."""
    termination_grace_seconds: Annotated[float, msgspec.Meta(ge=0)] = 5.0
    """Between asking a command to end (SIGTERM) and ending it (SIGKILL)."""

    kept_roots: Annotated[int, msgspec.Meta(ge=0)] = 16
    """How many input roots stay laid out for actions to come; 0 for none. The least recently
    used gives way."""
    kept_root_entries: Annotated[int, msgspec.Meta(ge=0)] = 500_000
    """How many files, directories and links these may hold together."""
    kept_root_bytes: Annotated[int, msgspec.Meta(ge=0)] = 10 * 2**30
    """How large their files may be together. Files that are links to blobs count as well: they
    keep the room of blobs that the store has evicted."""

    def limit_seconds(self, action: LoadedAction) -> float:
        """How long `action` may run. Raises InvalidRequest if it asks for too long."""
        if action.timeout_seconds is None:
            return min(self.default_timeout_seconds, self.maximum_timeout_seconds)
        if action.timeout_seconds > self.maximum_timeout_seconds:
            raise InvalidRequest(
                f"the action's timeout of {action.timeout_seconds:g} s is above this server's "
                f"limit of {self.maximum_timeout_seconds:g} s"
            )
        return action.timeout_seconds
