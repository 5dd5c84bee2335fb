"""A near action cache in front of a far one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from stoker import spi
from stoker.errors import ConfigurationError, Unavailable
from stoker.spi import SHA256, ActionCache, ActionKey, ActionResult
from stoker.storage.memory import MemoryActionCache
from stoker.storage.tiered_actions import TieredActionCacheSettings, open_tiered_action_cache
from stoker.testing.action_cache_laws import ActionCacheLaws

KEY = ActionKey("main", SHA256.digest(b"an action"))
RESULT = ActionResult(stdout_raw=b"hello")


class Fragile(MemoryActionCache):
    """Down when told to be."""

    down = False

    async def get(self, key: ActionKey) -> ActionResult | None:
        self._check()
        return await super().get(key)

    async def update(self, key: ActionKey, result: ActionResult) -> None:
        self._check()
        await super().update(key, result)

    def _check(self) -> None:
        if self.down:
            raise Unavailable("it is down")


def open_tiered(
    near: ActionCache, far: ActionCache, **settings: Any
) -> AbstractAsyncContextManager[ActionCache]:
    context = spi.Context("both", Path(), {"action_caches": {"near": near, "far": far}})
    return open_tiered_action_cache(
        TieredActionCacheSettings(near="near", far="far", **settings), context
    )


class TestThrough(ActionCacheLaws):
    @pytest.fixture
    async def cache(self) -> AsyncIterator[ActionCache]:
        async with open_tiered(MemoryActionCache(), MemoryActionCache()) as cache:
            yield cache


class TestNearOnly(ActionCacheLaws):
    @pytest.fixture
    async def cache(self) -> AsyncIterator[ActionCache]:
        async with open_tiered(
            MemoryActionCache(), MemoryActionCache(), writes="near-only"
        ) as cache:
            yield cache


async def test_result_from_far_is_kept_near() -> None:
    near, far = MemoryActionCache(), Fragile()
    async with open_tiered(near, far) as cache:
        await far.update(KEY, RESULT)
        assert await cache.get(KEY) == RESULT
        far.down = True
        assert await cache.get(KEY) == RESULT


@pytest.mark.parametrize(("writes", "filed"), [("through", RESULT), ("near-only", None)])
async def test_where_updates_go(writes: str, filed: ActionResult | None) -> None:
    near, far = MemoryActionCache(), MemoryActionCache()
    async with open_tiered(near, far, writes=writes) as cache:
        await cache.update(KEY, RESULT)
    assert await near.get(KEY) == RESULT
    assert await far.get(KEY) == filed


async def test_failing_far_cache_is_no_miss() -> None:
    # STO-04
    near, far = MemoryActionCache(), Fragile()
    far.down = True
    async with open_tiered(near, far) as cache:
        with pytest.raises(Unavailable):
            await cache.get(KEY)
        with pytest.raises(Unavailable):
            await cache.update(KEY, RESULT)
    assert await near.get(KEY) is None


async def test_near_trouble_is_survived_where_far_can() -> None:
    near, far = Fragile(), MemoryActionCache()
    await far.update(KEY, RESULT)
    near.down = True
    async with open_tiered(near, far) as cache:
        assert await cache.get(KEY) == RESULT
        with pytest.raises(Unavailable):
            await cache.get(ActionKey("other", KEY.action))


async def test_near_without_room_is_passed_over() -> None:
    far = MemoryActionCache()
    await far.update(KEY, RESULT)
    async with open_tiered(MemoryActionCache(max_bytes=1), far) as cache:
        assert await cache.get(KEY) == RESULT


async def test_a_cache_is_not_its_own_far_side() -> None:
    context = spi.Context("both", Path(), {"action_caches": {"near": MemoryActionCache()}})
    settings = TieredActionCacheSettings(near="near", far="near")
    with pytest.raises(ConfigurationError):
        async with open_tiered_action_cache(settings, context):
            pass
