"""``stoker worker-check``: is this program a persistent worker, and how good a one?"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.table import Table

from stoker.cli.connection import finite
from stoker.errors import ConfigurationError
from stoker.plugins import Kind, load_catalogue
from stoker.spi import Context, WorkerProtocol, WorkRequest
from stoker.tables import nearest
from stoker.worker_check.findings import ProtocolReport, Verdict, choose
from stoker.worker_check.probes import Trial, try_protocol
from stoker.worker_check.process_tree import adopt_orphans
from stoker.worker_check.program import Start
from stoker.workers.arguments import expand_arguments, split_arguments

_FLAG = "--persistent_worker"
_LOG_TAIL_BYTES = 2000
_LOG_TAIL_LINES = 10


@dataclass(frozen=True, slots=True)
class _Task:
    """What the user asks for."""

    line: Sequence[str]
    request_arguments: Sequence[str]
    inputs: Sequence[Path]
    directory: Path
    timeout_seconds: float


@click.command("worker-check", context_settings={"ignore_unknown_options": True})
@click.option(
    "--request-argument",
    "request_arguments",
    multiple=True,
    metavar="TEXT",
    help="An argument of each request, behind those from flag files. May be repeated.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file, or a folder of files, below the directory, to be listed as an input. May be "
    "repeated.",
)
@click.option(
    "--directory",
    default=Path(),
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the program runs, and what relative paths mean; this one unless given.",
)
@click.option(
    "--protocol",
    "chosen",
    multiple=True,
    metavar="KIND",
    help="Try only this protocol. May be repeated; all that are installed unless given.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    default=10.0,
    show_default=True,
    help="How many seconds each step may take.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.argument("line", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD ARGS...")
@click.pass_context
def worker_check(
    context: click.Context,
    /,
    line: Sequence[str],
    chosen: Sequence[str],
    as_json: bool,
    **asked: object,
) -> None:
    """Start CMD as a persistent worker, and tell what it supports and which traps it falls into.

    CMD ARGS is a command line as build tools send it: arguments such as @FILE become the request,
    with the lines of the file as its arguments, and all others, with --persistent_worker behind
    them, start the program. It runs with the environment of this command. Nothing of it is left
    at the end.

    The exit code is 0 if the program can be used as a worker in at least one protocol, else 1.
    """
    task = _Task(line, **asked)  # type: ignore[arg-type]  # click has seen to their types
    kinds = _kinds(chosen)
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="stoker-worker-check-") as folder:
        log = Path(folder, "stderr")
        reports = trio.run(_try_unless_told, task, kinds, log)
        if reports is None:
            raise click.Abort
        # The program was started anew for each protocol: what is there is of the last one.
        tail = _tail(log).decode("utf-8", "replace")
    click.echo(_document(task, reports) if as_json else _page(task, reports, tail), nl=False)
    if choose(reports) is None:
        context.exit(1)


def _kinds(chosen: Sequence[str]) -> list[Kind]:
    """Those to try, proto first: it is what servers take where nothing is said."""
    installed = load_catalogue().kinds("worker_protocols")
    for name in chosen:
        if name not in installed:
            raise click.BadParameter(f"no worker protocol {name!r}{nearest(name, installed)}")
    if not installed:
        raise ConfigurationError(["no worker protocol is installed: stoker-worker-proto has one"])
    kinds = [kind for name, kind in installed.items() if not chosen or name in chosen]
    return sorted(kinds, key=lambda kind: (kind.name != "proto", kind.name))


# --- trying ---------------------------------------------------------------------------------------


async def _try_unless_told(
    task: _Task, kinds: Sequence[Kind], log: Path
) -> list[ProtocolReport] | None:
    """A report for each protocol; None if a signal said to stop."""
    reports = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def cancel_when_told() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(cancel_when_told)
            reports = await _try_all(task, kinds, log)
            nursery.cancel_scope.cancel()
    return reports


async def _try_all(task: _Task, kinds: Sequence[Kind], log: Path) -> list[ProtocolReport]:
    trial = await _trial(task, log)
    reports = []
    async with AsyncExitStack() as stack:
        for kind in kinds:
            service = Context(kind.name, Path.cwd(), {})
            opening = kind.provider.open(kind.provider.settings(), service)
            protocol: WorkerProtocol = await stack.enter_async_context(opening)
            reports.append(await _try(kind.name, protocol, trial))
    if choose(reports) is None:
        for report in reports:
            report.condemn()
    return reports


async def _try(name: str, protocol: WorkerProtocol, trial: Trial) -> ProtocolReport:
    try:
        return await try_protocol(name, protocol, trial)
    except OSError as error:
        program = trial.start.command[0]
        raise click.ClickException(f"{program} cannot be started: {error.strerror}") from error


async def _trial(task: _Task, log: Path) -> Trial:
    """Raises InvalidRequest and OSError for flag files and inputs that cannot be read."""

    async def read(path: str) -> bytes:
        return await trio.Path(task.directory, path).read_bytes()

    parts = split_arguments(task.line)
    startup = list(task.line if parts is None else parts.startup)
    if not startup:
        raise click.UsageError("no program is named, only flag files")
    request = WorkRequest(arguments=await expand_arguments(parts.flag_files if parts else (), read))
    request.arguments.extend(task.request_arguments)
    for name, digest in _digests(task.directory, task.inputs):
        request.inputs.add(path=name, digest=digest)
    if _FLAG not in startup:
        startup.append(_FLAG)
    return Trial(Start(tuple(startup), task.directory, log, task.timeout_seconds), request)


def _digests(directory: Path, inputs: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Each file by its path below `directory`, with the text of its SHA-256 as Bazel has it."""
    for path in inputs:
        place = directory / path
        if not place.absolute().is_relative_to(directory.absolute()):
            raise click.UsageError(f"--input {path} is not below {directory.absolute()}")
        files = sorted(file for file in place.rglob("*") if file.is_file())
        for file in files if place.is_dir() else [place]:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            yield str(file.relative_to(directory)), digest.encode()


# --- telling --------------------------------------------------------------------------------------


def _document(task: _Task, reports: Sequence[ProtocolReport]) -> str:
    best = choose(reports)
    document = {
        "command": list(task.line),
        "usable": best is not None,
        "settings": dict(_settings(best)) if best else {},
        "protocols": {
            report.protocol: {
                "usable": report.usable,
                "multiplex": bool(report.multiplex),
                "cancellation": report.cancellation,
                "findings": [
                    {"check": each.check, "verdict": each.verdict, "sentence": each.sentence}
                    for each in report.findings
                ],
            }
            for report in reports
        },
    }
    return json.dumps(document, indent=2) + "\n"


def _settings(report: ProtocolReport) -> Iterator[tuple[str, str | bool]]:
    """What of a rule has to be set for it, in TOML's words."""
    if report.protocol != "proto":
        yield "protocol", report.protocol
    if report.multiplex:
        yield "multiplex", True
    if report.cancellation:
        yield "cancellation", True


def _page(task: _Task, reports: Sequence[ProtocolReport], log: str) -> str:
    best = choose(reports)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # scripts and pipes get whole lines
    with console.capture() as text:
        console.print(_table(reports))
    if best is None:
        advice = "It cannot be used as a persistent worker.\n" + _last_words(log)
    else:
        advice = _advice(task, best)
    return f"{text.get()}\n{advice}"


def _table(reports: Sequence[ProtocolReport]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("protocol", "check", "", "what was found"):
        table.add_column(heading, no_wrap=heading != "what was found")
    colours = {Verdict.GOOD: "green", Verdict.NOTE: "yellow", Verdict.TRAP: "red"}
    for report in reports:
        for each in report.findings:
            verdict = f"[{colours[each.verdict]}]{each.verdict}[/]"
            # Not as it stands: what a program writes may look like markup.
            sentence = each.sentence.replace("[", r"\[")
            table.add_row(report.protocol, each.check, verdict, sentence)
    return table


def _tail(log: Path) -> bytes:
    """Its end: all of it may be more than memory holds."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        return file.read(_LOG_TAIL_BYTES)


def _last_words(log: str) -> str:
    lines = log.splitlines()[-_LOG_TAIL_LINES:]
    if not lines:
        return "It wrote nothing to stderr.\n"
    return "Its stderr ends with:\n" + "".join(f"  {line}\n" for line in lines)


def _advice(task: _Task, best: ProtocolReport) -> str:
    settings = dict(_settings(best))
    opening = f"It can be used as a persistent worker, in {best.protocol}."
    if not settings:
        return f"{opening} Nothing has to be set for it.\n"
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    commented = [
        f"{line}  # if it works at several at once: {best.multiplex}"
        if line.startswith("multiplex")
        else line
        for line in lines
    ]
    program = json.dumps(task.line[0], ensure_ascii=False)
    rule = ["[[executors.NAME.workers.rules]]", f"programs = [{program}]", *commented]
    return f"{opening} Where actions do not say so themselves:\n\n" + "\n".join(rule) + "\n"
