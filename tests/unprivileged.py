"""A Python without root's rights, for tests of servers that have none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

NOBODY = 65534
_PYTHON = "/usr/bin/python3"  # ours may lie where nobody else may look


def unprivileged_python(*modules: str) -> tuple[list[str], dict[str, str]]:
    """How one is started that can import `modules`: its command line and environment. Skips the
    test where it cannot be."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("only root can give its rights up")
    command = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", _PYTHON]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.defpath}
    probe = subprocess.run(
        [*command, "-c", f"import {', '.join(modules)}"],
        env=environment,
        check=False,
        stderr=subprocess.DEVNULL,
    )
    if probe.returncode:
        pytest.skip(f"{_PYTHON}, which everybody may run, cannot use what is installed here")
    return command, environment
