"""What the demo builds: a type check of each of many modules, as REAPI actions."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import Message

from stoker.digest import Digest, DigestFunction
from stoker.protos import remote_execution_pb2 as reapi

TOOL = Path(__file__).resolve().parents[1] / "mypy_worker" / "mypy_worker.py"
REPORT = "report.txt"

# Modules of one file that every Python from 3.11 on has, or nearly, without relative imports.
_CANDIDATES = (
    "argparse ast base64 bdb calendar cmd code codecs compileall configparser contextlib copy csv "
    "dataclasses datetime difflib dis doctest filecmp fileinput fnmatch fractions ftplib functools "
    "getopt gettext graphlib gzip hashlib heapq hmac imaplib inspect ipaddress linecache mailbox "
    "mimetypes modulefinder netrc optparse pickle pickletools platform plistlib pprint profile "
    "pstats queue random sched selectors shelve shlex shutil smtplib socketserver statistics "
    "subprocess tempfile textwrap timeit tokenize trace traceback types uuid wave zipapp "
)


class CheckAction(NamedTuple):
    """An action, and everything that has to be uploaded for it."""

    name: str
    digest: Digest
    blobs: Mapping[Digest, bytes]


def library_modules() -> list[Path]:
    """Modules of the running Python's standard library, always in the same order."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [path for name in _CANDIDATES.split() if (path := folder / f"{name}.py").is_file()]


def check_action(
    module: Path, properties: Mapping[str, str], function: DigestFunction
) -> CheckAction:
    """The action that checks `module`, asking for an executor with `properties`.

    Python and mypy are no inputs: they are taken to be installed where the action runs, which
    here is this machine. The module, the tool and its parameters are.
    """
    blobs: dict[Digest, bytes] = {}

    def add(data: bytes) -> reapi.Digest:
        digest = function.digest(data)
        blobs[digest] = data
        return digest.to_proto()

    source = f"library/{module.name}"
    params = f"--output\n{REPORT}\n{source}\n"
    library = reapi.Directory(
        files=[reapi.FileNode(name=module.name, digest=add(module.read_bytes()))]
    )
    root = reapi.Directory(
        files=[
            reapi.FileNode(name=TOOL.name, digest=add(TOOL.read_bytes())),
            reapi.FileNode(name="params.txt", digest=add(params.encode())),
        ],
        directories=[reapi.DirectoryNode(name="library", digest=add(_bytes(library)))],
    )
    platform = reapi.Platform(
        properties=[
            reapi.Platform.Property(name=name, value=value)
            for name, value in sorted(properties.items())
        ]
    )
    command = reapi.Command(
        arguments=[sys.executable, TOOL.name, "@params.txt"],
        output_paths=[REPORT],
        platform=platform,
    )
    action = reapi.Action(
        command_digest=add(_bytes(command)), input_root_digest=add(_bytes(root)), platform=platform
    )
    return CheckAction(module.stem, function.parse(add(_bytes(action))), blobs)


def _bytes(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)
