"""The hooks: what a plugin may offer. None takes an argument, so that none ever has to change.

A plugin is a module named by an entry point of the group ``stoker``. Each hook returns a mapping
from a *kind*, the word written in TOML, to its :class:`~stoker.spi.Provider`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from stoker.spi import (
        ActionCache,
        BlobStore,
        ExecutionStrategy,
        Provider,
        Sandbox,
        WorkerProtocol,
    )

hookspec = pluggy.HookspecMarker("stoker")


@hookspec
def stoker_blob_stores() -> Mapping[str, Provider[BlobStore]]:
    """Places to keep blobs, for ``[blob_stores.NAME]``."""
    raise NotImplementedError


@hookspec
def stoker_action_caches() -> Mapping[str, Provider[ActionCache]]:
    """Places to keep action results, for ``[action_caches.NAME]``."""
    raise NotImplementedError


@hookspec
def stoker_execution_strategies() -> Mapping[str, Provider[ExecutionStrategy]]:
    """Ways to start processes, for ``[strategies.NAME]``."""
    raise NotImplementedError


@hookspec
def stoker_sandboxes() -> Mapping[str, Provider[Sandbox]]:
    """Enclosures around processes, for ``[sandboxes.NAME]``."""
    raise NotImplementedError


@hookspec
def stoker_worker_protocols() -> Mapping[str, Provider[WorkerProtocol]]:
    """Ways to talk to persistent workers, for ``[worker_protocols.NAME]``.

    The name is the one that an action gives in its platform property ``persistentWorkerProtocol``.
    """
    raise NotImplementedError
