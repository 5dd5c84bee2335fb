"""Whether an action can be given to a persistent worker, to which, and as what request."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from stoker.action import LoadedAction, Platform
from stoker.digest import Digest
from stoker.errors import InputsMissing, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.worker_protocol_pb2 import Input, WorkRequest
from stoker.spi import BlobStore
from stoker.storage.input_tree import InputTree
from stoker.workers.arguments import (
    MAX_FLAG_FILE_BYTES,
    expand_arguments,
    flag_file_path,
    split_arguments,
)
from stoker.workers.key import WorkerKey
from stoker.workers.paths import resolve, seen_from
from stoker.workers.tools import tool_files, tools_hash

PERSISTENT_WORKER_FLAG = "--persistent_worker"
DEFAULT_PROTOCOL = "proto"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTerms:
    """How workers are kept that serve a plan. No part of the key: they follow from it."""

    max_workers_per_key: int = 4
    max_workers_per_mnemonic: int | None = None
    max_requests: int | None = None
    max_requests_in_flight: int = 1
    """1 unless the worker is a multiplex one."""
    high_priority: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """How an action would be given to a worker."""

    key: WorkerKey
    protocol: str
    startup: tuple[str, ...]
    """What starts the worker, without the flag that makes it one."""
    flag_files: tuple[str, ...]
    """The arguments of the request, before they are expanded."""
    tools: frozenset[str]
    """Paths of the tool's files, relative to the input root. Never a flag file."""
    name: str = ""
    """What its workers are counted and named by: the mnemonic, or what stands for it."""
    terms: WorkerTerms = WorkerTerms()
    cancellable: bool = False
    """Whether its workers heed cancel requests."""
    verbosity: int = 0


def plan_worker(
    action: LoadedAction, tree: InputTree, protocols: Collection[str]
) -> WorkerPlan | str | None:
    """The plan for `action`; None if it does not ask for a worker; or why it cannot have one.

    An action that cannot have one is to be run as any other, which is always right. `protocols`
    are those on offer.
    """
    if not _asks_for_worker(action.platform):
        return None
    protocol = _protocol(action.platform)
    if obstacle := _platform_obstacle(action.platform, protocol, protocols):
        return obstacle
    command_line = split_arguments(action.command.arguments)
    if command_line is None:
        return "no argument names a flag file (@file or --flagfile=file) to send to a worker"
    if not command_line.startup:
        return "no argument is left to start a worker with, as all name flag files"
    working_directory = action.command.working_directory
    flag_files = _flag_files(tree, working_directory, command_line.flag_files)
    if absent := [path for path in flag_files if path not in tree.files]:
        return f"flag file {absent[0]!r} is not among the inputs"
    tools = tool_files(tree, working_directory, command_line.startup) - flag_files
    return WorkerPlan(
        key=_key(action, tree, protocol, command_line.startup, tools),
        protocol=protocol,
        startup=command_line.startup,
        flag_files=command_line.flag_files,
        tools=tools,
    )


async def build_request(
    plan: WorkerPlan, action: LoadedAction, tree: InputTree, blobs: BlobStore, request_id: int = 0
) -> WorkRequest:
    """The request that gives `action` to a worker, with every file of `tree` as an input (PWK-07).

    Paths are as the worker sees them from its working directory; a link to a file is listed with
    the digest of that file. Raises InvalidRequest for flag files that cannot be expanded,
    InputsMissing for one that is not in `blobs`, and what `blobs` raises.
    """
    working_directory = action.command.working_directory
    request = WorkRequest(request_id=request_id)

    async def read(path: str) -> bytes:
        return await _read_flag_file(tree, working_directory, path, blobs)

    request.arguments.extend(await expand_arguments(plan.flag_files, read))
    request.inputs.extend(_inputs(tree, working_directory))
    return request


def _asks_for_worker(platform: Platform) -> bool:
    """PWK-01, PWK-02: Bazel sends the key, others copy its execution requirement."""
    return any(platform.get("persistentWorkerKey", ())) or "1" in platform.get(
        "supports-workers", ()
    )


def _protocol(platform: Platform) -> str:
    for name in ("persistentWorkerProtocol", "requires-worker-protocol"):
        if value := _value(platform, name):
            return value
    return DEFAULT_PROTOCOL


def _platform_obstacle(platform: Platform, protocol: str, protocols: Collection[str]) -> str | None:
    if protocol not in protocols:
        offered = ", ".join(sorted(protocols)) or "none"
        return f"worker protocol {protocol!r} is not offered; offered are: {offered}"
    # PWK-03: without it the client expects a container of its own for each action.
    if any(platform.get("container-image", ())) and _value(platform, "dockerReuse") != "True":
        return "container-image is set without dockerReuse=True, so its container may not be kept"
    return None


def _value(platform: Platform, name: str) -> str:
    """The value of a property that has one. More than one is as good as an unknown one."""
    return ", ".join(platform.get(name, ()))


def _flag_files(
    tree: InputTree, working_directory: str, arguments: Iterable[str]
) -> frozenset[str]:
    """Where the files lie that are to be expanded; as written where that is outside of the tree."""
    paths = filter(None, map(flag_file_path, arguments))
    return frozenset(resolve(tree, working_directory, path) or path for path in paths)


def _key(
    action: LoadedAction,
    tree: InputTree,
    protocol: str,
    startup: Sequence[str],
    tools: frozenset[str],
) -> WorkerKey:
    return WorkerKey(
        namespace=action.namespace,
        silo=_value(action.platform, "cache-silo-key"),
        platform=tuple(sorted(action.platform.items())),
        argv=(*startup, PERSISTENT_WORKER_FLAG),
        environment=_environment(action.command),
        working_directory=action.command.working_directory,
        protocol=protocol,
        tools=tools_hash(tree, tools),
    )


def _environment(command: reapi.Command) -> tuple[tuple[str, str], ...]:
    variables = {variable.name: variable.value for variable in command.environment_variables}
    return tuple(sorted(variables.items()))


async def _read_flag_file(
    tree: InputTree, working_directory: str, path: str, blobs: BlobStore
) -> bytes:
    file = tree.files.get(resolve(tree, working_directory, path) or "")
    if file is None:
        raise InvalidRequest(f"flag file {path!r} is not among the inputs")
    if file.digest.size_bytes > MAX_FLAG_FILE_BYTES:
        raise InvalidRequest(f"flag file {path!r} is larger than {MAX_FLAG_FILE_BYTES} bytes")
    return await _read_blob(file.digest, blobs)


async def _read_blob(digest: Digest, blobs: BlobStore) -> bytes:
    if digest == digest.function.empty:
        return b""
    found = await blobs.read_many([digest])
    if digest not in found:
        raise InputsMissing([digest])
    return found[digest]


def _inputs(tree: InputTree, working_directory: str) -> Iterable[Input]:
    """Bazel sends the hexadecimal text of the hash, and tools compare no more than that."""
    for path, file in tree.files.items():
        yield Input(path=seen_from(working_directory, path), digest=file.digest.hash.encode())
    for path in tree.symlinks:
        if target := tree.files.get(resolve(tree, "", path) or ""):
            yield Input(path=seen_from(working_directory, path), digest=target.digest.hash.encode())
