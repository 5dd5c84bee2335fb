"""What the engine answers breaks off: anywhere, and whatever was asked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from stoker import spi
from stoker.testing.execution_strategy_laws import outcome, run

from .conftest import OpenStrategy
from .cutting_proxy import open_proxy
from .places import place_at
from .registry import open_registry


@pytest.fixture
def socket_path() -> Iterator[Path]:
    # Not below the folders of tests: the names of sockets are short.
    with tempfile.TemporaryDirectory(prefix="sc-") as folder:
        yield Path(folder, "socket")


async def test_a_pull_that_breaks_off_fails_and_harms_nobody_else(  # ISO-02
    open_docker: OpenStrategy, endpoint: str, socket_path: Path
) -> None:
    with open_registry() as registry:
        name = registry.publish("tools/cut:1", "whole")
        properties = {"container-image": (name,)}
        async with (
            open_proxy(socket_path, endpoint) as proxy,
            open_docker(endpoint=proxy.endpoint, pull="missing") as strategy,
        ):
            for after_bytes in (0, 10, 250, 300):
                proxy.cut("/images/create", after_bytes)
                # The engine may have it all the same, and then it is there the next time.
                with suppress(spi.Unavailable):
                    await strategy.identify_surroundings(properties)
            assert proxy.cuts
            assert "sha256:" in await strategy.identify_surroundings(properties)


async def test_outputs_that_break_off_are_not_taken_for_whole(
    open_docker: OpenStrategy, endpoint: str, socket_path: Path, tmp_path: Path
) -> None:
    async with (
        open_proxy(socket_path, endpoint) as proxy,
        open_docker(endpoint=proxy.endpoint, keep_containers="always") as strategy,
    ):
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        long = place.script("i=0; while [ $i -lt 60 ]; do echo $i; sleep 0.02; i=$((i+1)); done")
        for after_bytes in (0, 50, 130, 200, 300):
            proxy.cut("Upgrade: tcp", after_bytes)
            with pytest.raises(spi.Unavailable):
                await run(strategy, long)
        assert proxy.cuts == 5
        assert (await run(strategy, long)).code == 0
        assert len(place.stdout.read_text().split()) == 60


@pytest.mark.parametrize("asked", ["/containers/create", "/start", "/json", "/exec "])
async def test_a_call_that_breaks_off_fails_as_unavailable_or_not_at_all(
    open_docker: OpenStrategy, endpoint: str, socket_path: Path, tmp_path: Path, asked: str
) -> None:
    async with (
        open_proxy(socket_path, endpoint) as proxy,
        open_docker(endpoint=proxy.endpoint, keep_containers="always") as strategy,
    ):
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        for after_bytes in (0, 7, 60, 150, 250):
            proxy.cut(asked, after_bytes)
            with trio.fail_after(60), suppress(spi.Unavailable):
                assert (await outcome(strategy, place.script("exit 3"))).code == 3
            assert (await outcome(strategy, place.script("exit 3"))).code == 3
