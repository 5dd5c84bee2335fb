"""What the kit makes of a function, as real processes, spoken to by the codecs of the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoker.spi import WorkerProtocol, WorkRequest, WorkResponse
from stoker_worker_json import JsonProtocol
from stoker_worker_proto import ProtoProtocol

TOOL = Path(__file__).with_name("tool.py")
PROTOCOLS: dict[str, WorkerProtocol] = {"proto": ProtoProtocol(), "json": JsonProtocol()}
# What is printed before there is a worker is held back only where Python buffers.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
LIMIT_BYTES = 64 * 1024 * 1024


class Worker:
    """A process of the tool, from the side of the server."""

    def __init__(
        self, process: subprocess.Popen[bytes], protocol: WorkerProtocol, log: Path
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.log, self.stdin = process, log, process.stdin
        self._stdout, self._protocol = process.stdout, protocol
        self._decoder = protocol.decoder(LIMIT_BYTES)
        self._received: list[WorkResponse] = []

    def send(self, *requests: WorkRequest, cut: bool = False) -> None:
        data = b"".join(map(self._protocol.encode, requests))
        for part in [data[i : i + 1] for i in range(len(data))] if cut else [data]:
            self.stdin.write(part)
            self.stdin.flush()

    def receive(self) -> WorkResponse:
        while not self._received:
            data = os.read(self._stdout.fileno(), 1 << 16)
            assert data, f"the worker has ended its stdout: {self.log.read_text()}"
            self._received += self._decoder.feed(data)
        return self._received.pop(0)

    def ask(self, *arguments: str, request_id: int = 0) -> WorkResponse:
        self.send(WorkRequest(arguments=arguments, request_id=request_id))
        return self.receive()

    def close(self) -> list[WorkResponse]:
        """End stdin; returns the answers that come from then on."""
        self.stdin.close()
        rest = self._decoder.feed(self._stdout.read())
        self._decoder.end()
        return self._received + rest


@contextmanager
def open_worker(protocol: str, folder: Path, *options: str) -> Iterator[Worker]:
    log = folder / "log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, TOOL, *options, "--persistent_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=folder,
            env=BUFFERED,
        ) as process,
    ):
        try:
            yield Worker(process, PROTOCOLS[protocol], log)
        finally:
            process.kill()


def run_once(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOOL, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def wait_for(mark: Path) -> None:
    """There is nothing to wait on but the file."""
    while not mark.exists():
        time.sleep(0.01)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_request_is_told_whole_and_the_end_of_stdin_ends_the_worker(
    protocol: str, tmp_path: Path
) -> None:
    request = WorkRequest(
        arguments=["tell", "--größe", "", "a\nb"], request_id=7, verbosity=10, sandbox_dir="box/1"
    )
    request.inputs.add(path="src/ä.txt", digest=b"ab" * 32)
    told = f"('--größe', '', 'a\\nb') [('src/ä.txt', '{'ab' * 32}')] 7 10 box/1/a.txt\n"
    with open_worker(protocol, tmp_path, f"--worker_protocol={protocol}") as worker:
        # Bytes one by one, and requests that come together.
        worker.send(request, cut=True)
        assert worker.receive().output == told
        worker.send(request, WorkRequest(arguments=["tell"]), WorkRequest(arguments=["tell", "x"]))
        answers = [worker.receive() for _ in range(3)]
        assert [answer.request_id for answer in answers] == [7, 0, 0]
        assert [answer.output[:6] for answer in answers[1:]] == ["() [] ", "('x',)"]
        assert worker.close() == []
        assert worker.process.wait() == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_stdout_belongs_to_the_protocol(protocol: str, tmp_path: Path) -> None:  # WORKERS 8.11
    with open_worker(protocol, tmp_path) as worker:
        answers = [worker.ask("noise", request_id=number) for number in (1, 2)]
        assert worker.close() == []
        log = worker.log.read_text()
    assert answers == [
        WorkResponse(
            output="a print\nin bytes: ü\nto stderr\na thread\n", request_id=number, exit_code=0
        )
        for number in (1, 2)
    ]
    assert log.startswith("printed before there is a worker\n")
    for words in (
        "a raw write",
        "a child",
        "a child, told where",
        "through what was there before",
    ):
        assert log.count(f"{words}\n") == 2, words


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_twenty_requests_are_in_flight_at_once(protocol: str, tmp_path: Path) -> None:
    with open_worker(protocol, tmp_path, "--threads=20") as worker:
        worker.send(*(WorkRequest(arguments=["meet"], request_id=n) for n in range(1, 21)))
        # What other threads work on at the end of stdin is finished too.
        answers = sorted(worker.close(), key=lambda each: each.request_id)
    assert [(each.request_id, each.output) for each in answers] == [
        (number, f"met {number}\n") for number in range(1, 21)
    ]


def test_requests_without_numbers_are_answered_in_order(tmp_path: Path) -> None:
    with open_worker("proto", tmp_path, "--threads=20") as worker:
        worker.send(*(WorkRequest(arguments=["large", str(n)]) for n in range(50)))
        assert [len(worker.receive().output) for _ in range(50)] == list(range(50))


def test_one_thread_takes_many_requests_and_answers_each_once(tmp_path: Path) -> None:
    with open_worker("json", tmp_path) as worker:
        worker.send(*(WorkRequest(arguments=["tell"], request_id=n) for n in range(1, 21)))
        # What is in flight at the end of stdin is finished.
        assert [answer.request_id for answer in worker.close()] == list(range(1, 21))
        assert worker.process.wait() == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("how", ["child", "raise", "return"])
def test_a_cancelled_request_has_one_answer(  # WORKERS 8.8
    how: str, protocol: str, tmp_path: Path
) -> None:
    mark = tmp_path / "begun"
    with open_worker(protocol, tmp_path, "--threads=2") as worker:
        worker.send(
            WorkRequest(request_id=9, cancel=True),  # nobody knows of it: no answer
            WorkRequest(arguments=["wait_for_cancel", how, str(mark)], request_id=5),
        )
        wait_for(mark)
        worker.send(WorkRequest(request_id=5, cancel=True), WorkRequest(request_id=5, cancel=True))
        answer = worker.receive()
        assert (answer.request_id, answer.was_cancelled) == (5, True)
        # After its answer it is not known any more.
        worker.send(WorkRequest(request_id=5, cancel=True))
        assert worker.ask("tell", request_id=6).request_id == 6
        assert worker.close() == []
        assert worker.process.wait() == 0
        assert ("ZeroDivisionError" in worker.log.read_text()) == (how == "child")


def test_a_request_that_waits_is_cancelled_before_its_turn(tmp_path: Path) -> None:
    mark, never = tmp_path / "begun", tmp_path / "never"
    with open_worker("proto", tmp_path) as worker:
        worker.send(
            WorkRequest(arguments=["wait_for_cancel", "raise", str(mark)], request_id=1),
            WorkRequest(arguments=["wait_for_cancel", "raise", str(never)], request_id=2),
            WorkRequest(request_id=2, cancel=True),
        )
        answer = worker.receive()
        assert (answer.request_id, answer.was_cancelled, answer.output) == (2, True, "")
        wait_for(mark)
        worker.send(WorkRequest(request_id=1, cancel=True))
        assert worker.receive().request_id == 1
    assert not never.exists()


def test_a_request_without_a_number_can_be_cancelled(tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    with open_worker("proto", tmp_path) as worker:
        worker.send(WorkRequest(arguments=["wait_for_cancel", "raise", str(mark)]))
        wait_for(mark)
        worker.send(WorkRequest(cancel=True))
        assert worker.receive() == WorkResponse(exit_code=1, was_cancelled=True, output="late\n")


def test_failures_are_answered_alike_warm_and_cold(tmp_path: Path) -> None:  # PWK-17
    with open_worker("json", tmp_path) as worker:
        for how, code, words in (
            ("exception", 1, "ValueError: so it goes ü"),
            ("no code", 1, "not 'three'"),
            ("7", 7, ""),
            ("text", 1, "no such file\n"),
            ("none", 0, ""),
            ("512", 1, ""),
        ):
            warm = worker.ask("fail", how)
            assert (warm.exit_code, words in warm.output) == (code, True), warm.output
            assert "serving.py" not in warm.output or how == "no code"
            if how in ("exception", "512", "text"):
                cold = run_once(tmp_path, "fail", how)
                printed = "printed before there is a worker\n"
                assert (cold.returncode, cold.stdout) == (code, printed)
                assert cold.stderr == warm.output


def test_what_stands_on_the_command_line_is_the_same_warm_and_cold(tmp_path: Path) -> None:
    (tmp_path / "a.params").write_text("tell\r\n\n@b.params\n@@c\n@repository//x\n--flagfile=d")
    (tmp_path / "b.params").write_text("from b\n")
    expected = "('', 'from b', '@@c', '@repository//x', '--flagfile=d', '-flagfile=e') [] 0 0 a.txt"
    cold = run_once(tmp_path, "@a.params", "-flagfile=e", "--worker_protocol=json")
    assert cold.stderr == f"{expected}\n"
    # The start-up arguments come first, wherever they stood.
    assert run_once(tmp_path, "@b.params", "tell").stderr.startswith("('from b',)")
    with open_worker("proto", tmp_path, "tell", "--started") as worker:
        assert worker.ask("more").output.startswith("('--started', 'more')")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["@absent"], "flag file 'absent': "),
        (["@circle"], "32 deep"),
        (["--worker_protocol=xml", "tell"], "auto, proto, json"),
    ],
)
def test_a_wrong_command_line_is_told_in_a_sentence(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "circle").write_text("@circle\n")
    ended = run_once(tmp_path, *arguments)
    assert (ended.returncode, words in ended.stderr, "Traceback" in ended.stderr) == (
        2,
        True,
        False,
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_large_requests_and_answers(protocol: str, tmp_path: Path) -> None:
    request = WorkRequest(arguments=["large", "3000000"])
    for number in range(10_000):
        request.inputs.add(path=f"some/folder/input-{number}.h", digest=b"0123456789abcdef" * 4)
    with open_worker(protocol, tmp_path) as worker:
        worker.send(request)
        assert len(worker.receive().output) == 3_000_000


@pytest.mark.parametrize(
    ("text", "request_id"),
    [
        (b'{"arguments": ["tell"], "requestId": 3}', 3),
        (b'{\n  "requestId": "4",\n "new": {"}": ["{", "\\"]"]}, "arguments": ["tell"]\n}\n', 4),
        (b'{"request_id":5,"arguments":["tell"],"inputs":null,"cancel":null}', 5),
    ],
)
def test_json_is_known_by_its_first_bytes(text: bytes, request_id: int, tmp_path: Path) -> None:
    with open_worker("json", tmp_path) as worker:
        worker.stdin.write(text)
        worker.stdin.flush()
        assert worker.receive().request_id == request_id


@pytest.mark.parametrize("first", [34, 60, 90, 111, 113, 115])
def test_proto_that_begins_with_a_brace_is_proto(first: int, tmp_path: Path) -> None:
    """A request of 123 bytes: its length is the byte of a brace, its tag that of a newline."""
    arguments = ["tell".ljust(first, "x") if first != 34 else "tellxxxx" * 4 + "xx"]
    while (missing := 123 - WorkRequest(arguments=arguments).ByteSize()) > 2:
        arguments.append("y" * min(missing - 2, 40))
    request = WorkRequest(arguments=arguments)
    request.request_id = 1 if missing == 2 else 0
    if request.ByteSize() != 123:
        request.arguments[-1] += "y" * (123 - request.ByteSize())
    data = ProtoProtocol().encode(request)
    assert data[:2] == b"{\n"
    with open_worker("proto", tmp_path) as worker:
        worker.send(request, cut=True)
        assert "KeyError" in worker.receive().output


@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        ("proto", b"Hello, this is no request of any kind"),
        ("proto", b"\x05\x0a\x02"),
        ("proto", b"\xff\xff\xff\xff\xff\xff"),
        ("json", b"Hello"),
        ("json", b'{"arguments": ['),
        ("json", b'{"arguments": 7}'),
        ("auto", b'{"argu'),
    ],
)
def test_what_is_no_request_ends_the_worker(protocol: str, text: bytes, tmp_path: Path) -> None:
    with open_worker("proto", tmp_path, f"--worker_protocol={protocol}") as worker:
        worker.stdin.write(text)
        assert worker.close() == []
        assert worker.process.wait() == 1
        assert "reading requests: " in worker.log.read_text()
        assert "Traceback" not in worker.log.read_text()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_tool_clean_up(sent: signal.Signals, tmp_path: Path) -> None:
    mark, left = tmp_path / "begun", tmp_path / "left"
    with open_worker("proto", tmp_path) as worker:
        worker.send(WorkRequest(arguments=["sleep", str(mark), str(left)]))
        wait_for(mark)
        worker.process.send_signal(sent)
        assert worker.process.wait() == 128 + sent
        assert worker.log.read_text() == "printed before there is a worker\n"
    assert left.exists()


def test_a_worker_whose_answers_nobody_reads_ends(tmp_path: Path) -> None:
    with open_worker("proto", tmp_path) as worker:
        assert worker.process.stdout is not None
        worker.process.stdout.close()
        worker.send(WorkRequest(arguments=["tell"]))
        assert worker.process.wait() == 1
        assert "nobody reads answers" in worker.log.read_text()


def test_it_does_not_load_the_server() -> None:
    code = "import stoker.worker_kit, sys, json; json.dump(sorted(sys.modules), sys.stdout)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(ended.stdout)}
    heavy = {"trio", "grpc", "google", "structlog", "msgspec", "pluggy", "click", "asyncio"}
    # traceback, and what it needs, is half of all the rest.
    assert loaded & (heavy | {"traceback", "dataclasses", "inspect"}) == set()
    assert {name for name in json.loads(ended.stdout) if name.startswith("stoker.")} == {
        "stoker.worker_kit",
        *(
            f"stoker.worker_kit.{room}"
            for room in ("codecs", "command_line", "in_flight", "request", "serving", "streams")
        ),
    }
