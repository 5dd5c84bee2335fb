"""Input trees by path, without a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stoker.digest import SHA256
from stoker.storage.input_tree import FileEntry, InputDirectory, InputFile, InputTree


def tree_of(files: Mapping[str, InputFile], symlinks: Mapping[str, str] | None = None) -> InputTree:
    """The tree that holds just these."""
    top: dict[str, Any] = {}
    for path, file in files.items():
        _put(top, path, FileEntry(*file[1:]))
    for path, target in (symlinks or {}).items():
        _put(top, path, target)
    return InputTree(_directory(top))


def _put(top: dict[str, Any], path: str, entry: FileEntry | str) -> None:
    *parents, name = path.split("/")
    for parent in parents:
        top = top.setdefault(parent, {})
    top[name] = entry


def _directory(entries: dict[str, Any]) -> InputDirectory:
    files = {name: entry for name, entry in entries.items() if isinstance(entry, FileEntry)}
    links = {name: entry for name, entry in entries.items() if isinstance(entry, str)}
    below = {name: _directory(entry) for name, entry in entries.items() if type(entry) is dict}
    told = (sorted(files.items()), sorted(links.items()), [(n, d.digest) for n, d in below.items()])
    return InputDirectory(SHA256.digest(repr(told).encode()), files, below, links)
