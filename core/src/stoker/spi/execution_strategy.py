"""A way to start processes."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from stoker.spi.processes import Process, ProcessSpec, ProcessUser

Tell = Callable[[Mapping[str, str | float | bool]], None]
"""Tells facts to everybody who waits for an action, in place of those told before."""


class ExecutionStrategy(abc.ABC):
    """A way to start processes. Calls may overlap."""

    user: ProcessUser | None = None
    """Whom processes run as, where that is not the server's own user: the folders of the input
    root, and the temporary directory, are then made to belong to that user."""
    protects_inputs: bool = False
    """Whether processes cannot change content, permissions or times of files below their root
    that belong to the server's user, in whatever way. Inputs are then hard links to blobs; else
    they are copies."""
    keeps_containers: bool | None = None
    """Whether what a process runs in may serve one action after another, by decision of those who
    run the server. None where that is for an action's platform to say (``dockerReuse``), or where
    there are no containers. What may not be kept has no persistent worker."""

    def enforcement(self) -> Sequence[str]:
        """Sentences for those who run the server: how process trees are ended and limits
        enforced here, and what cannot be enforced: such a sentence begins with ``degraded:``.
        Logged at start and told by ``stoker check``.
        """
        return ()

    async def identify_surroundings(self, properties: Mapping[str, tuple[str, ...]]) -> str:
        """What else than its specification tells how a process of these properties runs, such as
        the digest of the image that their ``container-image`` stands for now.

        Persistent workers are never shared between surroundings that differ. Empty by default.
        Raises FailedPrecondition when the platform asks for what this strategy cannot give,
        Unavailable otherwise.
        """
        del properties
        return ""

    async def prepare(self, properties: Mapping[str, tuple[str, ...]], tell: Tell) -> None:
        """Fetch what processes of these properties need beside their inputs, such as an image,
        and tell how that goes on whenever there is something new. Nothing by default.

        Called before the inputs of an action are laid out. Raises as `identify_surroundings`.
        Cancellation leaves nothing, or what others can use.
        """
        del properties, tell

    @abc.abstractmethod
    def start(self, spec: ProcessSpec) -> AbstractAsyncContextManager[Process]:
        """Start a process, for one command or for a worker that lives long.

        Leaving the context, by whatever way, leaves no process of it alive.
        Raises ProgramNotStarted when the program is at fault, FailedPrecondition when the
        platform asks for what this strategy cannot give, Unavailable otherwise.
        """
