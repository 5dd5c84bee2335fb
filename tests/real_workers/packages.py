"""Packages of npm as inputs of an action, marked as its tool's."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from ..end_to_end.actions import Tree


def tool_tree(node_modules: Path, patterns: Iterable[str]) -> Tree:
    """The files below `node_modules` whose paths fit one of the shell patterns."""
    wanted = list(patterns)
    paths = (path.relative_to(node_modules) for path in node_modules.rglob("*") if path.is_file())
    names = [
        name
        for name in sorted(map(str, paths))
        if any(fnmatchcase(name, pattern) for pattern in wanted)
    ]
    files = {f"node_modules/{name}": (node_modules / name).read_bytes() for name in names}
    return Tree(files, tools=set(files))


def with_files(tool: Tree, **files: bytes) -> Tree:
    """`tool`, and sources beside it by their paths."""
    return Tree({**tool.files, **files}, tools=tool.tools)
