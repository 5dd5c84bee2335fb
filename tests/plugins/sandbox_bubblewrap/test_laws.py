"""The laws of sandboxes, over the real local strategy."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import Workplace
from stoker.testing.isolation_laws import IsolationLaws
from stoker.testing.sandbox_laws import SandboxLaws, make_place

OpenBox = Callable[..., AbstractAsyncContextManager[spi.Sandbox]]

NOBODY = spi.ProcessUser(65534, 65534)


@pytest.fixture(params=["as-laid", "overlay"])
async def sandbox(request: pytest.FixtureRequest, open_box: OpenBox) -> AsyncIterator[spi.Sandbox]:
    async with open_box(inputs=request.param) as opened:
        yield opened


class TestSandbox(SandboxLaws):
    """What holds within any sandbox."""


class TestIsolation(IsolationLaws):
    """What this one keeps apart."""


class AsNobody(spi.ExecutionStrategy):
    """Starts processes of another user, as a server that is root may."""

    user = NOBODY

    def __init__(self, strategy: spi.ExecutionStrategy) -> None:
        self._strategy = strategy

    def start(self, spec: spi.ProcessSpec) -> AbstractAsyncContextManager[spi.Process]:
        uid, gid = NOBODY
        drop = ("/usr/bin/setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--")
        return self._strategy.start(replace(spec, argv=(*drop, *spec.argv)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes of other users")
class TestAsAnotherUser(SandboxLaws, IsolationLaws):
    """The same where bubblewrap is started by a user that is not the server's."""

    @pytest.fixture
    def strategy(self, strategy: spi.ExecutionStrategy) -> spi.ExecutionStrategy:
        return AsNobody(strategy)

    @pytest.fixture
    def home(self) -> Iterator[Path]:
        # The folders of pytest are closed to other users.
        folder = Path(tempfile.mkdtemp())
        folder.chmod(0o755)
        yield folder
        shutil.rmtree(folder)

    @pytest.fixture
    def new_place(self, home: Path) -> Callable[[str], Workplace]:
        def make_for_user(name: str) -> Workplace:
            place = make_place(home, name)
            for path in (place.root, place.spec("true").temporary_directory):
                os.chown(path, *NOBODY)
            return place

        return make_for_user
