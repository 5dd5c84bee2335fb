"""The laws of sandboxes, over the real local strategy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stoker import spi
from stoker.testing.sandbox_laws import IsolationLaws, SandboxLaws
from stoker_exec_local import LocalStrategy
from stoker_sandbox_bubblewrap import stoker_sandboxes


@pytest.fixture(params=["as-laid", "overlay"])
async def sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[spi.Sandbox]:
    provider = stoker_sandboxes()["bubblewrap"]
    settings = provider.settings(inputs=request.param)
    async with provider.open(settings, spi.Context("box", tmp_path, {})) as opened:
        yield opened


@pytest.fixture
def strategy() -> spi.ExecutionStrategy:
    return LocalStrategy()


class TestSandbox(SandboxLaws):
    """What holds within any sandbox."""


class TestIsolation(IsolationLaws):
    """What this one keeps apart."""
