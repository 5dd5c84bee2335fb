"""Which inputs of an action belong to its tool: they stay while others come and go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from stoker.storage.input_tree import InputTree
from stoker.workers.paths import resolve


def tool_files(tree: InputTree, working_directory: str, startup: Sequence[str]) -> frozenset[str]:
    """The paths of the tool's files: those the client marked or, if it marked none, inferred.

    Inferred are the program, its ``.runfiles`` and ``.runfiles_manifest``, and what else the
    start-up arguments name: alone, after ``=``, or in a list with colons.
    """
    marked = frozenset(path for path, file in tree.files.items() if file.is_tool)
    return marked or _named_files(tree, working_directory, startup)


def tools_hash(tree: InputTree, tools: frozenset[str]) -> str:
    """A hash of the tool's layout: paths, contents, executable bits and links to its files.

    It tells two tools apart wherever a client's own key does not (PWK-11).
    """
    hasher = hashlib.sha256()
    for path, file in tree.files.items():
        if path in tools:
            hasher.update(f"{path}\0{file.digest}\0{file.is_executable:d}\n".encode())
    for path, target in tree.symlinks.items():
        if resolve(tree, "", path) in tools:
            hasher.update(f"{path}\0{target}\0link\n".encode())
    return hasher.hexdigest()


def _named_files(tree: InputTree, working_directory: str, startup: Sequence[str]) -> frozenset[str]:
    named = {
        path
        for text in _candidates(startup)
        if (path := resolve(tree, working_directory, text))
        # An argument that names where all is, as "." does, says nothing of the tool.
        and not _contains(path, working_directory)
    }
    if not named:
        return frozenset()
    return frozenset(path for path in tree.files if not named.isdisjoint(_with_parents(path)))


def _contains(folder: str, working_directory: str) -> bool:
    return f"{working_directory}/".startswith(f"{folder}/")


def _candidates(startup: Sequence[str]) -> Iterator[str]:
    yield from startup[:1]
    for suffix in (".runfiles", ".runfiles_manifest"):
        yield startup[0] + suffix
    for argument in startup[1:]:
        for text in (argument, argument.partition("=")[2]):
            yield from text.split(":")


def _with_parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]
