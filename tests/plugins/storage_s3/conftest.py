"""One S3 server a session, a folder of its bucket a test, and a proxy for faults."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

from stoker import spi
from stoker.spi import ActionCache, BlobStore
from stoker_storage_s3 import S3BlobSettings, S3Settings, stoker_action_caches, stoker_blob_stores

from .proxy import Proxy
from .seaweed import ACCESS_KEY, BUCKET, SECRET_KEY, Seaweed

OpenBlobs = Callable[..., AbstractAsyncContextManager[BlobStore]]
OpenResults = Callable[..., AbstractAsyncContextManager[ActionCache]]


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def prefix() -> str:
    """A folder of the bucket that no other test uses."""
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def credentials_file(tmp_path: Path) -> Path:
    return write_credentials(tmp_path / "credentials")


@pytest.fixture
async def proxy(seaweed: Seaweed) -> AsyncIterator[Proxy]:
    proxy = Proxy(seaweed.port)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.serve)
        yield proxy
        nursery.cancel_scope.cancel()


@pytest.fixture
def open_blobs(seaweed: Seaweed, prefix: str, credentials_file: Path) -> OpenBlobs:
    """Opens a blob store in `prefix`, with any settings changed."""

    def open_(**changes: Any) -> AbstractAsyncContextManager[BlobStore]:
        plain = settings(seaweed, prefix, credentials_file) | changes
        return stoker_blob_stores()["s3"].open(S3BlobSettings(**plain), context())

    return open_


@pytest.fixture
def open_results(seaweed: Seaweed, prefix: str, credentials_file: Path) -> OpenResults:
    """Opens an action cache in `prefix`, with any settings changed."""

    def open_(**changes: Any) -> AbstractAsyncContextManager[ActionCache]:
        plain = settings(seaweed, prefix, credentials_file) | changes
        return stoker_action_caches()["s3"].open(S3Settings(**plain), context())

    return open_


def write_credentials(path: Path, secret_key: str = SECRET_KEY) -> Path:
    path.write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {secret_key}\n"
    )
    return path


def settings(seaweed: Seaweed, prefix: str, credentials_file: Path) -> dict[str, Any]:
    return {
        "bucket": BUCKET,
        "prefix": prefix,
        "endpoint": seaweed.endpoint,
        "region": "us-east-1",
        "credentials_file": str(credentials_file),
    }


def context() -> spi.Context:
    return spi.Context("bucket", Path("/nonexistent"), {})
