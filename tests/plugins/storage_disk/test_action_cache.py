"""What the disk action cache does beyond the laws: files, damage and names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from stoker import spi
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import SHA256, ActionCache, ActionKey, ActionResult, Unavailable
from stoker_storage_disk import DiskActionCacheSettings, stoker_action_caches

KEY = ActionKey("main", SHA256.digest(b"an action"))
RESULT = ActionResult(
    output_files=[reapi.OutputFile(path=f"{number}") for number in range(3)], stdout_raw=b"hello"
)


def open_cache(path: Path) -> AbstractAsyncContextManager[ActionCache]:
    context = spi.Context("mine", Path("/nonexistent"), {})
    return stoker_action_caches()["disk"].open(DiskActionCacheSettings(path=str(path)), context)


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[ActionCache]:
    async with open_cache(tmp_path) as cache:
        yield cache


def entries(folder: Path) -> list[Path]:
    return [path for path in (folder / "sha256").rglob("*") if path.is_file()]


async def test_results_outlive_the_cache(tmp_path: Path) -> None:
    async with open_cache(tmp_path) as cache:
        await cache.update(KEY, RESULT)
    async with open_cache(tmp_path) as cache:
        assert await cache.get(KEY) == RESULT


async def test_empty_result_is_told_from_no_result(cache: ActionCache) -> None:
    await cache.update(KEY, ActionResult())
    assert await cache.get(KEY) == ActionResult()


async def test_namespaces_stay_inside_of_the_folder(tmp_path: Path) -> None:
    # SEC-05
    folder = tmp_path / "cache"
    async with open_cache(folder) as cache:
        for name in ("../../outside", "/tmp/outside", "..", "\udcff", "a" * 5_000):
            await cache.update(ActionKey(name, KEY.action), RESULT)
            assert await cache.get(ActionKey(name, KEY.action)) == RESULT
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert len(entries(folder)) == 5
    names = {path.name for path in folder.iterdir() if not path.name.startswith("index.sqlite")}
    assert names == {"incoming", "lock", "partial", "sha256"}


async def test_any_damage_counts_as_absent_and_is_removed(
    cache: ActionCache, tmp_path: Path
) -> None:
    # ACG-11: cut short anywhere, also where what is left would parse; or with one byte changed.
    await cache.update(KEY, RESULT)
    (file,) = entries(tmp_path)
    whole = file.read_bytes()
    damaged = [whole[:end] for end in range(len(whole))]
    damaged += [
        whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :]
        for index in range(len(whole))
    ]
    damaged.append(whole + b"\0")
    damaged.append(RESULT.SerializeToString())
    for data in damaged:
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        with capture_logs() as logs:
            assert await cache.get(KEY) is None
        assert [entry["log_level"] for entry in logs] == ["warning"]
        assert not file.exists()
    await cache.update(KEY, RESULT)
    assert await cache.get(KEY) == RESULT


async def test_trouble_is_no_miss(cache: ActionCache, tmp_path: Path) -> None:
    # STO-04
    await cache.update(KEY, RESULT)
    (file,) = entries(tmp_path)
    file.unlink()
    file.parent.rmdir()
    file.parent.write_bytes(b"in the way")
    with pytest.raises(Unavailable, match=KEY.action.hash):
        await cache.get(KEY)
    with pytest.raises(Unavailable, match=KEY.action.hash):
        await cache.update(KEY, RESULT)
    assert list((tmp_path / "incoming").iterdir()) == []
