"""A package that nobody here wrote, installed beside stoker: found, chosen by TOML, and used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .server_process import LOCAL, open_server_process

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_strategy"
NICE = LOCAL.replace('strategy = "local"', 'strategy = "polite"') + (
    '[strategies.polite]\nkind = "nice"\nincrement = 7\n'
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the example is installed, beside the stoker that is under test."""
    site = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, str(site), str(EXAMPLE)], check=True)
    return {**os.environ, "PYTHONPATH": str(site)}


def stoker(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "stoker", *arguments]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_it_is_listed_with_its_package(environment: dict[str, str]) -> None:
    rows = json.loads(stoker(environment, "plugins", "--json"))
    [row] = [row for row in rows if row["kind"] == "nice"]
    assert (row["service"], row["package"]) == ("execution strategy", "stoker-exec-nice")


def test_it_runs_an_action(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    with open_server_process(tmp_path / "server", NICE, environment) as server:
        command = ["run", "--server", server.address, "--input-root", str(tmp_path / "input")]
        assert stoker(environment, *command, "--", "nice").strip() == "7"
