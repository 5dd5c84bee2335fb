"""A strategy whose processes are held to what their actions ask for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from stoker.action import Platform
from stoker.execution.settings import ExecutionSettings
from stoker.spi import ExecutionStrategy, Process, ProcessSpec, Tell


class Limited(ExecutionStrategy):
    """Starts processes by `strategy`, one-shots and persistent workers alike, with the limits that
    follow from their platform. Calls may overlap."""

    def __init__(self, strategy: ExecutionStrategy, settings: ExecutionSettings) -> None:
        self.keeps_containers = strategy.keeps_containers
        self._strategy = strategy
        self._settings = settings

    def enforcement(self) -> Sequence[str]:
        """What is asked of the strategy, and what that says of itself."""
        return (*self._settings.sentences(), *self._strategy.enforcement())

    async def identify_surroundings(self, properties: Platform) -> str:
        """The strategy's."""
        return await self._strategy.identify_surroundings(properties)

    async def prepare(self, properties: Platform, tell: Tell) -> None:
        """The strategy's."""
        await self._strategy.prepare(properties, tell)

    def start(self, spec: ProcessSpec) -> AbstractAsyncContextManager[Process]:
        """Raises InvalidRequest for a platform that asks for no amount of anything, and what
        the strategy raises."""
        limits = self._settings.process_limits(spec.properties)
        return self._strategy.start(replace(spec, limits=limits))
