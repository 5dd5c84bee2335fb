"""A server without root's rights, and with no control group that it may write."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
import trio

from tests.unprivileged import NOBODY, unprivileged_python


@pytest.fixture
def python() -> tuple[list[str], dict[str, str]]:
    # Not in the test itself: what skips an async test does not say why.
    return unprivileged_python("trio", "stoker.spi", "stoker_exec_local")


async def test_it_runs_and_bounds_what_it_can(
    python: tuple[list[str], dict[str, str]],
) -> None:  # ISO-06
    command, environment = python
    program = Path(__file__).with_name("unprivileged.py")
    # Below the folder of a test another user may not go.
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "program.py"
        script.write_text(program.read_text())
        folder = Path(name) / "folder"
        folder.mkdir()
        for path in (Path(name), script, folder):
            os.chown(path, NOBODY, NOBODY)
        done = await trio.run_process(
            [*command, str(script), str(folder)], env=environment, cwd=name, capture_stdout=True
        )
    told = json.loads(done.stdout)
    assert told["fine"] == 3
    assert told["processes"] != 0
    assert told["memory"] != 0
    assert "all" not in told["stdout"]
    degraded = [text for text in told["enforcement"] if text.startswith("degraded")]
    assert any("RLIMIT_DATA" in text for text in degraded)
    assert any("RLIMIT_NPROC" in text for text in degraded)
