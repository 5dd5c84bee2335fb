"""An enclosure around processes."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from stoker.spi.processes import Exit, ProcessSpec


class Sandbox(abc.ABC):
    """An enclosure around processes. Calls may overlap."""

    protects_inputs: bool = False
    """As for `ExecutionStrategy`, of enclosed processes whose root does not change."""

    def enforcement(self) -> Sequence[str]:
        """As for `ExecutionStrategy`."""
        return ()

    @abc.abstractmethod
    def enclose(self, spec: ProcessSpec) -> AbstractAsyncContextManager[ProcessSpec]:
        """Rewrite what is to be started so that it runs enclosed; clean up on leaving.

        Raises FailedPrecondition or Unavailable when it cannot enclose: never returns a
        specification that would run unenclosed. It may raise ProgramNotStarted as well, and any
        of the three on leaving, where the process was not started.
        """

    def read_exit(self, exit_: Exit) -> Exit:
        """How the enclosed process ended, when what was started in its place ended by `exit_`."""
        return exit_
