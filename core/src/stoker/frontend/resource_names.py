"""Names of blobs and uploads on ByteStream.

Source: the comment of ContentAddressableStorage in remote_execution.proto; checks BSR-01…03,
BSW-01…03.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from stoker.digest import DIGEST_FUNCTIONS, Digest, digest_function
from stoker.errors import InvalidRequest

_KEYWORDS = frozenset({"blobs", "uploads", "compressed-blobs"})
_SIZE = re.compile("[0-9]{1,18}")  # all that fits into an int64 with room to add
_FUNCTIONS = {function.name.lower(): function for function in DIGEST_FUNCTIONS}


class BlobName(NamedTuple):
    """A blob to read, or to upload."""

    instance_name: str
    digest: Digest


def parse_read_name(name: str) -> BlobName:
    """``{instance/}blobs/{function/}{hash}/{size}``. Raises InvalidRequest."""
    instance_name, segments = _split(name)
    if segments[:1] == ["uploads"]:
        raise InvalidRequest(f"{name!r} names an upload, which cannot be read")
    digest, rest = _digest(name, segments)
    if rest:
        raise InvalidRequest(f"{name!r} has segments after the size")
    return BlobName(instance_name, digest)


def parse_upload_name(name: str) -> BlobName:
    """``{instance/}uploads/{uuid}/blobs/{function/}{hash}/{size}{/anything}``.

    Raises InvalidRequest.
    """
    instance_name, segments = _split(name)
    if segments[:1] != ["uploads"] or len(segments) < 2 or not segments[1]:
        raise InvalidRequest(
            f"{name!r} is not of the form {{instance/}}uploads/{{uuid}}/blobs/{{hash}}/{{size}}"
        )
    digest, _ = _digest(name, segments[2:])
    return BlobName(instance_name, digest)


def _split(name: str) -> tuple[str, list[str]]:
    """The instance name, and the segments from the first keyword on."""
    segments = name.split("/")
    if segments[0] == "" and len(segments) > 1 and segments[1] in _KEYWORDS:
        del segments[0]  # some clients put the slash after an empty instance name too
    for index, segment in enumerate(segments):
        if segment in _KEYWORDS:
            return "/".join(segments[:index]), segments[index:]
    raise InvalidRequest(f"{name!r} has neither a segment 'blobs' nor 'uploads'")


def _digest(name: str, segments: list[str]) -> tuple[Digest, list[str]]:
    if segments[:1] == ["compressed-blobs"]:
        raise InvalidRequest(f"{name!r}: this server takes and gives blobs uncompressed only")
    if segments[:1] != ["blobs"]:
        raise InvalidRequest(f"{name!r} has no segment 'blobs' where it belongs")
    rest = segments[1:]
    function = _FUNCTIONS.get(rest[0]) if rest else None
    if function:
        rest = rest[1:]
    if len(rest) < 2 or not _SIZE.fullmatch(rest[1]):
        raise InvalidRequest(f"{name!r} does not name a blob by {{hash}}/{{size}}")
    function = function or digest_function(0, len(rest[0]))
    return function.named(rest[0], int(rest[1])), rest[2:]
