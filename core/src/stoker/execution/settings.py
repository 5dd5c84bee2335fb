"""What can be set of how an executor treats its actions."""

from __future__ import annotations

from typing import Annotated

import msgspec

from stoker.action import LoadedAction
from stoker.errors import InvalidRequest
from stoker.execution.output_limits import OutputBudget
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
    max_output_bytes: Annotated[int, msgspec.Meta(ge=0)] = 16 * 2**30
    """What an action's output files, stdout and stderr may have together (OUT-25)."""
    max_output_files: Annotated[int, msgspec.Meta(ge=0)] = 250_000
    """How many files, directories and symbolic links an action may have as outputs, those inside
    of output directories among them (OUT-25)."""

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

    def output_budget(self, executor: str, action: LoadedAction) -> OutputBudget:
        """What `action` may leave behind on the executor of this name."""
        return OutputBudget(
            executor=executor,
            max_files=self.max_output_files,
            max_bytes=self.max_output_bytes,
            max_blob_bytes=action.max_blob_bytes,
        )
