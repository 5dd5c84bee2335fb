"""An action on its way from the frontend to an executor, and what became of it.

Source: build.bazel.remote.execution.v2, messages Action, Command, Platform. Pure: nothing here
reads or writes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from google.protobuf.message import DecodeError

from stoker.digest import Digest
from stoker.errors import InvalidRequest, StokerError
from stoker.protos import remote_execution_pb2 as reapi

OUTPUT_NODE_PROPERTIES = ("mtime", "unix_mode")
"""What a command may ask to be told of its outputs (CAP-15)."""

Platform = Mapping[str, tuple[str, ...]]
"""Property names to their values. All values of a name must hold, as for ISA (EXE-15)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAction:
    """An action whose Action and Command messages have been read and found sound."""

    namespace: str
    """The instance name it was sent to, for keys. Not for routing: that has happened."""
    digest: Digest
    action: reapi.Action
    command: reapi.Command
    input_root: Digest
    platform: Platform
    timeout_seconds: float | None
    """None where the action sets none."""
    metadata: reapi.RequestMetadata = field(default_factory=reapi.RequestMetadata)
    """What the client that came first has said of itself, for the records."""
    principal: str = ""
    """Who that client has proved to be; empty where clients show no certificate."""
    mnemonic: str = ""
    """The build tool's name for this sort of action, as Javac; from RequestMetadata."""
    target: str = ""
    max_blob_bytes: int = 0
    """The largest blob that the instance takes, outputs among them (OUT-24); 0 for no bound."""

    @property
    def cacheable(self) -> bool:
        """Whether its result may be filed, and shared with identical actions in flight."""
        return not self.action.do_not_cache

    @property
    def output_paths(self) -> tuple[str, ...]:
        """Every output that is asked for, whichever field names it (OUT-01)."""
        command = self.command
        return tuple(command.output_paths or (*command.output_files, *command.output_directories))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inlined:
    """Which contents a client wants to have in a result, beside their digests (RUN-32)."""

    stdout: bool = False
    stderr: bool = False
    files: frozenset[str] = frozenset()
    """Paths of outputs."""


NOTHING_INLINED = Inlined()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an action ended: with a result, with an error, or with both (a timeout)."""

    result: reapi.ActionResult | None = None
    error: StokerError | None = None
    cached: bool = False
    reusable: bool = True
    """Whether the result tells of the action alone. One that tells of limits here is not filed."""
    message: str = ""
    """For the person who reads the client's output."""
    server_logs: Mapping[str, reapi.LogFile] = field(default_factory=dict)


class CacheVerdict(Enum):
    """What the action cache had for an action, when it was accepted."""

    HIT = "hit"
    SKIPPED = "skipped"
    """The client asked to skip the lookup (EXE-18)."""
    NOT_CACHEABLE = "not cacheable"
    """The action says do_not_cache."""
    ABSENT = "absent"
    INCOMPLETE = "incomplete"
    """There was a result, and something that it names was no longer in the CAS (ACG-02)."""
    FAILURE = "failure"
    """There was a result of a run that failed, which the instance does not serve (ACG-12)."""
    UNUSABLE = "unusable"
    """There was a result that cannot be read (ACG-13, ACG-15)."""
    UNKNOWN = "unknown"
    """Nobody has said."""


class CacheAnswer(NamedTuple):
    """What the action cache said, and what there is to say about it."""

    verdict: CacheVerdict
    detail: str = ""


UNKNOWN_ANSWER = CacheAnswer(CacheVerdict.UNKNOWN)


class Sharer(NamedTuple):
    """An operation that shared a run."""

    name: str
    principal: str
    """Whose it is: nobody else is to know its name (SEC-06)."""


class RunRecord(NamedTuple):
    """What is told of one run of an action: for the records once it has ended, or on its way."""

    action: LoadedAction
    outcome: Outcome | None
    """None while it is on its way."""
    sharers: tuple[Sharer, ...]
    """The operations that shared it, those that were cancelled too: the first thousand."""
    cache: CacheAnswer
    wait: str
    """Why it did not begin at once; empty where it did."""
    executors: tuple[str, ...]
    """Those that it was handed to, in order."""
    queued_ns: int
    """When the first of its operations was accepted, since 1970."""
    ended_ns: int
    """0 while it is on its way."""


def load_action(
    digest: Digest,
    action: reapi.Action,
    command: reapi.Command,
    *,
    namespace: str,
    metadata: reapi.RequestMetadata,
    principal: str = "",
    max_blob_bytes: int = 0,
) -> LoadedAction:
    """Join an Action and its Command. Raises InvalidRequest naming what is unsound in either."""
    _check_command(command)
    return LoadedAction(
        namespace=namespace,
        digest=digest,
        action=action,
        command=command,
        input_root=digest.function.parse(action.input_root_digest),
        platform=platform_of(action, command),
        timeout_seconds=_timeout_seconds(action),
        metadata=metadata,
        principal=principal,
        mnemonic=metadata.action_mnemonic,
        target=metadata.target_id,
        max_blob_bytes=max_blob_bytes,
    )


def parse_action(digest: Digest, data: bytes) -> reapi.Action:
    """The Action message in `data`. Raises InvalidRequest (EXE-08)."""
    try:
        return reapi.Action.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"blob {digest} is not an Action message") from error


def parse_command(digest: Digest, data: bytes) -> reapi.Command:
    """The Command message in `data`. Raises InvalidRequest (EXE-08)."""
    try:
        return reapi.Command.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"blob {digest} is not a Command message") from error


def platform_of(action: reapi.Action, command: reapi.Command) -> Platform:
    """The platform asked for: the Action's, or failing that the Command's (EXE-12)."""
    message = action.platform if action.HasField("platform") else command.platform
    values: dict[str, list[str]] = {}
    for entry in message.properties:
        values.setdefault(entry.name, []).append(entry.value)
    return MappingProxyType({name: tuple(sorted(held)) for name, held in sorted(values.items())})


def _timeout_seconds(action: reapi.Action) -> float | None:
    """EXE-10: a timeout of zero is refused, as a client that means none leaves the field unset."""
    if not action.HasField("timeout"):
        return None
    seconds = action.timeout.seconds + action.timeout.nanos / 1e9
    if seconds <= 0:
        raise InvalidRequest(f"the action's timeout is {seconds:g} s; leave it unset to have none")
    return seconds


def _check_command(command: reapi.Command) -> None:
    """EXE-27."""
    if not command.arguments:
        raise InvalidRequest("the command has no arguments, so there is nothing to run")
    check_relative_path("working_directory", command.working_directory)
    _check_outputs(command)
    _check_node_properties(command)
    for variable in command.environment_variables:
        if not variable.name or "=" in variable.name or "\0" in variable.name + variable.value:
            raise InvalidRequest(f"{variable.name!r} is no name of an environment variable")


def check_relative_path(field_name: str, path: str) -> None:
    """Raise InvalidRequest unless `path` is relative and without empty or parent segments."""
    if (path and {"", "..", "."} & set(path.split("/"))) or "\0" in path:
        raise InvalidRequest(
            f"{field_name} {path!r} must be a relative path without '.', '..' or a slash too many"
        )


def resolve_output(working_directory: str, path: str) -> str:
    """Where output `path` lies, relative to the input root.

    Raises InvalidRequest for a path that is absolute, ends in a slash or leaves the input root.
    """
    resolved = posixpath.normpath(posixpath.join(working_directory, path))
    leaves = resolved.startswith("/") or resolved.split("/")[0] == ".."
    if leaves or path.startswith("/") or path.endswith("/") or "\0" in path:
        raise InvalidRequest(
            f"output path {path!r} must be relative, without a slash at its end, "
            f"and stay inside of the input root"
        )
    return "" if resolved == "." else resolved


def _check_outputs(command: reapi.Command) -> None:
    files = set(command.output_files)
    for path in (*command.output_paths, *command.output_files, *command.output_directories):
        resolve_output(command.working_directory, path)
        if parent := next((p for p in _parents(path) if p in files), None):
            raise InvalidRequest(f"output file {parent!r} is a parent of output {path!r}")


def _check_node_properties(command: reapi.Command) -> None:
    """EXE-28."""
    if unknown := sorted(set(command.output_node_properties).difference(OUTPUT_NODE_PROPERTIES)):
        raise InvalidRequest(
            f"output_node_properties {', '.join(map(repr, unknown))} are not known; "
            f"known are {', '.join(OUTPUT_NODE_PROPERTIES)}"
        )


def _parents(path: str) -> Iterable[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
