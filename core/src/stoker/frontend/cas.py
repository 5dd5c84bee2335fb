"""The ContentAddressableStorage service (sections 2 to 5 of the conformance list)."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from google.rpc import status_pb2

from stoker.digest import Digest, DigestFunction
from stoker.errors import DigestMismatch, InvalidRequest, StokerError
from stoker.frontend.capabilities import MAX_BATCH_BYTES
from stoker.frontend.instances import Instances, request_digest, request_function
from stoker.frontend.status import to_status
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ServerCall, Service, StatusCode, unary_stream, unary_unary
from stoker.storage.tree import walk_directories

MAX_MESSAGE_BYTES = 4 * 1024 * 1024 - 32 * 1024
"""What a response may weigh: many clients take no more than gRPC's default (GEN-15)."""


class CasService:
    """Blobs, many at a time."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    def service(self) -> Service:
        return Service(
            "build.bazel.remote.execution.v2.ContentAddressableStorage",
            {
                "FindMissingBlobs": unary_unary(
                    self.find_missing_blobs,
                    reapi.FindMissingBlobsRequest,
                    reapi.FindMissingBlobsResponse,
                ),
                "BatchUpdateBlobs": unary_unary(
                    self.batch_update_blobs,
                    reapi.BatchUpdateBlobsRequest,
                    reapi.BatchUpdateBlobsResponse,
                ),
                "BatchReadBlobs": unary_unary(
                    self.batch_read_blobs,
                    reapi.BatchReadBlobsRequest,
                    reapi.BatchReadBlobsResponse,
                ),
                "GetTree": unary_stream(self.get_tree, reapi.GetTreeRequest, reapi.GetTreeResponse),
            },
        )

    async def find_missing_blobs(
        self, request: reapi.FindMissingBlobsRequest, _: ServerCall
    ) -> reapi.FindMissingBlobsResponse:
        instance = self._instances.resolve(request.instance_name)
        function = request_function(request.digest_function, request.blob_digests)
        digests = [function.parse(message) for message in request.blob_digests]
        missing = await instance.blobs.find_missing(digests)
        return reapi.FindMissingBlobsResponse(
            missing_blob_digests=[digest.to_proto() for digest in missing]
        )

    async def batch_update_blobs(
        self, request: reapi.BatchUpdateBlobsRequest, _: ServerCall
    ) -> reapi.BatchUpdateBlobsResponse:
        instance = self._instances.resolve(request.instance_name)
        function = request_function(request.digest_function, (r.digest for r in request.requests))
        _check_batch(sum(len(r.data) for r in request.requests), request.instance_name)
        accepted: dict[Digest, bytes] = {}
        disputed = _disputed(request.requests)
        refusals = [_accept(function, r, accepted, disputed) for r in request.requests]
        failures = await instance.blobs.write_many(accepted)
        return reapi.BatchUpdateBlobsResponse(
            responses=[
                reapi.BatchUpdateBlobsResponse.Response(
                    digest=r.digest,
                    status=refused or to_status(failures.get(function.parse(r.digest))),
                )
                for r, refused in zip(request.requests, refusals, strict=True)
            ]
        )

    async def batch_read_blobs(
        self, request: reapi.BatchReadBlobsRequest, _: ServerCall
    ) -> reapi.BatchReadBlobsResponse:
        instance = self._instances.resolve(request.instance_name)
        function = request_function(request.digest_function, request.digests)
        digests = [function.parse(message) for message in request.digests]
        _check_batch(sum(digest.size_bytes for digest in digests), request.instance_name)
        blobs = await instance.blobs.read_many(set(digests))
        return _batch_of(digests, blobs)

    async def get_tree(self, request: reapi.GetTreeRequest, call: ServerCall) -> None:
        instance = self._instances.resolve(request.instance_name)
        root = request_digest(request.digest_function, "root_digest", request.root_digest)
        if request.page_size < 0:
            raise InvalidRequest(f"page_size {request.page_size} is negative")
        sent = _parse_page_token(request.page_token, root)
        pages = _Pages(root, request.page_size, sent)
        async for level in walk_directories(instance.blobs, root):
            for _, directory in level:
                if page := pages.add(directory):
                    await call.send(page)
        await call.send(pages.last())


def _check_batch(size_bytes: int, instance_name: str) -> None:
    if size_bytes > MAX_BATCH_BYTES:
        raise InvalidRequest(
            f"the batch holds {size_bytes} bytes, more than the {MAX_BATCH_BYTES} that "
            f"instance {instance_name!r} takes; use ByteStream for large blobs"
        )


def _disputed(requests: Iterable[reapi.BatchUpdateBlobsRequest.Request]) -> set[str]:
    """The hashes that come with unlike data, of which each has to be judged by itself (BUB-11)."""
    first: dict[str, bytes] = {}
    return {r.digest.hash for r in requests if first.setdefault(r.digest.hash, r.data) != r.data}


def _accept(
    function: DigestFunction,
    request: reapi.BatchUpdateBlobsRequest.Request,
    accepted: dict[Digest, bytes],
    disputed: Collection[str],
) -> status_pb2.Status | None:
    """Take one blob of a batch in; returns the reason where it is refused (BUB-02)."""
    try:
        digest = function.parse(request.digest)
        if request.compressor != reapi.Compressor.IDENTITY:
            raise InvalidRequest(f"blob {digest}: compressed uploads are not supported")
        if len(request.data) != digest.size_bytes:
            raise DigestMismatch(digest, f"{len(request.data)} bytes came")
        if digest.hash in disputed and function.digest(request.data) != digest:
            raise DigestMismatch(digest, "other bytes came")
    except StokerError as error:
        return to_status(error)
    accepted[digest] = request.data
    return None


def _batch_of(
    digests: Collection[Digest], blobs: Mapping[Digest, bytes]
) -> reapi.BatchReadBlobsResponse:
    """All blobs that fit into a message; those with RESOURCE_EXHAUSTED are to be asked for again.

    Raises InvalidRequest where not even the digests fit (BRB-07).
    """
    room = MAX_MESSAGE_BYTES - sum(_entry_bytes(digest) for digest in digests)
    if room < 0:
        raise InvalidRequest(f"{len(digests)} digests are too many for one answer; ask for fewer")
    response = reapi.BatchReadBlobsResponse()
    for digest in digests:
        entry = response.responses.add(digest=digest.to_proto())
        data = blobs.get(digest)
        if data is None:
            entry.status.code = StatusCode.NOT_FOUND
        elif room < len(data):
            entry.status.code = StatusCode.RESOURCE_EXHAUSTED
        else:
            entry.data = data
            room -= len(data)
    return response


def _entry_bytes(digest: Digest) -> int:
    """What one entry weighs at the most beside its data: a digest, a code, tags and lengths."""
    return len(digest.hash) + 40


class _Pages:
    """Cuts a stream of directories into pages by count and by weight (GTR-04, GTR-13).

    A token is the number of directories sent before it, which stays true as the order of the walk
    follows from the root's content alone (GTR-05).
    """

    def __init__(self, root: Digest, page_size: int, skip: int) -> None:
        self._root = root
        self._page_size = page_size or 10_000
        self._skip = skip
        self._sent = 0
        self._page = reapi.GetTreeResponse()
        self._weight = 0

    def add(self, directory: reapi.Directory) -> reapi.GetTreeResponse | None:
        """Take a directory in; returns the page before it where it begins a new one."""
        if self._sent < self._skip:
            self._sent += 1
            return None
        full = None
        weight = directory.ByteSize() + 8
        if self._page.directories and (
            len(self._page.directories) >= self._page_size
            or self._weight + weight > MAX_MESSAGE_BYTES
        ):
            full, self._page, self._weight = self._page, reapi.GetTreeResponse(), 0
            full.next_page_token = _page_token(self._root, self._sent)
        self._page.directories.append(directory)
        self._weight += weight
        self._sent += 1
        return full

    def last(self) -> reapi.GetTreeResponse:
        return self._page


def _page_token(root: Digest, sent: int) -> str:
    return b64encode(f"{root.hash[:16]}:{sent}".encode()).decode()


def _parse_page_token(token: str, root: Digest) -> int:
    if not token:
        return 0
    with suppress(ValueError):
        known = re.fullmatch(r"([0-9a-f]{16}):([0-9]{1,12})", b64decode(token).decode())
        if known and known[1] == root.hash[:16]:
            return int(known[2])
    raise InvalidRequest(f"page_token {token[:100]!r} is not one that was given for tree {root}")
