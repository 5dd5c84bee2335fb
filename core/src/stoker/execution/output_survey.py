"""What an action left at the paths that it was asked for. Looks only; reads no file.

These functions block; call them in a thread.
"""

# ruff: noqa: PTH115, PTH116, PTH119, PTH120
# Strings and descriptors: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from stoker.action import resolve_output
from stoker.errors import FailedPrecondition
from stoker.execution.output_files import make_passable, open_folder
from stoker.execution.output_limits import OutputBudget
from stoker.protos import remote_execution_pb2 as reapi


class Node(NamedTuple):
    """A file, a folder or a symbolic link."""

    name: str
    location: str
    """Where it is on this machine."""
    status: os.stat_result
    target: str = ""
    """Of a symbolic link."""


@dataclass(slots=True)
class Folder:
    """The entries of one folder, by name."""

    node: Node
    files: list[Node] = field(default_factory=list)
    symlinks: list[Node] = field(default_factory=list)
    folders: list[Node] = field(default_factory=list)


class Link(NamedTuple):
    """A symbolic link that is an output itself."""

    node: Node
    to_folder: bool
    """Where nobody can say, as it dangles or leads out of the input root: whether it was asked
    for as a directory."""


@dataclass(slots=True)
class Survey:
    """What was found, by the path that was asked for."""

    files: dict[str, Node] = field(default_factory=dict)
    symlinks: dict[str, Link] = field(default_factory=dict)
    folders: dict[str, list[Folder]] = field(default_factory=dict)
    """Each folder before those in it, itself first."""
    skipped: list[str] = field(default_factory=list)
    """Sockets, fifos and devices inside of output directories, which REAPI has no word for,
    relative to the input root."""

    def all_files(self) -> Iterator[Node]:
        """Every regular file. One within two outputs comes twice."""
        yield from self.files.values()
        for folders in self.folders.values():
            for folder in folders:
                yield from folder.files


def survey_outputs(root: str, command: reapi.Command, budget: OutputBudget) -> Survey:
    """Look at every output that `command` names, in the folder `root`, and count it.

    What is absent is left out (OUT-02). Raises FailedPrecondition for what cannot be an output:
    the wrong kind (OUT-03, OUT-04), a special file (OUT-19), a name that is not UTF-8 (OUT-21),
    a path that a symbolic link leads out of the input root, or more than the budget allows
    (OUT-24, OUT-25), which ends the survey then and there.
    """
    # Not the last part: were it a link, everything would lie behind a link out of the root.
    top = os.path.join(os.path.realpath(os.path.dirname(root)), os.path.basename(root))
    surveyor = _Surveyor(top, budget)
    for path, kind in _wanted(command):
        location = _locate(top, command.working_directory, path)
        if location is not None:
            surveyor.look(path, location, kind)
    return surveyor.survey


def _wanted(command: reapi.Command) -> Iterator[tuple[str, str]]:
    """Paths and what each must be: ``file``, ``directory`` or, with output_paths, anything."""
    if command.output_paths:  # OUT-01
        yield from ((path, "") for path in dict.fromkeys(command.output_paths))
        return
    yield from ((path, "file") for path in dict.fromkeys(command.output_files))
    yield from ((path, "directory") for path in dict.fromkeys(command.output_directories))


def _locate(root: str, working_directory: str, path: str) -> str | None:
    """Where output `path` is, with links on the way to it resolved; None if nowhere."""
    resolved = resolve_output(working_directory, path)
    if not resolved:
        return root
    folder, _, name = resolved.rpartition("/")
    _make_passable(root, folder)
    # A sandbox may show the action other folders than the server sees: what lies outside of the
    # input root is not the action's to give.
    parent = os.path.realpath(os.path.join(root, folder))
    if not os.path.lexists(parent):
        return None
    if not _is_within(root, parent):
        raise FailedPrecondition(f"output {path!r} lies behind a link out of the input root")
    return os.path.join(parent, name)


def _make_passable(root: str, folder: str) -> None:
    """Undo what an action did to hide its outputs, or nothing could be said of them (OUT-20).

    What lies behind a symbolic link is left alone, as it may be anybody's.
    """
    location = root
    for name in ("", *folder.split("/")):
        location = os.path.join(location, name) if name else location
        try:
            mode = os.lstat(location).st_mode
            if not stat.S_ISDIR(mode):
                return
            if not mode & stat.S_IXUSR:
                make_passable(location)
        except OSError:
            return


def _is_within(root: str, location: str) -> bool:
    return location == root or location.startswith(root + "/")


class _Surveyor:
    """Looks at outputs in the folder `top`, and counts what it finds."""

    def __init__(self, top: str, budget: OutputBudget) -> None:
        self.survey = Survey()
        self._top = top
        self._budget = budget

    def look(self, path: str, location: str, kind: str) -> None:
        """Note the output `path`, which should be a `kind` and is at `location` if anywhere."""
        try:
            status = os.lstat(location)
        except (FileNotFoundError, NotADirectoryError):
            return
        node = Node(path, location, status)
        if stat.S_ISLNK(status.st_mode):
            self._count(node)
            self.survey.symlinks[path] = _look_at_link(node, self._top, kind)
        elif stat.S_ISDIR(status.st_mode):
            _refuse_unless(kind != "file", f"output file {path!r} is a directory")
            self.survey.folders[path] = self._walk(node)
        elif stat.S_ISREG(status.st_mode):
            _refuse_unless(kind != "directory", f"output directory {path!r} is a file")
            self._count(node, status.st_size)
            self.survey.files[path] = node
        else:
            raise FailedPrecondition(
                f"output {path!r} is neither file, directory nor symbolic link"
            )

    def _walk(self, node: Node) -> list[Folder]:
        """The folder `node` and all below it. Follows no symbolic link (OUT-08)."""
        folders = []
        unvisited = [node]
        while unvisited:
            folder = self._list(unvisited.pop())
            folders.append(folder)
            unvisited += folder.folders
        return folders

    def _list(self, node: Node) -> Folder:
        folder = Folder(node)
        self._count(node)
        with open_folder(node.location) as descriptor, os.scandir(descriptor) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                self._note(folder, entry, descriptor)
        return folder

    def _note(self, folder: Folder, entry: os.DirEntry[str], descriptor: int) -> None:
        name = _utf8(entry.name, folder.node.location)
        location = f"{folder.node.location}/{name}"
        status = entry.stat(follow_symlinks=False)
        found = Node(name, location, status)
        if stat.S_ISREG(status.st_mode):
            self._count(found, status.st_size)
            folder.files.append(found)
        elif stat.S_ISDIR(status.st_mode):
            folder.folders.append(found)
        elif stat.S_ISLNK(status.st_mode):
            self._count(found)
            target = _utf8(os.readlink(name, dir_fd=descriptor), location)
            folder.symlinks.append(found._replace(target=target))
        else:
            self.survey.skipped.append(self._shown(location))

    def _count(self, node: Node, size_bytes: int = 0) -> None:
        self._budget.count(f"output {self._shown(node.location)!r}", size_bytes)

    def _shown(self, location: str) -> str:
        """`location` relative to the input root."""
        return location[len(self._top) + 1 :]


def _refuse_unless(condition: bool, message: str) -> None:
    if not condition:
        raise FailedPrecondition(message)


def _look_at_link(node: Node, root: str, kind: str) -> Link:
    leads_to_folder = _leads_to_folder(node, root)
    _refuse_unless(
        not (kind == "file" and leads_to_folder is True),
        f"output file {node.name!r} is a symbolic link to a directory",
    )
    _refuse_unless(
        not (kind == "directory" and leads_to_folder is False),
        f"output directory {node.name!r} is a symbolic link to a file",
    )
    to_folder = kind == "directory" if leads_to_folder is None else leads_to_folder
    target = _utf8(os.readlink(node.location), node.location)
    return Link(node._replace(target=target), to_folder)


def _leads_to_folder(node: Node, root: str) -> bool | None:
    end = os.path.realpath(node.location)
    if _is_within(root, end):
        with suppress(OSError):
            return stat.S_ISDIR(os.stat(end).st_mode)
    return None


def _utf8(text: str, location: str) -> str:
    """`text`, unless it holds bytes that no string of a message can (OUT-21)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(text)
        raise FailedPrecondition(f"{name!r}, in output {location!r}, is not UTF-8") from error
    return text
