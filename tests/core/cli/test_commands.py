"""init, check, config, plugins and serve, as they are typed."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from stoker.cli import main

# Examples, or what depends on the machine or on others.
NOT_DEFAULTS = tuple(
    f"# {each}"
    for each in (
        *("tls_", "metrics_listen", "max_bytes", "min_life", "slots", "cpus", "memory_bytes"),
        *("worker_protocols", "high_priority", "default_memory", "max_memory", "gpus"),
        *("max_queued_per", "max_in_flight_per", "max_streams_per", "[scheduler.properties]"),
    )
)


class Terminal:
    """Runs commands in a folder of its own, without a TOML file or state from elsewhere."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as info:
            main(arguments)
        output = self._capsys.readouterr()
        return int(info.value.code or 0), output.out, output.err


@pytest.fixture
def stoker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STOKER_STATE", str(tmp_path / "state"))
    return Terminal(capsys)


def test_init_writes_what_check_accepts(stoker: Terminal, tmp_path: Path) -> None:
    assert stoker("init")[0] == 0
    code, out, err = stoker("check")
    assert (code, err) == (0, "")
    assert "stoker.toml: everything can be opened" in out
    assert "ok     [blob_stores.main]" in out
    code, _, err = stoker("init")
    assert (code, "is there already" in err) == (1, True)
    assert stoker("init", "--force")[0] == 0


def test_what_init_shows_commented_out_is_the_default(stoker: Terminal, tmp_path: Path) -> None:
    stoker("init")
    code, effective, _ = stoker("config")
    assert code == 0
    text = (tmp_path / "stoker.toml").read_text()
    shown = [line for line in text.splitlines() if not line.startswith(NOT_DEFAULTS)]
    whole = re.sub(r"^# (?=\[|\w+ = )", "", "\n".join(shown), flags=re.MULTILINE)
    (tmp_path / "whole.toml").write_text(whole)
    said = tomllib.loads(stoker("config", "--config", str(tmp_path / "whole.toml"))[1])
    defaults = tomllib.loads(effective)
    for table in ("server", "log", "scheduler", "history", "log_streams"):
        assert tomllib.loads(whole)[table]
        assert said[table] == defaults[table]
    for key in ("client_updates", "check_actions", "cache_failures", "max_tree_bytes"):
        assert said["instances"][""][key] == defaults["instances"][""][key]
    local = tomllib.loads(stoker("config", "--config", str(with_executor(tmp_path, text)))[1])
    for table in ("limits", "workers"):
        assert said["executors"]["local"][table] == local["executors"]["local"][table]


def with_executor(folder: Path, text: str) -> Path:
    file = folder / "other.toml"
    file.write_text(text + '\n[executors.local]\nstrategy = "local"\n')
    return file


def test_config_prints_what_config_reads(stoker: Terminal, tmp_path: Path) -> None:
    code, printed, _ = stoker("config", "--local-execution")
    assert code == 0
    assert "[executors.local]" in printed
    (tmp_path / "stoker.toml").write_text(printed)
    again = stoker("config")[1]
    assert tomllib.loads(again) == tomllib.loads(printed)


def test_without_a_word_nothing_is_executed(stoker: Terminal) -> None:  # ISO-01
    assert "executors" not in tomllib.loads(stoker("config")[1])


def test_check_tells_all_that_is_wrong(stoker: Terminal, tmp_path: Path) -> None:
    (tmp_path / "stoker.toml").write_text("[server]\nlisen = 1\n[log]\nlevel = 2\n")
    code, _, err = stoker("check")
    assert code == 1
    assert [line.partition(":")[0] for line in err.splitlines()] == ["Error"] * 3


def test_check_tells_how_executors_isolate(stoker: Terminal, tmp_path: Path) -> None:  # ISO-01
    stoker("init")
    with (tmp_path / "stoker.toml").open("a") as file:
        file.write(
            '\n[executors.local]\nstrategy = "local"\nlimits = { default_memory_bytes = "1GiB" }\n'
        )
    code, out, err = stoker("check")
    assert (code, err) == (0, "")
    assert "       [executors.local]\n" in out
    assert "memory: what an action asks for; 1073741824 bytes where it asks for none" in out
    assert "inputs are copies: neither strategy nor sandbox keeps actions from changing" in out


def test_check_opens_every_service(stoker: Terminal, tmp_path: Path) -> None:
    stoker("init")
    text = (tmp_path / "stoker.toml").read_text()
    (tmp_path / "file").touch()
    (tmp_path / "stoker.toml").write_text(text.replace("stoker-data/cas", "file/cas"))
    code, out, err = stoker("check")
    assert code == 1
    assert "failed [blob_stores.main]" in out
    assert "ok     [action_caches.main]" in out
    assert "[blob_stores.main] cannot be opened" in err


def test_plugins(stoker: Terminal) -> None:
    code, out, _ = stoker("plugins")
    assert code == 0
    assert "stoker-storage-disk" in out
    rows = json.loads(stoker("plugins", "--json")[1])
    kinds = {(row["service"], row["kind"], row["package"]) for row in rows}
    assert ("execution strategy", "local", "stoker-exec-local") in kinds
    assert ("worker protocol", "json", "stoker-worker-json") in kinds
    assert ("sandbox", "none", "stoker") in kinds


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["check", "--config", "absent.toml"], 1, "cannot read absent.toml"),
        (["serve", "--listen", "0.0.0.0:1"], 1, "open to other machines without TLS"),
        (["serve", "--config", "x.toml", "--local-execution"], 1, "built-in defaults"),
        (["srve"], 2, "No such command"),
        (["run", "--timeout", "nan", "--", "true"], 2, "not a number of seconds"),
        (["run", "--timeout", "1e300", "--", "true"], 2, "--timeout"),
        (["run", "--env", "A=\udcff", "--", "true"], 2, "is not valid UTF-8"),
        (["cas", "find", f"{'0' * 64}/{'9' * 30}"], 2, "is not of the form HASH/SIZE"),
        (["init", "absent/stoker.toml"], 1, "absent/stoker.toml: No such file or directory"),
        (["serve", "--prt"], 2, "No such option"),
    ],
)
def test_mistakes_are_sentences(
    stoker: Terminal, arguments: list[str], code: int, said: str
) -> None:
    actual, _, err = stoker(*arguments)
    assert (actual, said in err, "Traceback" in err) == (code, True, False)


def test_an_address_in_use_is_named(
    stoker: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as (process, address):
        monkeypatch.setenv("STOKER_STATE", str(tmp_path / "another"))
        code, _, err = stoker("serve", "--listen", address)
        assert code == 1
        assert address in err
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_state_in_use_is_named(stoker: Terminal, tmp_path: Path) -> None:
    with serving(tmp_path):
        code, _, err = stoker("serve", "--listen", "127.0.0.1:0")
        assert code == 1
        assert str(tmp_path / "state") in err


@pytest.mark.parametrize(("terminal", "is_json"), [(False, True), (True, False)])
def test_logs_are_for_whoever_reads_them(tmp_path: Path, terminal: bool, is_json: bool) -> None:
    reading, writing = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-m", "stoker", "serve", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        command, stderr=writing, env={**os.environ, "STOKER_STATE": str(tmp_path)}
    )
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as log:
        first = b""
        while not first.endswith(b"\n"):
            first += log.read(1)
        process.terminate()
        assert b"serving" in first
        assert first.startswith(b"{") == is_json
        if is_json:
            assert json.loads(first)["event"] == "serving"
        while read_some(log):
            pass
    assert process.wait(30) == 0


def read_some(log: io.FileIO) -> bytes:
    try:
        return log.read(1000)
    except OSError:  # how a terminal tells that nobody writes to it any more
        return b""


class serving:  # noqa: N801 - reads as a clause
    """A server process on its embedded default."""

    def __init__(self, folder: Path) -> None:
        self._port_file = folder / "address"
        command = [sys.executable, "-m", "stoker", "serve", "--listen", "127.0.0.1:0"]
        self._process = subprocess.Popen(
            [*command, "--port-file", str(self._port_file)], stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> tuple[subprocess.Popen[bytes], str]:
        while not self._port_file.exists():
            try:
                self._process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError("the server did not come up")
        return self._process, self._port_file.read_text().strip()

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
