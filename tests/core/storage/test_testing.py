"""The test kit does not drag pytest into a server."""

from __future__ import annotations

import subprocess
import sys


def test_only_the_laws_import_pytest() -> None:
    code = "import sys, stoker.testing, stoker.storage.memory; assert 'pytest' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
