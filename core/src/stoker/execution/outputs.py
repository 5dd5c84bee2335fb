"""From the outputs in a folder to the fields of an ActionResult that name them.

Source: build.bazel.remote.execution.v2, messages Command, ActionResult, OutputFile,
OutputDirectory, OutputSymlink, Tree and Directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from stoker.digest import Digest
from stoker.errors import FailedPrecondition
from stoker.execution.disk import on_disk
from stoker.execution.output_limits import OutputBudget
from stoker.execution.output_survey import Folder, Node, Survey, survey_outputs
from stoker.execution.uploads import LocalFile, Uploads
from stoker.protos import remote_execution_pb2 as reapi


class Collected(NamedTuple):
    """The outputs of an action."""

    result: reapi.ActionResult
    """With its output fields set, and no others."""
    skipped: tuple[str, ...]
    """Special files inside of output directories, relative to the input root (OUT-19)."""


async def collect_outputs(
    root: Path, command: reapi.Command, uploads: Uploads, budget: OutputBudget
) -> Collected:
    """Hash the outputs that `command` names below `root`, count them, and send what is large.

    The rest is in `uploads`, to be published. Only permissions that forbid reading are changed,
    and, where files are given away, those that let others write. Raises FailedPrecondition for
    what cannot be an output or is too much, StorageFull or Unavailable.
    """
    if not (command.output_paths or command.output_files or command.output_directories):
        return Collected(reapi.ActionResult(), ())
    look = partial(survey_outputs, os.fspath(root), command, budget)
    survey = await on_disk("looking for outputs:", look, FailedPrecondition)
    files = {node.location: node.status.st_size for node in survey.all_files()}
    digests = await uploads.add_files(LocalFile(*item) for item in files.items())
    description = _Description(command, digests, uploads, budget)
    if survey.folders:  # which may be large, and take a while to write down
        result = await trio.to_thread.run_sync(description.result, survey)
    else:
        result = description.result(survey)
    return Collected(result, tuple(survey.skipped))


class _Description:
    """Writes messages about outputs whose files have been hashed."""

    def __init__(
        self,
        command: reapi.Command,
        digests: Mapping[str, Digest],
        uploads: Uploads,
        budget: OutputBudget,
    ) -> None:
        self._digests = digests
        self._uploads = uploads
        self._budget = budget
        self._asked = frozenset(command.output_node_properties)
        self._has_output_paths = bool(command.output_paths)
        format_ = command.output_directory_format
        kinds = reapi.Command.OutputDirectoryFormat
        self._directories = format_ in (kinds.DIRECTORY_ONLY, kinds.TREE_AND_DIRECTORY)
        # Whatever is not known means TREE_ONLY (EXE-30).
        self._trees = format_ != kinds.DIRECTORY_ONLY

    def result(self, survey: Survey) -> reapi.ActionResult:
        """The output fields for all that `survey` found."""
        result = reapi.ActionResult(
            output_files=[self._file(path, node) for path, node in survey.files.items()],
            output_directories=[self._folder(*found) for found in survey.folders.items()],
        )
        for path, link in survey.symlinks.items():
            message = self._symlink(path, link.node)
            if self._has_output_paths:
                result.output_symlinks.append(message)
            # Clients of v2.0 read these, whichever way they asked (OUT-04, OUT-05).
            if link.to_folder:
                result.output_directory_symlinks.append(message)
            else:
                result.output_file_symlinks.append(message)
        return result

    def _file(self, path: str, node: Node) -> reapi.OutputFile:
        return reapi.OutputFile(
            path=path,
            digest=self._digests[node.location].to_proto(),
            is_executable=_is_executable(node),
            node_properties=self._properties(node),
        )

    def _symlink(self, path: str, node: Node) -> reapi.OutputSymlink:
        return reapi.OutputSymlink(
            path=path, target=node.target, node_properties=self._properties(node)
        )

    def _folder(self, path: str, folders: Iterable[Folder]) -> reapi.OutputDirectory:
        messages = self._messages(folders)
        root, *children = reversed(list(messages.items()))
        output = reapi.OutputDirectory(path=path)
        if self._trees:
            tree = reapi.Tree(root=root[1], children=(message for _, message in children))
            output.tree_digest.CopyFrom(self._add(f"the Tree of output {path!r}", tree))
            output.is_topologically_sorted = True
        if self._directories:
            for message in messages.values():
                self._add(f"a Directory in output {path!r}", message)
            output.root_directory_digest.CopyFrom(root[0].to_proto())
        return output

    def _add(self, name: str, message: reapi.Directory | reapi.Tree) -> reapi.Digest:
        data = _bytes(message)
        self._budget.check_blob(name, len(data))
        return self._uploads.add(data).to_proto()

    def _messages(self, folders: Iterable[Folder]) -> dict[Digest, reapi.Directory]:
        """Every distinct Directory, each after all that it names; the root is last.

        Read backwards this is the order of a topologically sorted Tree (OUT-11, OUT-12).
        """
        messages: dict[Digest, reapi.Directory] = {}
        by_location: dict[str, Digest] = {}
        for folder in reversed(list(folders)):
            message = self._directory(folder, by_location)
            digest = self._uploads.function.digest(_bytes(message))
            by_location[folder.node.location] = digest
            messages.setdefault(digest, message)
        return messages

    def _directory(self, folder: Folder, digests: Mapping[str, Digest]) -> reapi.Directory:
        return reapi.Directory(
            files=[
                reapi.FileNode(
                    name=node.name,
                    digest=self._digests[node.location].to_proto(),
                    is_executable=_is_executable(node),
                    node_properties=self._properties(node),
                )
                for node in folder.files
            ],
            directories=[
                reapi.DirectoryNode(name=node.name, digest=digests[node.location].to_proto())
                for node in folder.folders
            ],
            symlinks=[
                reapi.SymlinkNode(
                    name=node.name, target=node.target, node_properties=self._properties(node)
                )
                for node in folder.symlinks
            ],
            node_properties=self._properties(folder.node),
        )

    def _properties(self, node: Node) -> reapi.NodeProperties | None:
        """The node properties that were asked for (OUT-18)."""
        if not self._asked:
            return None
        properties = reapi.NodeProperties()
        if "mtime" in self._asked:
            properties.mtime.FromNanoseconds(node.status.st_mtime_ns)
        if "unix_mode" in self._asked:
            properties.unix_mode.value = stat.S_IMODE(node.status.st_mode)
        return properties


def _is_executable(node: Node) -> bool:
    """OUT-09: what the owner may do."""
    return bool(node.status.st_mode & stat.S_IXUSR)


def _bytes(message: reapi.Directory | reapi.Tree) -> bytes:
    return message.SerializeToString(deterministic=True)
