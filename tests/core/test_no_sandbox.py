"""The built-in sandbox ``none`` keeps the laws of all sandboxes, and isolates nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stoker import builtin, spi
from stoker.testing.sandbox_laws import SandboxLaws
from stoker_exec_local import stoker_execution_strategies


class TestNoSandbox(SandboxLaws):
    """The laws of stoker.testing that are about what is started."""

    @pytest.fixture
    async def sandbox(self, tmp_path: Path) -> AsyncIterator[spi.Sandbox]:
        provider = builtin.stoker_sandboxes()["none"]
        async with provider.open(provider.settings(), spi.Context("none", tmp_path, {})) as opened:
            yield opened

    @pytest.fixture
    async def strategy(self, tmp_path: Path) -> AsyncIterator[spi.ExecutionStrategy]:
        provider = stoker_execution_strategies()["local"]
        async with provider.open(provider.settings(), spi.Context("local", tmp_path, {})) as opened:
            yield opened
