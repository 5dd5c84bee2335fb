"""The benchmarks run. What they measure depends on the machine, so nothing is said of figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..real_workers import programs

ROOT = Path(__file__).parents[2]


def is_there(tool: str) -> bool:
    """Whether a program of tests/real_workers can be measured."""
    return (programs.folder() / tool / "made-of").exists()


def starts_engines() -> bool:
    """Whether tests/docker_engine.py can start one."""
    return os.geteuid() == 0 and all(map(shutil.which, ("dockerd", "docker", "busybox")))


ROWS = {
    "unary call": 3,
    "read": 4,
    "write": 4,
    "find missing": 4,
    "action-cache hit": 2,
    "fresh root": 2,
    "the same again": 3,
    "cleaning after": 2,
    "`true` by": 3,
    "bare call": 3,
    "action of `true`": 12 if shutil.which("bwrap") else 6,
    "200 outputs": 1,
    "output of": 2,
    "warm ": 9,
    "container ": 5 if os.environ.get("DOCKER_HOST") or starts_engines() else 0,
    "javac": int(is_there("java-builder")),
    "tsc_wrapped": int(is_there("npm")),
    "Bazel compiles": int(shutil.which("bazel") is not None),
    "blobs of 4 KiB": 4,
    "blob of": 4,
    "start with": 1,
    "memory with": 1,
    "evict": 1,
    "S3": 6,
    "queue": 1,
    "action in and out": 1,
    "memory by": 2,
    "journal": 6,
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_everything_is_measured_and_told(tmp_path: Path) -> None:
    file = tmp_path / "figures" / "all.json"
    finished = run("--quick", "--json", str(file))
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    document = json.loads(file.read_text())
    assert document["quick"] is True
    assert document["machine"]["cores"] > 0
    rows = document["rows"]
    for row in rows:
        assert row["what"] in finished.stdout
        assert row["against"] in finished.stdout
        assert row["ratio"] > 0
        assert len(row["stoker"]) == len(row["other"]) >= 2
    told = {start: sum(row["what"].startswith(start) for row in rows) for start in ROWS}
    assert told == ROWS
    assert len(rows) == sum(ROWS.values())


def test_an_unknown_measurement_is_named(tmp_path: Path) -> None:
    finished = run("find_missing", "cold_fusion", "--json", str(tmp_path / "none.json"))
    assert finished.returncode == 2
    assert "cold_fusion" in finished.stderr
    assert not (tmp_path / "none.json").exists()
