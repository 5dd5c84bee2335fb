"""What is tried with a program, step by step, in one protocol."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import NamedTuple

from stoker.spi import WorkerProtocol, WorkRequest, WorkResponse
from stoker.worker_check.findings import ProtocolReport, Verdict
from stoker.worker_check.program import NoAnswer, Program, Start, describe_code, open_program

_AT_ONCE = 8
_MANY_INPUTS = 10_000
_FIELDS = ("exitCode", "output", "requestId", "wasCancelled")
_UNKNOWN_OPTION = "--stoker-worker-check-no-such-option"


@dataclass(frozen=True, slots=True)
class Trial:
    """What to try."""

    start: Start
    request: WorkRequest
    """What every request asks for. Its number, and a cancel, are set for each."""

    def numbered(self, request_id: int, *, cancel: bool = False) -> WorkRequest:
        """The request with this number, or a cancel of it."""
        request = WorkRequest(request_id=request_id, cancel=cancel)
        if not cancel:
            request.MergeFrom(self.request)
        return request


async def try_protocol(name: str, protocol: WorkerProtocol, trial: Trial) -> ProtocolReport:
    """Start the program as often as it takes, and try everything in this protocol.

    Raises OSError where it cannot be started. No process is left, also when cancelled.
    """
    report = ProtocolReport(name)
    async with AsyncExitStack() as stack:
        attempt = _Attempt(trial, protocol, report, stack)
        if not (await attempt.make(_FIRST) and await attempt.make(_SECOND)):
            return report
        for probe in _PROBES:
            await attempt.make(probe)
    return report


class _Attempt:
    """The trial of one protocol. A program that fails a probe is replaced for the next one."""

    def __init__(
        self, trial: Trial, protocol: WorkerProtocol, report: ProtocolReport, stack: AsyncExitStack
    ) -> None:
        self.trial = trial
        self.report = report
        self.echoes = False
        self.alone_seconds = 0.0
        self._protocol = protocol
        self._stack = stack
        self._program: Program | None = None

    async def make(self, probe: _Probe) -> bool:
        """Whether it went as it should, so far as the program went on answering."""
        program = await self._open()
        try:
            await probe.run(self, program)
        except NoAnswer as failure:
            self.report.add(probe.check, probe.if_it_fails, probe.sentence.format(it=failure))
            await self.drop()
            return False
        return True

    async def _open(self) -> Program:
        if self._program is None:
            opening = open_program(self.trial.start, self._protocol)
            self._program = await self._stack.enter_async_context(opening)
        return self._program

    async def drop(self) -> None:
        """End the program."""
        self._program = None
        await self._stack.aclose()

    def good(self, check: str, sentence: str) -> None:
        self.report.add(check, Verdict.GOOD, sentence)

    def note(self, check: str, sentence: str) -> None:
        self.report.add(check, Verdict.NOTE, sentence)

    def trap(self, check: str, sentence: str) -> None:
        self.report.add(check, Verdict.TRAP, sentence)


class _Probe(NamedTuple):
    check: str
    run: Callable[[_Attempt, Program], Awaitable[None]]
    if_it_fails: Verdict
    sentence: str
    """For that case; ``{it}`` goes on after "it"."""


async def _first(attempt: _Attempt, program: Program) -> None:
    response = await program.ask(attempt.trial.numbered(0))
    _check_alone(response)
    attempt.good("speaks", "it starts with --persistent_worker and answers")
    if response.exit_code:
        attempt.note(
            "request",
            f"the request itself failed, with exit code {response.exit_code} "
            f"({_shortened(response.output)}): with one that succeeds (@FILE, or "
            "--request-argument) this check tells more",
        )


def _check_alone(response: WorkResponse) -> None:
    if response.request_id:
        raise NoAnswer(f"answered request {response.request_id}, which nobody had asked")
    if response.was_cancelled:
        raise NoAnswer("answered that it was cancelled, which nobody had asked for")


async def _again(attempt: _Attempt, program: Program) -> None:
    began = time.perf_counter()
    _check_alone(await program.ask(attempt.trial.numbered(0)))
    attempt.alone_seconds = time.perf_counter() - began
    attempt.report.usable = True
    attempt.good("stays", "it stays alive and answers the next request too")


async def _form(attempt: _Attempt, program: Program) -> None:
    """How JSON is written, if it is JSON."""
    text = program.raw.lstrip().decode("utf-8", "replace")
    if not text.startswith("{"):
        return
    try:
        fields, end = json.JSONDecoder(strict=False).raw_decode(text)
    except ValueError:
        return  # larger than what is kept
    if missing := [name for name in _FIELDS if name not in fields]:
        attempt.note("fields", f"its answers lack {', '.join(missing)}: their defaults count")
    else:
        attempt.good("fields", "its answers have all fields")
    if text[end : end + 1] in ("\n", "\r"):
        attempt.good("newline", "a newline follows each answer")
    else:
        attempt.note("newline", "no newline follows an answer: stoker needs none, others may")


async def _number(attempt: _Attempt, program: Program) -> None:
    response = await program.ask(attempt.trial.numbered(7))
    attempt.echoes = response.request_id == 7
    if attempt.echoes:
        attempt.good("request_id", "it repeats the number of a request in its answer")
    elif response.request_id == 0:
        attempt.note("request_id", "it does not repeat the number of a request: no multiplex")
    else:
        attempt.trap("request_id", f"it answered request 7 as number {response.request_id}")


async def _together(attempt: _Attempt, program: Program) -> None:
    """Two requests in one write: they may be there in one read at any time."""
    if not attempt.echoes:
        return
    await program.send(attempt.trial.numbered(11), attempt.trial.numbered(12))
    _check_numbers(await program.answers(2), [11, 12])
    attempt.good("together", "it answers two requests that come in one piece")


async def _multiplex(attempt: _Attempt, program: Program) -> None:
    if not attempt.echoes:
        return
    numbers = range(21, 21 + _AT_ONCE)
    began = time.perf_counter()
    for number in numbers:
        await program.send(attempt.trial.numbered(number))
    responses = await program.answers(_AT_ONCE)
    times = (time.perf_counter() - began) / max(attempt.alone_seconds, 1e-6)
    _check_numbers(responses, numbers)
    order = "out of order" if [r.request_id for r in responses] != [*numbers] else "in order"
    took = f"{_AT_ONCE} in flight took {times:.1f} times as long as 1"
    attempt.report.multiplex = took
    attempt.good("multiplex", f"it answers each of {_AT_ONCE} requests in flight, {order}; {took}")


def _check_numbers(responses: Sequence[WorkResponse], expected: Sequence[int]) -> None:
    numbers = sorted(response.request_id for response in responses)
    if numbers != list(expected):
        raise NoAnswer(f"answered {numbers} where {list(expected)} were asked")


async def _parts(attempt: _Attempt, program: Program) -> None:
    await program.send_in_parts(attempt.trial.numbered(0))
    (response,) = await program.answers()
    _check_alone(response)
    attempt.good("parts", "it understands a request that comes in parts")


async def _large(attempt: _Attempt, program: Program) -> None:
    request = attempt.trial.numbered(0)
    size = len(request.inputs)
    for number in range(_MANY_INPUTS):
        # None of them is there: a tool looks only at those that its arguments name.
        request.inputs.add(path=f"stoker-worker-check/input-{number}", digest=b"0" * 64)
    _check_alone(await program.ask(request))
    attempt.good("large", f"it takes a request of {size + _MANY_INPUTS} inputs")


async def _failing(attempt: _Attempt, program: Program) -> None:
    response = await program.ask(WorkRequest(arguments=[_UNKNOWN_OPTION]))
    _check_alone(await program.ask(attempt.trial.numbered(0)))
    how = f"answers it with exit code {response.exit_code}" if response.exit_code else "takes it"
    attempt.good("failure", f"given the argument {_UNKNOWN_OPTION} it {how}, and lives on")


async def _cancel(attempt: _Attempt, program: Program) -> None:
    number, later = (31, 32) if attempt.echoes else (0, 0)
    await program.send(attempt.trial.numbered(number), attempt.trial.numbered(number, cancel=True))
    (response,) = await program.answers()
    # Of one that nobody knows, too, which is what a cancel becomes that comes late.
    await program.send(attempt.trial.numbered(99, cancel=True), attempt.trial.numbered(later))
    (next_one,) = await program.answers()
    if next_one.request_id != later:
        attempt.trap(
            "cancel",
            "it answers a cancel as though that were a request of its own "
            f"(number {next_one.request_id} after {response.request_id}, not {later})",
        )
        await attempt.drop()
    elif response.was_cancelled:
        attempt.report.cancellation = True
        attempt.good("cancel", "it heeds a cancel, and answers it as cancelled")
    else:
        attempt.note(
            "cancel",
            "a cancel came to nothing: it is not heeded, or the request was over before; "
            "one that takes longer would tell",
        )


async def _end(attempt: _Attempt, program: Program) -> None:
    began = time.perf_counter()
    code = await program.close_stdin()
    seconds = time.perf_counter() - began
    if code is None:
        await _insist(attempt, program)
    elif code == 0:
        attempt.good("end", f"it ends when its stdin does, after {seconds:.1f} s, with exit code 0")
    else:
        attempt.note("end", f"it ends when its stdin does, but by {describe_code(code)}")
    if extra := program.unasked():
        attempt.trap("answers", f"it gave {len(extra)} answers more than it was asked for")
    if "protocol" in program.problem:
        attempt.trap("answers", f"in the end it {program.problem}")
    await attempt.drop()


async def _insist(attempt: _Attempt, program: Program) -> None:
    ends = await program.terminate() is not None
    rest = "it does on SIGTERM" if ends else "nor on SIGTERM: it has to be killed"
    attempt.trap(
        "end",
        f"it does not end when its stdin does, {rest}; stoker waits shutdown_grace_seconds "
        "before each of the two",
    )


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 120 else f"{line[:117]}...")


_FIRST = _Probe("speaks", _first, Verdict.NOTE, "asked the first thing, it {it}")
_SECOND = _Probe("stays", _again, Verdict.TRAP, "asked a second time, it {it}: no worker")
_PROBES = (
    _Probe("form", _form, Verdict.NOTE, "it {it}"),
    _Probe("request_id", _number, Verdict.TRAP, "given a request with a number, it {it}"),
    _Probe(
        "together",
        _together,
        Verdict.NOTE,
        "given two requests in one piece, it {it}: no multiplex, and a client must write them "
        "one at a time, as stoker does",
    ),
    _Probe("multiplex", _multiplex, Verdict.NOTE, "given several requests, it {it}: no multiplex"),
    _Probe(
        "parts",
        _parts,
        Verdict.TRAP,
        "given a request in parts, it {it}: pipes cut large requests anywhere",
    ),
    _Probe("large", _large, Verdict.TRAP, "given a request of many inputs, it {it}"),
    _Probe(
        "failure",
        _failing,
        Verdict.TRAP,
        f"given the argument {_UNKNOWN_OPTION}, it {{it}}: a failing action costs a worker",
    ),
    _Probe("cancel", _cancel, Verdict.TRAP, "given a cancel, it {it}: leave cancellation off"),
    _Probe("end", _end, Verdict.TRAP, "at the end of its stdin, it {it}"),
)
