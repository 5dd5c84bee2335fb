"""Folders for processes in containers, and runs there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import Workplace, run

keeping = pytest.mark.skipif(os.geteuid() != 0, reason="only root can keep containers")


def place_at(folder: Path, user: spi.ProcessUser | None) -> Workplace:
    """Folders like those of an action of an executor: two below the executor's own."""
    folder.mkdir(parents=True)
    place = Workplace(folder)
    place.give_to(user)
    return place


def asking(spec: spi.ProcessSpec, **properties: str) -> spi.ProcessSpec:
    """The same with platform properties; an underscore stands for a hyphen."""
    named: Mapping[str, tuple[str, ...]] = {
        name.replace("_", "-"): (value,) for name, value in properties.items()
    }
    return replace(spec, properties=named)


async def output(
    strategy: spi.ExecutionStrategy, place: Workplace, text: str, *arguments: str, **asked: str
) -> str:
    """What a shell writes that runs `text`, to stdout and stderr."""
    await run(strategy, asking(place.script(f"exec 2>&1; {text}", *arguments), **asked))
    return place.stdout.read_text()
