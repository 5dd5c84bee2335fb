"""The kinds, their settings, and the providers that have no server here to try them on."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stoker import spi
from stoker.spi import ActionKey, BlobStore, ConfigurationError, Unavailable
from stoker.testing.blob_store_laws import assert_absent, blob, write
from stoker_storage_s3 import stoker_action_caches, stoker_blob_stores

from .conftest import context
from .proxy import Answer, Proxy
from .seaweed import SECRET_KEY

SMALLEST: Mapping[str, dict[str, Any]] = {
    "s3": {"bucket": "b"},
    "gcs": {"bucket": "b"},
    "azure": {"account": "a", "container": "c"},
}
ABSENT = {
    "gcs": Answer("404 Not Found", "NoSuchKey"),
    "azure": Answer("404 Not Found", "BlobNotFound"),
}


def convert(provider: spi.Provider[Any], plain: Mapping[str, Any]) -> spi.Settings:
    return msgspec.convert(plain, provider.settings)


@pytest.mark.parametrize("offers", [stoker_blob_stores, stoker_action_caches])
def test_kinds_and_their_smallest_tables(offers: Any) -> None:
    providers = offers()
    assert providers.keys() == SMALLEST.keys()
    for kind, provider in providers.items():
        convert(provider, SMALLEST[kind])
        for required in SMALLEST[kind]:
            plain = {key: value for key, value in SMALLEST[kind].items() if key != required}
            with pytest.raises(msgspec.ValidationError, match=required):
                convert(provider, plain)
            with pytest.raises(msgspec.ValidationError):
                convert(provider, {**plain, required: ""})


@pytest.mark.parametrize(
    "wrong",
    [
        {"part_bytes": 1024},
        {"max_connections": 0},
        {"request_seconds": 0},
        {"retries": -1},
        {"touch_after_days": -1},
        {"secret_access_key": SECRET_KEY},
        {"access_key_id": "AK"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    provider = stoker_blob_stores()["s3"]
    with pytest.raises(msgspec.ValidationError):
        convert(provider, SMALLEST["s3"] | wrong)


def test_settings_show_no_secret(tmp_path: Path) -> None:
    # What `stoker config` prints are the settings as they are.
    for offers in (stoker_blob_stores(), stoker_action_caches()):
        for kind, provider in offers.items():
            shown = msgspec.to_builtins(convert(provider, SMALLEST[kind]))
            assert not {key for key in shown if "secret" in key or key.endswith(("key", "token"))}


def secret_settings(kind: str, folder: Path, endpoint: str) -> dict[str, Any]:
    plain = {**SMALLEST[kind], "endpoint": endpoint, "retries": 0}
    secret = folder / "secret"
    if kind == "gcs":
        secret.write_text(
            '{"disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": "",'
            f' "gcs_base_url": "{endpoint}"}}'
        )
        return {**plain, "service_account_file": str(secret)}
    secret.write_text(base64.b64encode(SECRET_KEY.encode()).decode() + "\n")
    return {**plain, "account_key_file": str(secret)}


@pytest.mark.parametrize("kind", ["gcs", "azure"])
async def test_other_providers_answers(kind: str, proxy: Proxy, tmp_path: Path) -> None:
    # STO-04, as far as it goes without a server of the kind: what each says of absent objects,
    # absent buckets, refusals and bad days.
    provider = stoker_blob_stores()[kind]
    plain = secret_settings(kind, tmp_path, proxy.endpoint)
    digest, data = blob("anywhere", 10)
    proxy.fail_all(ABSENT[kind])
    async with provider.open(convert(provider, plain), context()) as store:
        assert isinstance(store, BlobStore)
        await assert_absent(store, digest)
        for fault in (
            Answer("404 Not Found", "NoSuchBucket" if kind == "gcs" else "ContainerNotFound"),
            Answer("403 Forbidden", "AccessDenied"),
            Answer("503 Service Unavailable", "ServerBusy"),
        ):
            proxy.fail_all(fault)
            with pytest.raises(Unavailable):
                await store.find_missing([digest])
            with pytest.raises(Unavailable):
                await write(store, digest, data)


@pytest.mark.parametrize("kind", ["gcs", "azure"])
async def test_other_providers_at_opening(kind: str, proxy: Proxy, tmp_path: Path) -> None:
    provider = stoker_action_caches()[kind]
    settings = convert(provider, secret_settings(kind, tmp_path, proxy.endpoint))
    missing = "NoSuchBucket" if kind == "gcs" else "ContainerNotFound"
    name = "gs://b" if kind == "gcs" else "az://a/c"
    for fault in (Answer("404 Not Found", missing), Answer("403 Forbidden", "AccessDenied")):
        proxy.fail_all(fault)
        with pytest.raises(ConfigurationError, match=name) as caught:
            async with provider.open(settings, context()):
                pytest.fail("a bucket that refuses was opened")
        assert SECRET_KEY not in str(caught.value)


async def test_other_providers_action_caches(proxy: Proxy, tmp_path: Path) -> None:
    proxy.fail_all(ABSENT["azure"])
    provider = stoker_action_caches()["azure"]
    settings = convert(provider, secret_settings("azure", tmp_path, proxy.endpoint))
    digest, _ = blob("an action", 10)
    async with provider.open(settings, context()) as cache:
        assert await cache.get(ActionKey("", digest)) is None


@pytest.mark.parametrize("kind", ["gcs", "azure"])
async def test_unusable_secret(kind: str, tmp_path: Path) -> None:
    provider = stoker_blob_stores()[kind]
    plain = secret_settings(kind, tmp_path, "http://127.0.0.1:1")
    (tmp_path / "secret").write_text("not base64, nor JSON: " + SECRET_KEY)
    with pytest.raises(ConfigurationError, match=r"(gs|az)://") as caught:
        async with provider.open(convert(provider, plain), context()):
            pytest.fail("an unusable secret was accepted")
    assert SECRET_KEY not in str(caught.value)
