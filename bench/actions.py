"""Actions to execute, with the blobs that they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stoker.client import RemoteInstance
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi


@dataclass
class Actions:
    """Makes actions, and keeps what has to be uploaded before they are executed."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)

    def add(
        self,
        arguments: Sequence[str],
        files: Mapping[str, bytes],
        *,
        environment: Mapping[str, str] | None = None,
        platform: Mapping[str, str] | None = None,
    ) -> Digest:
        """An action that runs `arguments` among `files`, which lie at most one folder deep."""
        command = reapi.Command(arguments=arguments)
        for name, value in sorted((environment or {}).items()):
            command.environment_variables.add(name=name, value=value)
        action = reapi.Action(
            command_digest=self.keep(command.SerializeToString()).to_proto(),
            input_root_digest=self._input_root(files).to_proto(),
        )
        for name, value in sorted((platform or {}).items()):
            action.platform.properties.add(name=name, value=value)
        return self.keep(action.SerializeToString())

    def keep(self, data: bytes) -> Digest:
        """The digest of `data`, which is to be uploaded."""
        digest = SHA256.digest(data)
        self.blobs[digest] = data
        return digest

    async def upload(self, remote: RemoteInstance) -> None:
        """Send what the server lacks."""
        missing = await remote.find_missing(self.blobs)
        await remote.upload_blobs({digest: self.blobs[digest] for digest in missing})

    def _input_root(self, files: Mapping[str, bytes]) -> Digest:
        folders: dict[str, dict[str, bytes]] = {"": {}}
        for path, data in files.items():
            folder, _, name = path.rpartition("/")
            folders.setdefault(folder, {})[name] = data
        root = self._directory(folders.pop("").items())
        for name, content in sorted(folders.items()):
            data = self._directory(content.items()).SerializeToString()
            root.directories.add(name=name, digest=self.keep(data).to_proto())
        return self.keep(root.SerializeToString())

    def _directory(self, files: Iterable[tuple[str, bytes]]) -> reapi.Directory:
        directory = reapi.Directory()
        for name, data in sorted(files):
            directory.files.add(name=name, digest=self.keep(data).to_proto())
        return directory
