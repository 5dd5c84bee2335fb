"""A server without root's rights, and with no control group that it may write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio

NOBODY = 65534
PYTHON = "/usr/bin/python3"  # ours may lie where nobody else may look


@pytest.fixture
def unprivileged() -> tuple[list[str], dict[str, str]]:
    """How a Python that may do nothing is started: its command line and environment."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("only root can give its rights up")
    command = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", PYTHON]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.defpath}
    probe = subprocess.run(
        [*command, "-c", "import trio, stoker.spi, stoker_exec_local"],
        env=environment,
        check=False,
        stderr=subprocess.DEVNULL,
    )
    if probe.returncode:
        pytest.skip(f"{PYTHON}, which everybody may run, cannot use what is installed here")
    return command, environment


async def test_it_runs_and_bounds_what_it_can(
    unprivileged: tuple[list[str], dict[str, str]],
) -> None:  # ISO-06
    command, environment = unprivileged
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
