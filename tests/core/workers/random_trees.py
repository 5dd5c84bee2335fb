"""Random input trees, in which links lead to and fro, and what to compare them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from stoker.digest import SHA256, Digest
from stoker.storage.input_tree import FileEntry, InputDirectory, InputTree


def end_of(tree: InputTree, path: str) -> str | None:
    """Where links lead from `path`, a segment at a time, by nothing but paths."""
    ahead, behind, links = path.split("/")[::-1], list[str](), 0
    while ahead:
        segment = ahead.pop()
        if segment == "..":
            if not behind:
                return None
            behind.pop()
        elif segment not in ("", "."):
            target = tree.symlinks.get("/".join([*behind, segment]))
            if target is None:
                behind.append(segment)
                continue
            links += 1
            if target.startswith("/") or links == 40:
                return None
            ahead += target.split("/")[::-1]
    return "/".join(behind)


NAMES = st.sampled_from("abc")
FILES = st.builds(
    lambda number, is_tool: FileEntry(SHA256.digest(b"%d" % number), is_tool=is_tool),
    st.integers(0, 3),
    st.booleans(),
)
TARGETS = st.one_of(
    st.lists(st.sampled_from(["a", "b", "c", "..", "..", "."]), min_size=1, max_size=5).map(
        "/".join
    ),
    st.just("/a"),
)
FOLDERS = st.recursive(
    st.dictionaries(NAMES, FILES | TARGETS, max_size=3),
    lambda below: st.dictionaries(NAMES, FILES | TARGETS | below, min_size=1, max_size=3),
    max_leaves=12,
)


def made(folder: Mapping[str, Any], known: dict[Digest, InputDirectory]) -> InputDirectory:
    """The directory of `folder`. Equal ones are one object, as they are to an executor."""
    files = {n: e for n, e in folder.items() if isinstance(e, FileEntry)}
    links = {n: e for n, e in folder.items() if isinstance(e, str)}
    below = {n: made(e, known) for n, e in folder.items() if isinstance(e, dict)}
    digests = sorted((name, inner.digest.hash) for name, inner in below.items())
    told = (sorted(files.items()), sorted(links.items()), digests)
    digest = SHA256.digest(repr(told).encode())
    return known.setdefault(digest, InputDirectory(digest, files, below, links))
