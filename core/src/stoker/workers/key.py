"""What makes two actions share a worker."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields


class Mode(enum.Enum):
    """How requests share a process."""

    SINGLEPLEX = "singleplex"
    """One after the other."""
    MULTIPLEX = "multiplex"
    """Several at a time, in one folder."""
    SANDBOXED_MULTIPLEX = "sandboxed multiplex"
    """Several at a time, each in a folder of its own that its request names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerKey:
    """Workers of equal keys are interchangeable (PWK-11, PWK-12).

    The client's own key is a part of it, and no more than that: it keeps workers apart but never
    makes two that differ otherwise one.

    A mnemonic is no part. To Bazel it is, which is why there is ``worker-key-mnemonic``: it has
    actions of several mnemonics share a worker. Here these share one anyway if all else is equal.
    """

    namespace: str
    """The instance name."""
    principal: str = ""
    """The client that the certificate names, where clients have workers of their own."""
    silo: str
    """The property ``cache-silo-key``."""
    client_key: str = ""
    """The property ``persistentWorkerKey``."""
    platform: tuple[tuple[str, tuple[str, ...]], ...]
    """All other properties but ``worker-key-mnemonic``, in order of their names."""
    argv: tuple[str, ...]
    """What the process is started with: ``--persistent_worker`` and what the operator adds too."""
    environment: tuple[tuple[str, str], ...]
    """The command's variables, in order of their names."""
    working_directory: str
    protocol: str
    mode: Mode = Mode.SINGLEPLEX
    surroundings: str = ""
    """What the strategy says of where it runs, such as the digest of a container's image."""
    tools: str
    """The Merkle hash of the tool's files, and of links to them, that stoker computes itself."""

    def difference(self, other: WorkerKey) -> tuple[str, ...]:
        """The names of the components in which `other` differs: why a worker was not shared."""
        return tuple(
            field.name
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        )
