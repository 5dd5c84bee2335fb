"""Names of blobs and uploads on ByteStream.

Source: the comment of ContentAddressableStorage in remote_execution.proto; checks BSR-01…03,
BSR-08, BSR-14, BSW-01…03.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stoker.digest import DIGEST_FUNCTIONS, Digest, DigestFunction, digest_function
from stoker.errors import InvalidRequest

_BLOBS, _COMPRESSED, _UPLOADS = "blobs", "compressed-blobs", "uploads"
_KEYWORDS = frozenset({_BLOBS, _COMPRESSED, _UPLOADS})
_FUNCTIONS = {function.name.lower(): function for function in DIGEST_FUNCTIONS}
_MAX_UPLOAD_CHARACTERS = 256
_MAX_SIZE_BYTES = (1 << 63) - 1


class BlobName(NamedTuple):
    """A blob to read, or to upload."""

    text: str
    instance_name: str
    compressed: bool
    """Whether the stream is zstd of the blob, rather than the blob itself."""
    function: DigestFunction | None
    hash: str
    size_bytes: int
    upload: str = ""
    """What the client calls its upload, commonly a UUID."""

    def digest(self, offered: Sequence[DigestFunction]) -> Digest:
        """The digest that is named, by one of the functions of the instance.

        Raises InvalidRequest.
        """
        number = self.function.number if self.function else 0
        return digest_function(number, len(self.hash), offered).named(self.hash, self.size_bytes)


def parse_read_name(name: str) -> BlobName:
    """``{instance/}blobs/{function/}{hash}/{size}``, or with ``compressed-blobs/zstd`` in it.

    Raises InvalidRequest.
    """
    instance_name, segments = _split(name)
    if segments[:1] == [_UPLOADS]:
        raise InvalidRequest(f"{name!r} names an upload, which cannot be read")
    blob, rest = _blob(name, instance_name, segments)
    if rest:
        raise InvalidRequest(f"{name!r} has segments after the size")
    return blob


def parse_upload_name(name: str) -> BlobName:
    """``{instance/}uploads/{uuid}/blobs/{function/}{hash}/{size}{/anything}``.

    In place of ``blobs`` it may have ``compressed-blobs/zstd``. Raises InvalidRequest.
    """
    instance_name, segments = _split(name)
    if segments[:1] != [_UPLOADS] or len(segments) < 2 or not segments[1]:
        raise InvalidRequest(
            f"{name!r} is not of the form {{instance/}}uploads/{{uuid}}/blobs/{{hash}}/{{size}}"
        )
    if len(segments[1]) > _MAX_UPLOAD_CHARACTERS:
        raise InvalidRequest(
            f"the upload's own name has {len(segments[1])} characters, "
            f"of at most {_MAX_UPLOAD_CHARACTERS}: {name[:100]!r}"
        )
    blob, _ = _blob(name, instance_name, segments[2:])
    return blob._replace(upload=segments[1])


def _split(name: str) -> tuple[str, list[str]]:
    """The instance name, and the segments from the first keyword on."""
    segments = name.split("/")
    if segments[0] == "" and len(segments) > 1 and segments[1] in _KEYWORDS:
        del segments[0]  # some clients put the slash after an empty instance name too
    for index, segment in enumerate(segments):
        if segment in _KEYWORDS:
            return "/".join(segments[:index]), segments[index:]
    raise InvalidRequest(f"{name!r} has neither a segment 'blobs' nor 'uploads'")


def _blob(name: str, instance_name: str, segments: list[str]) -> tuple[BlobName, list[str]]:
    """What `segments` name, and those that follow on the size."""
    compressed = segments[:1] == [_COMPRESSED]
    if compressed and segments[1:2] != ["zstd"]:
        raise InvalidRequest(f"{name!r}: the one compressor that is offered is zstd")
    if not compressed and segments[:1] != [_BLOBS]:
        raise InvalidRequest(f"{name!r} has no segment 'blobs' where it belongs")
    rest = segments[2 if compressed else 1 :]
    function = _FUNCTIONS.get(rest[0]) if rest else None
    if function:
        rest = rest[1:]
    if len(rest) < 2 or (size_bytes := _size(rest[1])) is None:
        raise InvalidRequest(f"{name!r} does not name a blob by {{hash}}/{{size}}")
    return BlobName(name, instance_name, compressed, function, rest[0], size_bytes), rest[2:]


def _size(text: str) -> int | None:
    """The number in `text`, or None for what is none or does not fit into a digest."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        return None
    number = int(text)
    return number if number <= _MAX_SIZE_BYTES else None
