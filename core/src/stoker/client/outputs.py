"""Bringing the outputs of an action back into a folder, and nowhere else."""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from stoker.action import resolve_output
from stoker.client.blobs import Blobs
from stoker.digest import Digest, DigestFunction
from stoker.errors import FailedPrecondition, InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi

_NO_NAMES = frozenset({"", ".", ".."})


class Downloaded(NamedTuple):
    """What was written."""

    files: int
    size_bytes: int


@dataclass(slots=True)
class _Outputs:
    """Everything that is to be made, by its path relative to the input root."""

    folders: list[str] = field(default_factory=list)
    files: dict[str, reapi.OutputFile] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


async def download_outputs(
    blobs: Blobs,
    result: reapi.ActionResult,
    folder: Path,
    function: DigestFunction,
    *,
    working_directory: str = "",
) -> Downloaded:
    """Write the outputs of `result` below `folder`, the action's input root.

    Files and links replace what bears their name; other files in an output directory stay. Links
    are made as they are, wherever they lead, but nothing is ever written through one. Raises
    InvalidRequest for an output that would lie outside of `folder`, FailedPrecondition for one
    whose way there is barred by a file or a link, or its place taken by a folder; RpcError,
    DataLoss, and OSError. After an exception, cancellation included, some outputs are there, each
    of them whole.
    """
    outputs = await _collect(blobs, result, function, working_directory)
    for path in outputs.folders:
        _make_folder(folder, path)
    for path, file in outputs.files.items():
        _make_folder(folder, posixpath.dirname(path))
        digest = function.parse(file.digest)
        _check_place(folder / path)
        await blobs.download_file(digest, folder / path, executable=file.is_executable)
    # Links last, so that no file can follow one that came with the same result.
    for path, target in outputs.links.items():
        _make_folder(folder, posixpath.dirname(path))
        _check_place(folder / path)
        _make_link(folder / path, target)
    sizes = [file.digest.size_bytes for file in outputs.files.values()]
    return Downloaded(len(sizes), sum(sizes))


async def _collect(
    blobs: Blobs, result: reapi.ActionResult, function: DigestFunction, working_directory: str
) -> _Outputs:
    outputs = _Outputs()
    for file in result.output_files:
        outputs.files[_output(working_directory, file.path)] = file
    for link in (
        *result.output_file_symlinks,
        *result.output_directory_symlinks,
        *result.output_symlinks,
    ):
        outputs.links[_output(working_directory, link.path)] = link.target
    for directory in result.output_directories:
        path = resolve_output(working_directory, directory.path)
        tree = await _read_tree(blobs, directory, function)
        _add_tree(outputs, path, tree, function)
    return outputs


def _output(working_directory: str, path: str) -> str:
    resolved = resolve_output(working_directory, path)
    if not resolved:
        raise InvalidRequest(f"output {path!r} is the input root itself, which is a folder")
    return resolved


async def _read_tree(
    blobs: Blobs, directory: reapi.OutputDirectory, function: DigestFunction
) -> reapi.Tree:
    digest = function.parse(directory.tree_digest)
    data = await blobs.read_blob(digest)
    try:
        return reapi.Tree.FromString(data)
    except DecodeError as error:
        message = f"blob {digest} of output {directory.path!r} is not a Tree message"
        raise InvalidRequest(message) from error


def _add_tree(outputs: _Outputs, path: str, tree: reapi.Tree, function: DigestFunction) -> None:
    children = {_digest_of(child, function): child for child in tree.children}
    unvisited = [(path, tree.root)]
    while unvisited:
        path, directory = unvisited.pop()
        outputs.folders.append(path)
        _check_names(path, directory)
        for file in directory.files:
            outputs.files[posixpath.join(path, file.name)] = reapi.OutputFile(
                digest=file.digest, is_executable=file.is_executable
            )
        for link in directory.symlinks:
            outputs.links[posixpath.join(path, link.name)] = link.target
        for node in directory.directories:
            below = posixpath.join(path, node.name)
            digest = function.parse(node.digest)
            if digest not in children:
                raise InvalidRequest(f"the Tree of an output lacks directory {below!r}, {digest}")
            unvisited.append((below, children[digest]))


def _digest_of(directory: reapi.Directory, function: DigestFunction) -> Digest:
    return function.digest(directory.SerializeToString(deterministic=True))


def _check_names(path: str, directory: reapi.Directory) -> None:
    names = list(_names(directory))
    for name in names:
        if name in _NO_NAMES or "/" in name or "\0" in name:
            raise InvalidRequest(f"output directory {path!r} holds an entry named {name!r}")
    if len(set(names)) != len(names):
        raise InvalidRequest(f"output directory {path!r} holds two entries of one name")


def _names(directory: reapi.Directory) -> Iterator[str]:
    yield from (file.name for file in directory.files)
    yield from (node.name for node in directory.directories)
    yield from (link.name for link in directory.symlinks)


def _make_folder(folder: Path, path: str) -> None:
    """Make the folder `path` below `folder` without ever following a link."""
    for name in path.split("/") if path else ():
        folder /= name
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise FailedPrecondition(f"output {path!r} cannot be written: {folder} is in its way")
        folder.mkdir(exist_ok=True)


def _check_place(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        raise FailedPrecondition(f"output {path} cannot be written: there is a folder in its place")


def _make_link(path: Path, target: str) -> None:
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    part.symlink_to(target)
    try:
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
