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


async def test_it_runs_and_bounds_what_it_can() -> None:  # ISO-06
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("only root can give its rights up")
    command = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", PYTHON]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.defpath}
    probe = await trio.run_process(
        [*command, "-c", "import trio, stoker.spi, stoker_exec_local"],
        env=environment,
        check=False,
        stderr=subprocess.DEVNULL,
    )
    if probe.returncode:
        pytest.skip("no Python can be had that nobody may run")
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
