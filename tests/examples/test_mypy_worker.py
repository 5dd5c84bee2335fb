"""The example worker, as a real process, in both forms of the protocol."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoker.spi import WorkerProtocol, WorkRequest, WorkResponse
from stoker_worker_json import JsonProtocol
from stoker_worker_proto import ProtoProtocol

PROGRAM = Path(__file__).parents[2] / "examples" / "mypy_worker" / "mypy_worker.py"
PROTOCOLS: dict[str, WorkerProtocol] = {"proto": ProtoProtocol(), "json": JsonProtocol()}
LIMIT_BYTES = 1024 * 1024

MODULES = {
    "library/clean.py": "import textwrap\n\nWIDTH: int = len(textwrap.dedent(' x'))\n",
    "library/wrong.py": "import json\n\nTEXT: int = json.dumps([])\nLATER = missing\n",
    "library/other.py": "from json import no_such_name\n\ndef size() -> str:\n    return 1\n",
    "library/broken.py": "def half(:\n",
}


class Conversation:
    """A worker that was started, from the side of whoever started it."""

    def __init__(self, process: subprocess.Popen[bytes], protocol: WorkerProtocol) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._protocol = protocol
        self._decoder = protocol.decoder(LIMIT_BYTES)

    def send(self, *requests: WorkRequest, cut: bool = False) -> None:
        data = b"".join(map(self._protocol.encode, requests))
        for part in [data[i : i + 1] for i in range(len(data))] if cut else [data]:
            self._stdin.write(part)
            self._stdin.flush()

    def receive(self) -> WorkResponse:
        while data := os.read(self._stdout.fileno(), 1):
            for response in self._decoder.feed(data):
                return response
        raise EOFError("the worker has ended its stdout")

    def close(self) -> bytes:
        """End the worker's stdin; returns what it writes from then on."""
        self._stdin.close()
        return self._stdout.read()


@contextmanager
def open_worker(name: str, folder: Path) -> Iterator[Conversation]:
    """A worker in `folder`, killed at the end unless it has ended."""
    with subprocess.Popen(
        [sys.executable, PROGRAM, "--persistent_worker", f"--worker_protocol={name}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        env={"TMPDIR": str(folder / "tmp")},
    ) as process:
        try:
            yield Conversation(process, PROTOCOLS[name])
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where checks run, with the modules in it."""
    (tmp_path / "tmp").mkdir()
    for name, text in MODULES.items():
        write_input(tmp_path / name, text)
    return tmp_path


def write_input(path: Path, text: str) -> None:
    """Write a file with the time that executors give to all inputs."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (1_000_000_000, 1_000_000_000))


def arguments_of(module: str) -> list[str]:
    return ["--output", "report.txt", module]


def run_once(folder: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    (folder / "report.txt").unlink(missing_ok=True)
    (folder / "params.txt").write_text("".join(f"{argument}\n" for argument in arguments))
    return subprocess.run(
        [sys.executable, PROGRAM, "@params.txt"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={},
        check=False,
    )


@pytest.mark.parametrize("name", PROTOCOLS)
def test_reports_are_those_of_fresh_processes(name: str, folder: Path) -> None:  # PWK-17
    cold = {}
    for module in MODULES:
        ended = run_once(folder, arguments_of(module))
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        cold[module] = (folder / "report.txt").read_bytes()
    assert b"[assignment]" in cold["library/wrong.py"]
    assert b"[syntax]" in cold["library/broken.py"]
    assert cold["library/clean.py"].startswith(b"Success")
    with open_worker(name, folder) as worker:
        for number, module in enumerate([*MODULES, *MODULES], start=1):
            worker.send(WorkRequest(arguments=arguments_of(module), request_id=number))
            assert worker.receive() == WorkResponse(request_id=number)
            assert (folder / "report.txt").read_bytes() == cold[module], module


def test_an_input_of_the_same_name_size_and_time_is_looked_at_anew(folder: Path) -> None:
    request = WorkRequest(arguments=arguments_of("library/value.py"))
    with open_worker("proto", folder) as worker:
        for text, expected in (("X: int = 1\n", "Success"), ("X: str = 1\n", "[assignment]")):
            write_input(folder / "library" / "value.py", text)
            worker.send(request)
            assert worker.receive().exit_code == 0
            assert expected in (folder / "report.txt").read_text()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_requests_may_be_cut_anywhere_or_come_together(name: str, folder: Path) -> None:
    # What cannot be checked is answered soonest; the text has characters of several bytes.
    absent = [WorkRequest(arguments=arguments_of(f"läße{n}.py"), request_id=n) for n in (1, 2, 3)]
    with open_worker(name, folder) as worker:
        worker.send(absent[0], cut=True)
        assert "läße1.py" in worker.receive().output
        worker.send(*absent[1:])
        assert [worker.receive().request_id, worker.receive().request_id] == [2, 3]


def test_json_over_several_lines_is_understood(folder: Path) -> None:
    with open_worker("json", folder) as worker:
        assert worker.process.stdin is not None
        worker.process.stdin.write(b'\n{\n  "arguments": [],\n  "requestId": 7,\n "new": {}\n}\n')
        worker.process.stdin.flush()
        assert worker.receive().request_id == 7


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_cancel_is_not_answered_and_the_end_of_stdin_ends_the_worker(
    name: str, folder: Path
) -> None:
    with open_worker(name, folder) as worker:
        worker.send(
            WorkRequest(request_id=4, cancel=True),
            WorkRequest(arguments=arguments_of("library/clean.py"), request_id=5),
        )
        assert worker.receive() == WorkResponse(request_id=5)
        assert worker.close().strip() == b"", "but the newline after JSON"
        assert worker.process.wait() == 0
    assert list((folder / "tmp").iterdir()) == [], "the cache goes with the process"


def test_a_stray_print_does_not_reach_the_protocol(folder: Path) -> None:
    (folder / "noisy.py").write_text(
        "import os\nfrom mypy.plugin import Plugin\n\n"
        "print('a print', flush=True)\nos.write(1, b'a write')\n\n"
        "def plugin(version):\n    return Plugin\n"
    )
    (folder / "mypy.ini").write_text("[mypy]\nplugins = noisy.py\n")
    arguments = [*arguments_of("library/clean.py"), "--config-file=mypy.ini"]
    with open_worker("proto", folder) as worker:
        worker.send(WorkRequest(arguments=arguments, request_id=1))
        # All of it at once: what is no response may look like the beginning of a long one.
        written = worker.close()
    decoder = PROTOCOLS["proto"].decoder(LIMIT_BYTES)
    assert decoder.feed(written) == [WorkResponse(request_id=1, output="a print\n")]
    decoder.end()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "report.txt", "absent.py"], "absent.py"),
        (["--output", "report.txt", "--no-such-option", "library/clean.py"], "--no-such-option"),
        (["library/clean.py"], "--output FILE"),
    ],
)
def test_without_a_report_there_is_a_reason(arguments: list[str], words: str, folder: Path) -> None:
    ended = run_once(folder, arguments)
    assert ended.returncode == 1
    assert words in ended.stderr
    with open_worker("proto", folder) as worker:
        worker.send(WorkRequest(arguments=arguments))
        response = worker.receive()
    assert (response.exit_code, response.output) == (1, ended.stderr)
    assert not (folder / "report.txt").exists()
