"""A process: what is to be started, what it may use, and how it ended."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import trio


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a process may use, together with all that come of it; None for no bound."""

    cpus: float | None = None
    """Processors' worth of time: 1.5 is one and a half of them."""
    memory_bytes: int | None = None
    processes: int | None = None
    """Processes and threads at once."""


class ProcessUser(NamedTuple):
    """Whom a process runs as."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A process to be started. Its folders bear the same names inside any strategy or sandbox."""

    argv: tuple[str, ...]
    """The program and its arguments. A program without a slash is looked up in the PATH of
    `environment`, one with a slash is relative to the working directory (RUN-09)."""
    environment: Mapping[str, str]
    """All of it: nothing of the server's environment is added."""
    root: Path
    """The input root: the process may read and write below it."""
    working_directory: str = ""
    """Relative to `root`; empty for `root` itself. It exists."""
    temporary_directory: Path
    """Private to this process, and empty."""
    stderr: Path
    """The file to append stderr to."""
    stdout: Path | None = None
    """The file to write stdout to, with an empty stdin; or None to be given both as pipes."""
    properties: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The action's platform, for strategies and sandboxes that read some of it."""
    limits: Limits = Limits()
    """To be enforced as far as the machine allows; see `ExecutionStrategy.enforcement`."""
    root_changes: bool = False
    """Whether files below `root` are added, replaced and removed by the server while the process
    lives, as for a persistent worker; it must see that."""
    namespace: str = ""
    """The instance whose action it is: what a strategy keeps from one process for the next is
    never shared between two namespaces."""


class ResourceUsage(NamedTuple):
    """What a process used, with all that came of it as far as that could be measured."""

    user_seconds: float
    system_seconds: float
    peak_memory_bytes: int


class Exit(NamedTuple):
    """How a process ended."""

    code: int
    """0 to 255; for a process ended by a signal, 128 and the signal's number."""
    signal: int | None = None
    breach: str = ""
    """The limit that it ended by, if it did, as a sentence that names the limit and what was
    used: ``out of memory: the limit is 1073741824 bytes, …``."""
    usage: ResourceUsage | None = None


class Process(abc.ABC):
    """A process that was started."""

    name: str
    """For messages, such as ``process 4711``."""
    stdin: trio.abc.SendStream | None = None
    stdout: trio.abc.ReceiveStream | None = None
    """Pipes, where the specification asked for them."""
    started_ns: int | None = None
    """When it began, by the clock of time.monotonic_ns, where that was a while before its context
    was entered."""
    facts: Mapping[str, str] = MappingProxyType({})
    """What whoever sent the action may want to know of where it runs, such as the digest of its
    container's image: told in the action's auxiliary metadata (RUN-29). The server's own names
    there, such as ``worker``, are not to be used."""
    has_exited: bool = False
    """Whether `wait` would return at once. False says nothing."""

    @abc.abstractmethod
    async def wait(self) -> Exit:
        """Wait for the end of the process itself. May be called again, and by several tasks.

        Cancellation leaves the process alone.
        """

    @abc.abstractmethod
    def terminate(self) -> None:
        """Ask the whole process tree to end (SIGTERM), without waiting. No error if it is gone."""

    async def measure_memory(self) -> int | None:
        """How many bytes the process uses now, with all that came of it; None if nobody can tell.

        A measurement may take a moment and is asked for every few seconds. It raises nothing.
        """
        return None
