"""The ContentAddressableStorage service (sections 2 to 5 of the conformance list)."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Collection
from contextlib import suppress

from stoker.digest import Digest
from stoker.errors import InvalidRequest
from stoker.frontend.batches import (
    read_batch,
    receive_batch,
    store_batch,
    update_response,
)
from stoker.frontend.capabilities import MAX_RESPONSE_BYTES
from stoker.frontend.instances import Instances, naming_instance
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ServerCall, Service, unary_stream, unary_unary
from stoker.storage.threads import run
from stoker.storage.tree import walk_directories

# Parsing a digest takes 2 µs or so; with more of them others should not wait.
_INLINE_DIGESTS = 2_000


class CasService:
    """Blobs, many at a time."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    def service(self) -> Service:
        return Service(
            "build.bazel.remote.execution.v2.ContentAddressableStorage",
            {
                "FindMissingBlobs": unary_unary(
                    naming_instance(self.find_missing_blobs),
                    reapi.FindMissingBlobsRequest,
                    reapi.FindMissingBlobsResponse,
                ),
                "BatchUpdateBlobs": unary_unary(
                    naming_instance(self.batch_update_blobs),
                    reapi.BatchUpdateBlobsRequest,
                    reapi.BatchUpdateBlobsResponse,
                ),
                "BatchReadBlobs": unary_unary(
                    naming_instance(self.batch_read_blobs),
                    reapi.BatchReadBlobsRequest,
                    reapi.BatchReadBlobsResponse,
                ),
                "GetTree": unary_stream(
                    naming_instance(self.get_tree), reapi.GetTreeRequest, reapi.GetTreeResponse
                ),
            },
        )

    async def find_missing_blobs(
        self, request: reapi.FindMissingBlobsRequest, _: ServerCall
    ) -> reapi.FindMissingBlobsResponse:
        instance = self._instances.resolve(request.instance_name)
        inline = len(request.blob_digests) <= _INLINE_DIGESTS
        digests = await run(
            instance.request_digests, request.digest_function, request.blob_digests, inline=inline
        )
        missing = await instance.blobs.find_missing(digests)
        return await run(_missing_response, missing, inline=len(missing) <= _INLINE_DIGESTS)

    async def batch_update_blobs(
        self, request: reapi.BatchUpdateBlobsRequest, _: ServerCall
    ) -> reapi.BatchUpdateBlobsResponse:
        instance = self._instances.resolve(request.instance_name)
        updates = request.requests
        function = instance.request_function(
            request.digest_function, [update.digest for update in updates]
        )
        batch = await receive_batch(instance, function, updates)
        await store_batch(instance.blobs, batch)
        return update_response(instance, updates, batch)

    async def batch_read_blobs(
        self, request: reapi.BatchReadBlobsRequest, _: ServerCall
    ) -> reapi.BatchReadBlobsResponse:
        instance = self._instances.resolve(request.instance_name)
        digests = instance.request_digests(request.digest_function, request.digests)
        return await read_batch(instance.blobs, digests, request.acceptable_compressors)

    async def get_tree(self, request: reapi.GetTreeRequest, call: ServerCall) -> None:
        instance = self._instances.resolve(request.instance_name)
        root = instance.request_digest(request.digest_function, "root_digest", request.root_digest)
        if request.page_size < 0:
            raise InvalidRequest(f"page_size {request.page_size} is negative")
        sent = _parse_page_token(request.page_token, root)
        pages = _Pages(root, request.page_size, sent)
        async for level in walk_directories(instance.blobs, [root]):
            for _, directory in level:
                if page := pages.add(directory):
                    await call.send(page)
        await call.send(pages.last())


def _missing_response(missing: Collection[Digest]) -> reapi.FindMissingBlobsResponse:
    return reapi.FindMissingBlobsResponse(
        missing_blob_digests=[digest.to_proto() for digest in missing]
    )


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
            or self._weight + weight > MAX_RESPONSE_BYTES
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
