"""Which inputs of an action belong to its tool.

They are told as an input tree of their own: what of the action's tree is the tool's, at the same
places. The digest of its root is a Merkle hash of the tool. Parts are kept with the directories
that they are made of, so that an unchanged directory costs a look-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Union

from stoker.digest import SHA256
from stoker.storage.input_tree import Entry, FileEntry, InputDirectory, InputTree
from stoker.workers.links import Link, links_of
from stoker.workers.paths import Place, find, walk
from stoker.workers.rules import matches_any

ToolsBy = Literal["marked", "inferred", "patterns"]

_MARKED = "marked tools"
_MATCHING = "matching tools"

# As for the inputs of requests: of a directory that occurs at many places.
_KEPT_MATCHES = 8

_Additions = dict[str, Union["_Additions", Entry]]


class Tools(NamedTuple):
    """The tool of an action."""

    tree: InputTree
    by: ToolsBy
    """``marked`` by the client; ``inferred`` from the command line where it marked none; or that
    and from the ``patterns`` of a rule."""


def find_tools(
    tree: InputTree,
    working_directory: str,
    startup: Sequence[str],
    *,
    patterns: tuple[str, ...] = (),
    never: Iterable[str] = (),
) -> Tools:
    """The tool that `startup` starts in `tree`.

    That is what the client marked, with all symbolic links that lead there. If it marked nothing,
    it is the program, its ``.runfiles`` and ``.runfiles_manifest``, and what else the start-up
    arguments name: alone, after ``=``, or in a list with colons; with the links on the way, and
    what links in those folders lead to. Beside these it is what matches `patterns` then. Paths in
    `never` do not belong to it in any case.
    """
    by: ToolsBy = "patterns" if patterns else "inferred"
    root = _marked(tree.root)
    if root is not None:
        by = "marked"
    else:
        base = _matching(tree.root, "", patterns) if patterns else None
        root = _graft(base, _named(tree, working_directory, startup))
    for path in never:
        root = _without(root, path.split("/"))
    return Tools(InputTree(root), by)


# --- marked by the client


def _marked(directory: InputDirectory) -> InputDirectory | None:
    if _MARKED not in directory.derived:
        directory.derived[_MARKED] = _look_for_marks(directory)
    marked: InputDirectory | None = directory.derived[_MARKED]
    return marked


def _look_for_marks(directory: InputDirectory) -> InputDirectory | None:
    files = {name: file for name, file in directory.files.items() if file.is_tool}
    directories = {}
    for name, below in directory.directories.items():
        if (marked := _marked(below)) is not None:
            directories[name] = marked
    if not files and not directories:
        return None
    tools = _directory(files, directories, {})
    leading_there = [link for link in links_of(directory).settled if _holds(tools, link.target)]
    return _graft(tools, _additions((link.path, link.text) for link in leading_there))


def _holds(tools: InputDirectory, path: str) -> bool:
    place = walk(tools, path)
    if not isinstance(place, Place) or place.entry is None:
        return False
    return isinstance(place.entry, FileEntry) or place.entry.file_count > 0


# --- matching an operator's patterns


def _matching(
    directory: InputDirectory, prefix: str, patterns: tuple[str, ...]
) -> InputDirectory | None:
    kept = directory.derived.setdefault(_MATCHING, {})
    if (prefix, patterns) not in kept:
        found = _look_for_matches(directory, prefix, patterns)
        if len(kept) >= _KEPT_MATCHES:
            del kept[next(iter(kept))]
        kept[prefix, patterns] = found
    matching: InputDirectory | None = kept[prefix, patterns]
    return matching


def _look_for_matches(
    directory: InputDirectory, prefix: str, patterns: tuple[str, ...]
) -> InputDirectory | None:
    files = {n: f for n, f in directory.files.items() if matches_any(patterns, prefix + n)}
    directories = {}
    for name, below in directory.directories.items():
        if (matching := _matching(below, f"{prefix}{name}/", patterns)) is not None:
            directories[name] = matching
    links = [k for k in links_of(directory).settled if matches_any(patterns, prefix + k.path)]
    if not files and not directories and not links:
        return None
    return _graft(_directory(files, directories, {}), _additions(_with_targets(links)))


def _with_targets(links: Iterable[Link]) -> Iterator[tuple[str, Entry]]:
    for link in links:
        yield link.path, link.text
        if link.target:
            yield link.target, link.entry


# --- named by the command line


def _named(tree: InputTree, working_directory: str, startup: Sequence[str]) -> _Additions:
    waiting = [
        place
        for text in _candidates(startup)
        if (place := find(tree, working_directory, text)) is not None
    ]
    seen: set[str] = set()
    found: list[tuple[str, Entry]] = []
    while waiting:
        place = waiting.pop()
        # What names where all is, as "." does, says nothing of the tool.
        if place.entry is None or _contains(place.path, working_directory):
            continue
        found += place.links
        if place.path not in seen:
            seen.add(place.path)
            found.append((place.path, place.entry))
            waiting += _led_to(tree.root, place.path, place.entry)
    return _additions(found)


def _led_to(root: InputDirectory, path: str, entry: InputDirectory | FileEntry) -> Iterator[Place]:
    """Where those links in a folder of the tool lead that leave the folder."""
    if isinstance(entry, InputDirectory):
        for link in links_of(entry).open:
            place = walk(root, f"{path}/{link}")
            if isinstance(place, Place):
                yield place


def _contains(folder: str, working_directory: str) -> bool:
    return not folder or f"{working_directory}/".startswith(f"{folder}/")


def _candidates(startup: Sequence[str]) -> Iterator[str]:
    yield from startup[:1]
    for suffix in (".runfiles", ".runfiles_manifest"):
        yield startup[0] + suffix
    for argument in startup[1:]:
        for text in (argument, argument.partition("=")[2]):
            yield from text.split(":")


# --- trees that are parts of trees


def _additions(entries: Iterable[tuple[str, Entry]]) -> _Additions:
    """`entries`, which are of one tree, by the segments of their paths."""
    top: _Additions = {}
    for path, entry in entries:
        _add(top, path.split("/"), entry)
    return top


def _add(into: _Additions, names: list[str], entry: Entry) -> None:
    for name in names[:-1]:
        below = into.setdefault(name, {})
        if not isinstance(below, dict):
            return  # that directory is there as a whole
        into = below
    into[names[-1]] = entry


def _graft(base: InputDirectory | None, additions: _Additions) -> InputDirectory:
    """`base` and `additions`, both parts of one tree."""
    if base is not None and not additions:
        return base
    files = {} if base is None else dict(base.files)
    directories = {} if base is None else dict(base.directories)
    symlinks = {} if base is None else dict(base.symlinks)
    for name, entry in additions.items():
        if isinstance(entry, FileEntry):
            files[name] = entry
        elif isinstance(entry, str):
            symlinks[name] = entry
        elif isinstance(entry, InputDirectory):
            directories[name] = entry
        else:
            directories[name] = _graft(directories.get(name), entry)
    return _directory(files, directories, symlinks)


def _without(directory: InputDirectory, names: list[str]) -> InputDirectory:
    name, *rest = names
    if not rest and name in directory.files:
        files = {other: file for other, file in directory.files.items() if other != name}
        return _directory(files, directory.directories, directory.symlinks)
    if rest and name in directory.directories:
        below = _without(directory.directories[name], rest)
        if below is not directory.directories[name]:
            directories = {**directory.directories, name: below}
            return _directory(directory.files, directories, directory.symlinks)
    return directory


def _directory(
    files: Mapping[str, FileEntry],
    directories: Mapping[str, InputDirectory],
    symlinks: Mapping[str, str],
) -> InputDirectory:
    """A directory that is no Directory message of any client, and so named by ourselves."""
    content = (
        [(name, *_told(file)) for name, file in sorted(files.items())],
        [(name, *_identity(below)) for name, below in sorted(directories.items())],
        sorted(symlinks.items()),
    )
    return InputDirectory(SHA256.digest(repr(content).encode()), files, directories, symlinks)


def _told(file: FileEntry) -> tuple[object, ...]:
    digest, *rest = file
    return (digest.function.name, *digest[:2], *rest)


def _identity(directory: InputDirectory) -> tuple[object, ...]:
    digest = directory.digest
    return digest.function.name, *digest[:2]
