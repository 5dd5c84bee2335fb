"""Two action caches as one: a near one that is quick, and a far one that is shared."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import structlog

from stoker import spi
from stoker.errors import ConfigurationError, StokerError, Unavailable
from stoker.spi import ActionCache, ActionKey, ActionResult

log = structlog.get_logger(__name__)


class TieredActionCacheSettings(spi.Settings, frozen=True):
    """Settings of the action cache kind ``tiered``."""

    near: spi.ActionCacheName
    """Asked first, and filled with what is found in the far one."""
    far: spi.ActionCacheName
    writes: Literal["through", "near-only"] = "through"
    """through: a result is filed when both hold it. near-only: the far one is never written to."""


class TieredActionCache(ActionCache):
    """`near` in front of `far`. Calls may overlap freely.

    A result that `near` holds is served, also where another server has filed a newer one in `far`
    since. A failing `far` is never an absent result: its error is raised as it is. Its entries
    are listed and removed in the two caches themselves.
    """

    def __init__(self, near: ActionCache, far: ActionCache, *, writes_far: bool = True) -> None:
        self._near = near
        self._far = far
        self._writes_far = writes_far

    async def get(self, key: ActionKey) -> ActionResult | None:
        trouble: Unavailable | None = None
        try:
            if (result := await self._near.get(key)) is not None:
                return result
        except Unavailable as error:
            trouble = error
        result = await self._far.get(key)
        if trouble is not None:
            if result is None:
                raise trouble
        elif result is not None:
            await self._fill(key, result)
        return result

    async def update(self, key: ActionKey, result: ActionResult) -> None:
        # The far one first: should it fail, the near one does not serve what others cannot see.
        if self._writes_far:
            await self._far.update(key, result)
        await self._near.update(key, result)

    async def _fill(self, key: ActionKey, result: ActionResult) -> None:
        try:
            await self._near.update(key, result)
        except StokerError as error:
            log.debug("result not kept near", action=str(key.action), reason=str(error))


@asynccontextmanager
async def open_tiered_action_cache(
    settings: TieredActionCacheSettings, context: spi.Context
) -> AsyncIterator[ActionCache]:
    """Open the action cache of the kind ``tiered``."""
    if settings.near == settings.far:
        raise ConfigurationError([f"near and far are both {settings.near!r}"])
    yield TieredActionCache(
        context.action_cache(settings.near),
        context.action_cache(settings.far),
        writes_far=settings.writes == "through",
    )
