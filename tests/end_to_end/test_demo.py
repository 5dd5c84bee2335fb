"""`make demo`, without the make: the program that it runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "examples" / "demo"
MODULES = 6
LIMIT_SECONDS = 300


def command(*options: str) -> list[str]:
    return [sys.executable, str(DEMO), *options]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder)}


def test_three_passes_end_and_agree(tmp_path: Path) -> None:
    ended = subprocess.run(
        command("--modules", str(MODULES)),
        # A configuration of the user's, which the demo is to leave alone.
        cwd=_folder_with_configuration(tmp_path),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    for title in ("one-shot processes", "persistent workers", "action cache"):
        row = rf"{title} +\D +{MODULES} \D +\d+\.\d\d s \D +\d+ ms \D +\d+\.\d x"
        assert re.search(row, ended.stdout), ended.stdout
    assert re.search(rf"[12] worker process(es)? served {MODULES} requests", ended.stdout)
    assert f"The {MODULES} reports of each pass are the same" in ended.stdout
    assert "What to type next" in ended.stdout
    assert "serve --local-execution" in ended.stdout
    assert _left_in(tmp_path) == []


def test_a_signal_ends_it_cleanly(tmp_path: Path) -> None:
    with subprocess.Popen(
        command(), env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            server = _wait_for_server(tmp_path, process)
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=LIMIT_SECONDS)
        finally:
            process.terminate()
    assert process.returncode == 130
    assert "Interrupted" in said
    assert not Path(f"/proc/{server}").exists()
    assert _left_in(tmp_path) == []


def test_a_lost_server_is_told_in_a_sentence(tmp_path: Path) -> None:
    with subprocess.Popen(
        command(),
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            os.kill(_wait_for_server(tmp_path, process), signal.SIGKILL)
            said, _ = process.communicate(timeout=LIMIT_SECONDS)
        finally:
            process.terminate()
    assert process.returncode == 1
    # Whichever is noticed first: that the process has ended, or that it does not answer.
    assert re.search(r"The demo failed: .*server (has ended|at \S+ is not available)", said)
    assert "Traceback" not in said
    assert _left_in(tmp_path) == []


def _folder_with_configuration(folder: Path) -> Path:
    (folder / "home").mkdir()
    (folder / "home" / "stoker.toml").write_text("[no_such_table]\n")
    return folder / "home"


def _wait_for_server(folder: Path, demo: subprocess.Popen[str]) -> int:
    """The process of the server, once it serves."""
    give_up = time.monotonic() + LIMIT_SECONDS
    while not list(folder.glob("stoker-demo-*/address")):
        assert demo.poll() is None, "the demo has ended before its server served"
        assert time.monotonic() < give_up
        time.sleep(0.02)  # there is nothing to wait on but the file
    # trio starts processes from a thread of its own.
    threads = Path(f"/proc/{demo.pid}/task").glob("*/children")
    (server,) = {child for thread in threads for child in thread.read_text().split()}
    return int(server)


def _left_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != "home"]
