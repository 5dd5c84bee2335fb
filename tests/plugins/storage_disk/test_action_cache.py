"""What the disk action cache does beyond the laws: files, damage and names."""

from __future__ import annotations

import hashlib
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
        # As a file that nobody has filed is not looked for.
        await cache.update(KEY, RESULT)
        file.unlink()
        file.write_bytes(data)
        with capture_logs() as logs:
            assert await cache.get(KEY) is None
        # Besides, the index may tell that it has been filled.
        levels = [entry["log_level"] for entry in logs]
        assert levels.count("warning") == 1
        assert set(levels) <= {"info", "warning"}
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


# --- listing and removing


async def keys_of(cache: ActionCache) -> list[ActionKey]:
    async with cache.open_entries() as entries:
        return [key async for key in entries]


async def test_entries_are_listed_with_their_namespaces(tmp_path: Path) -> None:
    names = ("", "main", "a/b", "../x", "ä", "\udcff", "n" * 1_000)
    keys = {
        ActionKey(name, SHA256.digest(b"%d" % number)) for name in names for number in range(20)
    }
    async with open_cache(tmp_path) as cache:
        assert await keys_of(cache) == []
        for key in keys:
            await cache.update(key, RESULT)
            await cache.update(key, ActionResult())
    async with open_cache(tmp_path) as cache:
        found = await keys_of(cache)
        assert len(found) == len(keys)
        assert {*found} == keys


async def test_listing_passes_over_damage(cache: ActionCache, tmp_path: Path) -> None:
    other = ActionKey("other", KEY.action)
    await cache.update(KEY, RESULT)
    (file,) = entries(tmp_path)
    await cache.update(other, RESULT)
    file.unlink()
    file.write_bytes(b"damaged")
    (tmp_path / "sha256" / "notes.txt").write_text("no entry")
    assert await keys_of(cache) == [other]
    assert not file.exists()


async def test_entries_are_removed(tmp_path: Path) -> None:
    keys = [ActionKey("main", SHA256.digest(b"%d" % number)) for number in range(10)]
    async with open_cache(tmp_path) as cache:
        for key in keys:
            await cache.update(key, RESULT)
        await cache.remove([*keys[:4], ActionKey("elsewhere", keys[5].action)])
        assert {*await keys_of(cache)} == {*keys[4:]}
        assert await cache.get(keys[0]) is None
        await cache.remove(keys)
        await cache.remove([])
        assert await keys_of(cache) == []
        await cache.update(keys[0], RESULT)
        assert await cache.get(keys[0]) == RESULT


async def test_entries_of_the_first_format_are_dropped(cache: ActionCache, tmp_path: Path) -> None:
    await cache.update(KEY, RESULT)
    (file,) = entries(tmp_path)
    message = RESULT.SerializeToString()
    file.unlink()
    file.write_bytes(b"stoker action result 1\n" + hashlib.sha256(message).digest() + message)
    assert await cache.get(KEY) is None
    assert not file.exists()
