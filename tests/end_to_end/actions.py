"""Input trees and actions, as a client makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi


@dataclass(slots=True)
class Tree:
    """An input root: files by their paths, links by theirs, and folders that may be empty."""

    files: dict[str, bytes] = field(default_factory=dict)
    executables: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    tools: set[str] = field(default_factory=set)
    """The files that are marked as the tool's, as Bazel marks them."""

    def all_folders(self) -> set[str]:
        """Every folder but the root."""
        found = set(self.folders)
        for path in (*self.files, *self.links, *self.folders):
            while path := path.rpartition("/")[0]:
                found.add(path)
        return found

    def blobs(self) -> tuple[Digest, dict[Digest, bytes]]:
        """The root's digest, and everything that is to be uploaded."""
        blobs = {SHA256.digest(data): data for data in self.files.values()}
        nodes: dict[str, reapi.Directory] = {}
        for folder in sorted(self.all_folders() | {""}, key=lambda path: (-path.count("/"), path)):
            nodes.setdefault(folder, reapi.Directory())
        for path, data in sorted(self.files.items()):
            folder, _, name = path.rpartition("/")
            node = nodes[folder].files.add(
                name=name,
                digest=SHA256.digest(data).to_proto(),
                is_executable=path in self.executables,
            )
            if path in self.tools:
                node.node_properties.properties.add(name="bazel_tool_input")
        for path, target in sorted(self.links.items()):
            folder, _, name = path.rpartition("/")
            nodes[folder].symlinks.add(name=name, target=target)
        # The deepest first, so that each is whole before its own digest is taken.
        order = sorted(nodes, key=lambda path: (path != "", path.count("/"), path), reverse=True)
        for folder in order:
            nodes[folder].directories.sort(key=lambda node: node.name)
            data = nodes[folder].SerializeToString()
            digest = SHA256.digest(data)
            blobs[digest] = data
            if folder:
                above, _, name = folder.rpartition("/")
                nodes[above].directories.add(name=name, digest=digest.to_proto())
        return SHA256.digest(nodes[""].SerializeToString()), blobs

    def contents(self) -> dict[str, list[object]]:
        """What `hostile_tool.py` tells of it."""
        found: dict[str, list[object]] = {path: ["folder"] for path in self.all_folders()}
        found |= {path: ["link", target] for path, target in self.links.items()}
        for path, data in self.files.items():
            is_executable = path in self.executables
            found[path] = ["file", is_executable, hashlib.sha256(data).hexdigest()]
        return found


def action_blobs(
    arguments: Sequence[str],
    root: Digest = SHA256.empty,
    *,
    outputs: Sequence[str] = (),
    platform: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: int | None = None,
    do_not_cache: bool = True,
) -> tuple[Digest, dict[Digest, bytes]]:
    """An action's digest, and the blobs that are its own."""
    variables = [
        reapi.Command.EnvironmentVariable(name=name, value=value)
        for name, value in sorted((environment or {}).items())
    ]
    command = reapi.Command(
        arguments=arguments, output_paths=outputs, environment_variables=variables
    ).SerializeToString()
    action = reapi.Action(
        command_digest=SHA256.digest(command).to_proto(),
        input_root_digest=root.to_proto(),
        do_not_cache=do_not_cache,
        platform=reapi.Platform(
            properties=[
                reapi.Platform.Property(name=name, value=value)
                for name, value in sorted((platform or {}).items())
            ]
        ),
    )
    if timeout_seconds is not None:
        action.timeout.seconds = timeout_seconds
    data = action.SerializeToString()
    return SHA256.digest(data), {SHA256.digest(blob): blob for blob in (command, data)}
