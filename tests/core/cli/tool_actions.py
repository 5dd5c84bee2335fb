"""Actions whose inputs are a folder, as commands' tests have them run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stoker.client import open_remote
from stoker.client.folder import digest_folder
from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi


async def upload_action(
    server: str,
    inputs: Path,
    arguments: Sequence[str],
    platform: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
) -> Digest:
    """Upload an action, and all that it needs. It is never cached."""
    tree = await digest_folder(inputs, SHA256)
    command = reapi.Command(
        arguments=arguments,
        environment_variables=[
            reapi.Command.EnvironmentVariable(name=name, value=value)
            for name, value in (environment or {}).items()
        ],
    ).SerializeToString()
    action = reapi.Action(
        command_digest=SHA256.digest(command).to_proto(),
        input_root_digest=tree.root.to_proto(),
        do_not_cache=True,
        platform=reapi.Platform(
            properties=[
                reapi.Platform.Property(name=name, value=value) for name, value in platform.items()
            ]
        ),
    ).SerializeToString()
    files = {digest: path.read_bytes() for digest, path in tree.files.items()}
    own = {SHA256.digest(blob): blob for blob in (command, action)}
    async with open_remote(server) as remote:
        await remote.upload_blobs({**tree.directories, **files, **own})
    return SHA256.digest(action)
