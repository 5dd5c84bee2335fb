"""`stoker worker-check`, as it is typed, with programs of every kind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ODD = Path(__file__).with_name("odd_worker.py")
KIT = """
import sys
from threading import Event
from stoker.worker_kit import Request, serve

def work(request: Request) -> int:
    print(request.arguments, request.inputs)
    # Long enough for a cancel to find it.
    over = Event()
    request.on_cancel(over.set)
    over.wait(0.05)
    return int("--fail" in request.arguments)

serve(work, threads=8)
"""


class Checked(NamedTuple):
    """How a check ended."""

    code: int
    document: dict[str, Any]
    err: str

    def verdicts(self, protocol: str) -> dict[str, str]:
        findings = self.document["protocols"][protocol]["findings"]
        return {finding["check"]: finding["verdict"] for finding in findings}

    def sentence(self, protocol: str, check: str) -> str:
        findings = self.document["protocols"][protocol]["findings"]
        return next(str(each["sentence"]) for each in findings if each["check"] == check)


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


# Commands in a process that has no other children, which they would end; and in one process, as
# importing stoker takes longer than most of what is tried here.
TERMINAL = """
import contextlib, io, json, os, sys
from stoker.cli import main

answers = os.fdopen(os.dup(1), "w", buffering=1)
for line in sys.stdin:
    folder, *arguments = json.loads(line)
    os.chdir(folder)
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            main(["worker-check", *arguments])
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers)
"""


class Terminal:
    """Where `stoker worker-check` is typed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, folder: Path, *arguments: str) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(folder), *arguments]), file=self._process.stdin, flush=True)
        return Ended(*json.loads(self._process.stdout.readline()))

    def check(self, folder: Path, *arguments: str) -> Checked:
        ended = self.run(folder, "--json", *arguments)
        return Checked(ended.code, json.loads(ended.out), ended.err)

    def check_odd(self, folder: Path, *arguments: str, timeout: str = "3") -> Checked:
        line = [sys.executable, "-IS", str(ODD), *arguments]
        return self.check(folder, "--protocol", "json", "--timeout", timeout, "--", *line)


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Terminal(process)
        assert process.stdin is not None
        process.stdin.close()


def is_alive(pid: str) -> bool:
    """Whether it is more than what its parent has not looked at yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    (tmp_path / "work.py").write_text(KIT)
    (tmp_path / "params").write_text("from\na file\n")
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "a.txt").write_text("a")
    return tmp_path


def test_a_worker_of_the_kit_passes_everything(terminal: Terminal, kit: Path) -> None:
    checked = terminal.check(kit, "--", sys.executable, "work.py", "@params")
    assert (checked.code, checked.err, checked.document["usable"]) == (0, "", True)
    common = {"speaks", "stays", "request_id", "together", "multiplex", "parts", "large"}
    common |= {"failure", "cancel", "end"}
    assert checked.verdicts("proto") == dict.fromkeys(common, "good")
    assert checked.verdicts("json") == dict.fromkeys(common | {"fields", "newline"}, "good")
    assert checked.document["settings"] == {"multiplex": True, "cancellation": True}


def test_a_request_is_made_as_it_is_asked_for_and_its_failure_is_told(
    terminal: Terminal, kit: Path
) -> None:
    line = ["--protocol=proto", "--directory", str(kit), "--input=inputs", "--request-argument=x"]
    ended = terminal.run(
        Path("/"), *line, "--request-argument=--fail", "--", sys.executable, "work.py", "@params"
    )
    assert ended.code == 0
    assert "failed, with exit code 1" in ended.out
    assert "['from', 'a file', 'x', '--fail'] {'inputs/a.txt': b'ca978112ca1bbdc" in " ".join(
        ended.out.split()
    )
    assert "[[executors.NAME.workers.rules]]" in ended.out
    assert "cancellation = true" in ended.out


@pytest.mark.parametrize(
    ("fault", "traps", "words"),
    [
        ("sparse", set(), ("fields", "lack requestId, wasCancelled")),
        ("dies-of-failure", {"failure"}, ("failure", "it ended (exit code 3)")),
        ("wants-whole-requests", {"parts", "large"}, ("parts", "it ended (exit code 1)")),
        ("one-a-read", {"cancel"}, ("together", "gave no answer within")),
        ("cancel-is-a-request", {"cancel"}, ("cancel", "a request of its own")),
        ("wrong-number", {"request_id"}, ("request_id", "request 7 as number 8")),
        ("last-words", {"answers"}, ("answers", "1 answers more")),
        ("never-ends", {"end"}, ("end", "nor on SIGTERM")),
    ],
)
def test_each_trap_is_named_and_the_rest_goes_well(
    fault: str, traps: set[str], words: tuple[str, str], terminal: Terminal, tmp_path: Path
) -> None:
    checked = terminal.check_odd(tmp_path, fault)
    assert (checked.code, checked.err) == (0, "")
    assert checked.document["settings"].get("protocol") == "json"
    verdicts = checked.verdicts("json")
    assert {check for check, verdict in verdicts.items() if verdict == "trap"} == traps
    assert words[1] in checked.sentence("json", words[0])
    assert verdicts["newline"] == "note"
    if "cancel" not in traps:
        assert verdicts["cancel"] == "note"


@pytest.mark.parametrize(
    ("fault", "check", "words"),
    [
        ("hangs", "speaks", "no answer within 0.5 s"),
        ("once", "stays", "it ended (exit code 3)"),
        ("closes-stdout", "stays", "closed its stdout while its process lives"),
    ],
)
def test_what_is_no_worker_is_refused(
    fault: str, check: str, words: str, terminal: Terminal, tmp_path: Path
) -> None:
    checked = terminal.check_odd(tmp_path, fault, timeout="0.5" if fault == "hangs" else "5")
    assert (checked.code, checked.document["usable"]) == (1, False)
    assert checked.verdicts("json")[check] == "trap"
    assert words in checked.sentence("json", check)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["sh", "-c", "echo Hello; echo a word >&2; exit 7"], "no JSON object"),
        (["sh", "-c", "echo a word >&2; exit 7"], "it ended (exit code 7)"),
        (["sh", "-c", "echo a word >&2; kill -9 $$"], "it ended (signal 9)"),
        (["sh", "-c", "echo a word >&2; yes"], "no JSON object"),
        # Each byte of it is an answer in protobuf, and a right one.
        (["sh", "-c", "echo a word >&2; cat /dev/zero"], "1000 answers that nobody had asked for"),
    ],
)
def test_other_programs_are_told_by_what_they_do(
    line: list[str], words: str, terminal: Terminal, tmp_path: Path
) -> None:
    protocol = "proto" if "zero" in line[-1] else "json"
    ended = terminal.run(tmp_path, f"--protocol={protocol}", "--timeout=5", "--", *line)
    assert (ended.code, ended.err) == (1, "")
    assert words in " ".join(ended.out.split())
    assert "a word" in ended.out
    assert "cannot be used as a persistent worker" in ended.out


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (["--", "./absent"], 1, "./absent cannot be started: No such file or directory"),
        (["--", "/etc/passwd"], 1, "/etc/passwd cannot be started: Permission denied"),
        (["--", "true", "@absent"], 1, "absent: No such file or directory"),
        (["--", "@params"], 2, "no program is named"),
        (["--protocol=jsn", "--", "true"], 2, "did you mean 'json'?"),
        ([], 2, "Missing argument"),
        (["--input=/etc/hostname", "--", "true", "@params"], 2, "hostname is not below /"),
    ],
)
def test_what_cannot_be_tried_is_an_error(
    line: list[str], code: int, words: str, terminal: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "params").write_text("")
    ended = terminal.run(tmp_path, *line)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err
    assert "Traceback" not in ended.err


def test_nothing_that_it_started_is_left(terminal: Terminal, tmp_path: Path) -> None:
    mark = tmp_path / "child"
    checked = terminal.check_odd(tmp_path, "leaves-a-child", str(mark))
    assert checked.code == 0
    assert not is_alive(mark.read_text())


def test_a_signal_leaves_nothing_either(tmp_path: Path) -> None:
    line = ["--timeout=600", "--", "sh", "-c", "echo $$ > pid.part; mv pid.part pid; sleep 600"]
    with subprocess.Popen(
        [sys.executable, "-m", "stoker", "worker-check", *line],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    ) as process:
        while not (tmp_path / "pid").exists():
            time.sleep(0.02)  # there is nothing to wait on but the file
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, b"")
    assert not is_alive((tmp_path / "pid").read_text().strip())
