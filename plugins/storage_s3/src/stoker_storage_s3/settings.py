"""What the tables of the kinds ``s3``, ``gcs`` and ``azure`` may say.

None of these keys holds a secret: secrets are in the environment, with the machine's own identity,
or in a file that a key names. ``stoker config`` may therefore print all of them.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from stoker import spi

MIB = 1024 * 1024

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Filled = Annotated[str, msgspec.Meta(min_length=1)]


class BucketSettings(spi.Settings, frozen=True, kw_only=True):
    """What all kinds of buckets share, for blobs and for action results."""

    prefix: str = ""
    """The folder within the bucket, such as ``builds/main``; empty for all of the bucket."""
    endpoint: str | None = None
    """The URL of the service, where it is not the provider's own."""
    ca_certificate: str | None = None
    """A PEM file with certificates to trust beside the system's."""
    max_connections: AtLeastOne = 64
    """How many requests may be under way at once, parts of large uploads not counted."""
    connect_seconds: Positive = 5
    """How long one attempt to connect may take."""
    request_seconds: Positive = 60
    """How long one request that asks or reads may take, 8 MiB of content included."""
    upload_seconds: Positive = 300
    """How long one put, one part of a large one, or one copy within the bucket may take."""
    retries: Annotated[int, msgspec.Meta(ge=0)] = 6
    """How often a request that failed is repeated."""
    retry_seconds: Positive = 60
    """How long after its first attempt a request may be repeated."""
    touch_after_days: NotNegative = 7
    """Objects in use are renewed when they are older, for life-cycle rules; 0 for never."""


class BlobSettings(BucketSettings, frozen=True, kw_only=True):
    """What buckets of blobs have in addition."""

    max_uploads: AtLeastOne = 32
    """How many blobs of more than one part may be uploaded at once."""
    part_bytes: Annotated[int, msgspec.Meta(ge=5 * MIB, le=512 * MIB)] = 8 * MIB
    """Blobs that are larger are uploaded in parts of this size."""
    shared_upload_seconds: NotNegative = 20
    """How long a client that uploads such a blob is held back while another uploads the same."""
    presence_seconds: NotNegative = 3600
    """How long a blob that was seen is believed to be there; 0 to ask each time."""
    presence_entries: AtLeastOne = 200_000
    """How many such blobs are remembered, at about 300 bytes each."""


# A struct cannot have two structs as bases, so that each kind's own keys are written out twice.


class S3Settings(BucketSettings, frozen=True, kw_only=True):
    """Settings of the action cache kind ``s3``, also for services that speak its protocol."""

    bucket: Filled
    region: str | None = None
    """The bucket's region; unset for that of the environment, or else us-east-1."""
    virtual_hosted_style: bool = False
    """Whether the bucket's name is part of the host name; `endpoint`, if set, then holds it."""
    credentials_file: str | None = None
    """A file in the format of ``~/.aws/credentials``, read anew every ten minutes."""
    profile: str = "default"
    """The section of `credentials_file` to use."""


class S3BlobSettings(BlobSettings, frozen=True, kw_only=True):
    """Settings of the blob store kind ``s3``. See `S3Settings`."""

    bucket: Filled
    region: str | None = None
    virtual_hosted_style: bool = False
    credentials_file: str | None = None
    profile: str = "default"


class GcsSettings(BucketSettings, frozen=True, kw_only=True):
    """Settings of the action cache kind ``gcs``, for Google Cloud Storage."""

    bucket: Filled
    service_account_file: str | None = None
    """A JSON key file of a service account."""


class GcsBlobSettings(BlobSettings, frozen=True, kw_only=True):
    """Settings of the blob store kind ``gcs``. See `GcsSettings`."""

    bucket: Filled
    service_account_file: str | None = None


class AzureSettings(BucketSettings, frozen=True, kw_only=True):
    """Settings of the action cache kind ``azure``, for Azure Blob Storage."""

    account: Filled
    container: Filled
    account_key_file: str | None = None
    """A file that holds the account's key and nothing else."""
    sas_token_file: str | None = None
    """A file that holds a SAS token and nothing else."""


class AzureBlobSettings(BlobSettings, frozen=True, kw_only=True):
    """Settings of the blob store kind ``azure``. See `AzureSettings`."""

    account: Filled
    container: Filled
    account_key_file: str | None = None
    sas_token_file: str | None = None
