"""Finding out which file of an input tree a path means, without a disk."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from stoker.storage.input_tree import InputTree

# As many as Linux follows before it gives up.
_MAX_LINKS = 40


def resolve(tree: InputTree, working_directory: str, path: str) -> str | None:
    """Where `path`, seen from `working_directory`, lies in `tree`, relative to its root.

    Symbolic links of the tree are followed. None where the path or a link leaves the tree, or
    links go in a circle. What is returned need not exist; the root itself is the empty path.
    """
    links_left = _MAX_LINKS
    unresolved = _segments(working_directory + "/" + path)
    if path.startswith("/"):
        return None
    resolved: list[str] = []
    while unresolved:
        segment = unresolved.pop()
        if segment == "..":
            if not resolved:
                return None
            resolved.pop()
            continue
        target = _target(tree.symlinks, resolved, segment)
        if target is None:
            resolved.append(segment)
            continue
        links_left -= 1
        if target.startswith("/") or not links_left:
            return None
        unresolved += _segments(target)
    return "/".join(resolved)


def _target(symlinks: Mapping[str, str], parent: list[str], segment: str) -> str | None:
    return symlinks.get("/".join([*parent, segment])) if symlinks else None


def _segments(path: str) -> list[str]:
    """The segments of `path` that lead somewhere, the last one first."""
    return [segment for segment in reversed(path.split("/")) if segment not in ("", ".")]


def seen_from(working_directory: str, path: str) -> str:
    """`path`, which is relative to the root, as a process in `working_directory` names it."""
    return posixpath.relpath(path, working_directory) if working_directory else path
