"""What can be set of how an executor treats its actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from stoker.action import LoadedAction, Platform
from stoker.errors import InvalidRequest
from stoker.execution.output_limits import OutputBudget
from stoker.resources import ByteCount, requested
from stoker.spi import Limits, Settings

_Seconds = Annotated[float, msgspec.Meta(gt=0)]


class ExecutionSettings(Settings, frozen=True):
    """How an executor treats its actions."""

    default_timeout_seconds: _Seconds = 3600.0
    """For actions that set no timeout themselves (EXE-11)."""
    maximum_timeout_seconds: _Seconds = 24 * 3600.0
    """An action that asks for more is refused (EXE-10)."""
    termination_grace_seconds: Annotated[float, msgspec.Meta(ge=0)] = 5.0
    """Between asking a command to end (SIGTERM) and ending it (SIGKILL)."""
    default_memory_bytes: ByteCount | None = None
    """What actions that ask for no memory are held to, and count as; unset for no bound."""
    max_processes: Annotated[int, msgspec.Meta(ge=1)] = 4096
    """Processes and threads that an action may have at once."""
    enforce_cpus: bool = False
    """Whether an action gets no more than the processors that it asks for, also while others are
    idle. What asks for none is not bounded."""
    max_output_bytes: Annotated[int, msgspec.Meta(ge=0)] = 16 * 2**30
    """What an action's output files, stdout and stderr may have together (OUT-25)."""
    max_output_files: Annotated[int, msgspec.Meta(ge=0)] = 250_000
    """How many files, directories and symbolic links an action may have as outputs, those inside
    of output directories among them (OUT-25)."""

    def process_limits(self, platform: Platform) -> Limits:
        """What a process for `platform` is held to. Raises InvalidRequest as `requested` does."""
        request = requested(platform)
        enforced = self.enforce_cpus and request.millicpus is not None
        return Limits(
            cpus=(request.millicpus or 0) / 1000 if enforced else None,
            memory_bytes=request.memory_bytes or self.default_memory_bytes,
            processes=self.max_processes,
        )

    def sentences(self) -> Sequence[str]:
        """For those who run the server: what processes are held to."""
        memory_bytes = self.default_memory_bytes
        unasked = f"{memory_bytes} bytes" if memory_bytes else "not held to any"
        return (
            f"memory: what an action asks for; {unasked} where it asks for none",
            f"processes and threads: {self.max_processes} for each action",
            "processors: what an action asks for is its limit"
            if self.enforce_cpus
            else "processors: actions share them, and may use those that are idle",
        )

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

    def output_budget(self, executor: str, action: LoadedAction) -> OutputBudget:
        """What `action` may leave behind on the executor of this name."""
        return OutputBudget(
            executor=executor,
            max_files=self.max_output_files,
            max_bytes=self.max_output_bytes,
            max_blob_bytes=action.max_blob_bytes,
        )
