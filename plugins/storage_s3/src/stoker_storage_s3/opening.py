"""From settings to an open bucket."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, TypedDict

import trio
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from stoker import spi
from stoker.spi import ConfigurationError
from stoker_storage_s3.bucket import Bucket
from stoker_storage_s3.credentials import CredentialsFile, read_text
from stoker_storage_s3.settings import (
    AzureBlobSettings,
    AzureSettings,
    BucketSettings,
    GcsBlobSettings,
    GcsSettings,
    S3BlobSettings,
    S3Settings,
)

if TYPE_CHECKING:
    from obstore.store import (
        AzureConfig,
        ClientConfig,
        GCSConfig,
        ObjectStore,
        RetryConfig,
        S3Config,
    )

_MAX_BACKOFF = timedelta(seconds=5)


class _Shared(TypedDict):
    prefix: str | None
    client_options: ClientConfig
    retry_config: RetryConfig


async def open_bucket(settings: BucketSettings, context: spi.Context) -> Bucket:
    """The bucket that `settings` name, once it has answered.

    Raises ConfigurationError, naming the bucket, if it does not exist or refuses these
    credentials, and Unavailable if it does not answer.
    """
    name = bucket_name(settings)
    bucket = await trio.to_thread.run_sync(_build, name, settings, context)
    await bucket.check()
    return bucket


def bucket_name(settings: BucketSettings) -> str:
    """The bucket's name for messages."""
    match settings:
        case S3Settings() | S3BlobSettings():
            place = f"s3://{settings.bucket}"
        case GcsSettings() | GcsBlobSettings():
            place = f"gs://{settings.bucket}"
        case AzureSettings() | AzureBlobSettings():
            place = f"az://{settings.account}/{settings.container}"
        case _:
            raise AssertionError(f"{type(settings).__name__} names no bucket")
    return f"{place}/{settings.prefix}" if settings.prefix else place


def _build(name: str, settings: BucketSettings, context: spi.Context) -> Bucket:
    try:
        store = _store(settings, context, settings.request_seconds)
        uploads = _store(settings, context, settings.upload_seconds)
    except (BaseError, ValueError):
        # Its text is not handed on: it may quote a key that it could not decode.
        raise ConfigurationError(
            [f"bucket {name} cannot be used: check its prefix, endpoint and credentials"]
        ) from None
    return Bucket(name, store, uploads, max_connections=settings.max_connections)


def _store(settings: BucketSettings, context: spi.Context, seconds: float) -> ObjectStore:
    shared = _shared(settings, context, seconds)
    match settings:
        case S3Settings() | S3BlobSettings():
            return _s3(settings, context, shared)
        case GcsSettings() | GcsBlobSettings():
            return _gcs(settings, context, shared)
        case AzureSettings() | AzureBlobSettings():
            return _azure(settings, context, shared)
        case _:
            raise AssertionError(f"{type(settings).__name__} names no bucket")


def _s3(
    settings: S3Settings | S3BlobSettings, context: spi.Context, shared: _Shared
) -> ObjectStore:
    config: S3Config = {"virtual_hosted_style_request": settings.virtual_hosted_style}
    if settings.region is not None:
        config["region"] = settings.region
    if settings.endpoint is not None:
        config["endpoint"] = settings.endpoint
    credentials = None
    if settings.credentials_file is not None:
        credentials = CredentialsFile(context.path(settings.credentials_file), settings.profile)
        credentials()
    return S3Store(settings.bucket, config=config, credential_provider=credentials, **shared)


def _gcs(
    settings: GcsSettings | GcsBlobSettings, context: spi.Context, shared: _Shared
) -> ObjectStore:
    config: GCSConfig = {}
    if settings.endpoint is not None:
        config["base_url"] = settings.endpoint
    if settings.service_account_file is not None:
        config["service_account_key"] = read_text(context.path(settings.service_account_file))
    return GCSStore(settings.bucket, config=config, **shared)


def _azure(
    settings: AzureSettings | AzureBlobSettings, context: spi.Context, shared: _Shared
) -> ObjectStore:
    config: AzureConfig = {"account_name": settings.account}
    if settings.endpoint is not None:
        config["endpoint"] = settings.endpoint
    if settings.account_key_file is not None:
        config["account_key"] = read_text(context.path(settings.account_key_file))
    if settings.sas_token_file is not None:
        config["sas_key"] = read_text(context.path(settings.sas_token_file))
    return AzureStore(settings.container, config=config, **shared)


def _shared(settings: BucketSettings, context: spi.Context, seconds: float) -> _Shared:
    client: ClientConfig = {
        "timeout": timedelta(seconds=seconds),
        "connect_timeout": timedelta(seconds=settings.connect_seconds),
        # Written out by whoever asks for it, and never the case for the providers' own services.
        "allow_http": (settings.endpoint or "").startswith("http://"),
    }
    if settings.ca_certificate is not None:
        client["root_certificate"] = read_text(context.path(settings.ca_certificate))
    retry: RetryConfig = {
        "max_retries": settings.retries,
        "retry_timeout": timedelta(seconds=settings.retry_seconds),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": _MAX_BACKOFF,
            "base": 2,
        },
    }
    return {
        "prefix": settings.prefix.strip("/") or None,
        "client_options": client,
        "retry_config": retry,
    }
