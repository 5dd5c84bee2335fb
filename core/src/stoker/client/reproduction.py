"""An action brought to this machine, and the command line that repeats it here."""

from __future__ import annotations

import os
import posixpath
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import trio

from stoker.action import load_action, parse_action, parse_command, resolve_output
from stoker.client.blobs import Blobs
from stoker.client.outputs import Downloaded
from stoker.digest import Digest
from stoker.errors import FailedPrecondition, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.storage.tree import check_directory, parse_directory, parse_in, read_properties

_DOWNLOADS_AT_ONCE = 16
MAX_ENTRIES = 1_000_000
"""How many files, links and folders are written at the most: a few small blobs can name a
directory again and again, and so a tree that no disk holds."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What was written, below a folder: ``root`` is the input root, ``tmp`` the temporary one."""

    folder: Path
    command: reapi.Command
    platform: reapi.Platform
    downloaded: Downloaded


@dataclass(slots=True)
class _Plan:
    folders: list[str] = field(default_factory=list)
    files: dict[str, tuple[Digest, reapi.FileNode]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


async def download_action(blobs: Blobs, action_digest: Digest, folder: Path) -> Reproduction:
    """Write the inputs of an action below `folder`, which must be absent or empty.

    Raises FailedPrecondition where it is neither, RpcError NOT_FOUND for what the server holds no
    longer, InvalidRequest for what is no action, DataLoss and OSError. After an exception,
    cancellation included, some of it is there.
    """
    _check_empty(folder)
    function = action_digest.function
    action = parse_action(action_digest, await blobs.read_blob(action_digest))
    command_digest = function.parse(action.command_digest)
    command = parse_command(command_digest, await blobs.read_blob(command_digest))
    # No server may have looked at it: what it names must lie within the folder here, too.
    metadata = reapi.RequestMetadata()
    load_action(action_digest, action, command, namespace="", metadata=metadata)
    plan = await _plan(blobs, function.parse(action.input_root_digest))
    root, temporary = folder / "root", folder / "tmp"
    for path in (root, temporary):
        path.mkdir(parents=True)
    for path_below in (*plan.folders, *_own_folders(command)):
        # What lies behind a link is not ours to make: it may be anywhere on this machine.
        if not any(map(plan.links.__contains__, _ways_to(path_below))):
            (root / path_below).mkdir(parents=True, exist_ok=True)
    await _download(blobs, plan, root)
    for link, target in plan.links.items():
        (root / link).symlink_to(target)
    size_bytes = sum(digest.size_bytes for digest, _ in plan.files.values())
    platform = action.platform if action.HasField("platform") else command.platform
    return Reproduction(folder, command, platform, Downloaded(len(plan.files), size_bytes))


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FailedPrecondition(f"{folder} is not an empty folder")


async def _plan(blobs: Blobs, root: Digest) -> _Plan:
    plan = _Plan()
    known: dict[Digest, reapi.Directory] = {}
    waiting = [("", root)]
    while waiting:
        path, digest = waiting.pop()
        if digest not in known:
            known[digest] = parse_directory(digest, await blobs.read_blob(digest))
            check_directory(digest, known[digest], set(_names(known[digest])))
        directory = known[digest]
        if len(plan.folders) + len(plan.files) + len(plan.links) > MAX_ENTRIES:
            raise FailedPrecondition(f"the input root has more than {MAX_ENTRIES} entries")
        for node in directory.directories:
            below = posixpath.join(path, node.name)
            plan.folders.append(below)
            waiting.append((below, parse_in(digest, node)))
        for file in directory.files:
            plan.files[posixpath.join(path, file.name)] = (parse_in(digest, file), file)
        for link in directory.symlinks:
            plan.links[posixpath.join(path, link.name)] = link.target
    return plan


def _names(directory: reapi.Directory) -> Iterator[str]:
    for nodes in (directory.directories, directory.files, directory.symlinks):
        for node in nodes:
            yield node.name


def _own_folders(command: reapi.Command) -> Iterator[str]:
    """Where it works, and where its outputs go (RUN-06)."""
    directory = command.working_directory
    yield directory
    paths = command.output_paths or (*command.output_files, *command.output_directories)
    for path in paths:
        yield posixpath.dirname(resolve_output(directory, path))


def _ways_to(path: str) -> Iterator[str]:
    """`path` and every folder that it lies in."""
    while path:
        yield path
        path = posixpath.dirname(path)


async def _download(blobs: Blobs, plan: _Plan, root: Path) -> None:
    files = iter(plan.files.items())

    async def fetch() -> None:
        for path, (digest, node) in files:
            await blobs.download_file(digest, root / path, executable=node.is_executable)
            _set_properties(root / path, digest, node)

    async with trio.open_nursery() as nursery:
        for _ in range(_DOWNLOADS_AT_ONCE):
            nursery.start_soon(fetch)


def _set_properties(path: Path, digest: Digest, node: reapi.FileNode) -> None:
    _, mtime_ns, unix_mode = read_properties(digest, node)
    if unix_mode is not None:
        path.chmod(unix_mode & 0o7777)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))


def shell_command(
    argv: Iterable[str], environment: Mapping[str, str], working_directory: Path
) -> str:
    """A line for a shell that runs `argv` in this environment and no other.

    Raises InvalidRequest for what no command line can hold.
    """
    words = list(argv)
    if any("\0" in word for word in words):
        raise InvalidRequest("an argument holds a zero byte, so that no shell can pass it on")
    variables = [f"{name}={value}" for name, value in sorted(environment.items())]
    if "=" in words[0]:
        # env would take it for one more variable.
        words = ["sh", "-c", 'exec "$0" "$@"', *words]
    line = ["env", "-i", *(["--"] if any(v.startswith("-") for v in variables) else [])]
    told = " ".join(map(_quoted, (*line, *variables, *words)))
    return f"cd {_quoted(str(working_directory))} && {told}"


def _quoted(word: str) -> str:
    """`word` for any POSIX shell, by characters that do nothing to a terminal that shows them."""
    parts = []
    for is_plain, run in groupby(word, lambda c: c.isprintable() or c in "\n\t"):
        text = "".join(run)
        codes = "".join(f"\\{byte:03o}" for byte in text.encode(errors="surrogateescape"))
        parts.append(shlex.quote(text) if is_plain else f"\"$(printf '{codes}')\"")
    return "".join(parts) or "''"
