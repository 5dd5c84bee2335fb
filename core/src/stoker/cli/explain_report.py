"""An explanation as people read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from stoker.cli.printable import printable
from stoker.protos import explain_pb2 as explain
from stoker.protos import remote_execution_pb2 as reapi

_TOLD_LENGTH = 100

# Each from the end of the one before it.
_PHASES = (
    ("queued", "worker_start_timestamp"),
    ("inputs", "input_fetch_completed_timestamp"),
    ("start", "execution_start_timestamp"),
    ("execution", "execution_completed_timestamp"),
    ("outputs", "output_upload_completed_timestamp"),
    ("end", "worker_completed_timestamp"),
)


class Phase(NamedTuple):
    """A stretch of the time that an action took."""

    name: str
    seconds: float


def phases(run: explain.Run) -> list[Phase]:
    """Where the time went, one after the other: the phases that have come to their end."""
    metadata = run.metadata
    # Of a shared run, the first of its operations counts.
    last = metadata.queued_timestamp if metadata.HasField("queued_timestamp") else run.queued
    found = []
    for name, field in _PHASES:
        if metadata.HasField(field):  # type: ignore[arg-type]  # one of its fields
            stamp: Timestamp = getattr(metadata, field)
            found.append(Phase(name, _seconds_between(last, stamp)))
            last = stamp
    if found and run.cache_verdict != "hit" and run.HasField("ended"):
        found.append(Phase("filing", _seconds_between(last, run.ended)))
    return found


def _seconds_between(earlier: Timestamp, later: Timestamp) -> float:
    return (later.ToNanoseconds() - earlier.ToNanoseconds()) / 1e9


def print_report(console: Console, explanation: explain.Explanation) -> None:
    """Write it whole."""
    run = explanation.run
    is_hit = run.cache_verdict == "hit"
    for line in (*_head(run), *_ending(run)):
        console.print(printable(line))
    if explanation.HasField("waiting"):
        _section(console, "why it waits now", _waiting(explanation.waiting))
    if found := phases(run):
        console.print(f"\nwhere the time went{', when the result was made' if is_hit else ''}")
        console.print(_time_table(found))
    _section(console, "why it waited", filter(None, [run.wait]))
    _section(console, f"where it ran{', when the result was made' if is_hit else ''}", _places(run))
    title = "the action cache" if is_hit else "why it was not a cache hit"
    _section(console, title, [explanation.cache_explanation])
    if explanation.HasField("nearest_earlier"):
        _print_comparison(console, explanation.nearest_earlier)
    _section(console, "other runs of this action", map(_summary, explanation.other_runs))


def _section(console: Console, title: str, lines: Iterable[str]) -> None:
    """A title and what belongs to it; nothing without any lines."""
    found = [f"  {printable(line)}" for line in lines]
    if found:
        console.print("\n".join(["", title, *found]))


def _head(run: explain.Run) -> Iterator[str]:
    named = "  ".join(filter(None, (run.mnemonic, run.target)))
    yield f"action {_name(run)}  {named}".rstrip()
    yield f"  instance {run.instance_name!r}, operations {', '.join(run.operation_names) or '-'}"
    tool = run.client.tool_details
    client = " ".join(filter(None, (tool.tool_name, tool.tool_version)))
    invocation = run.client.tool_invocation_id
    said = [client or "a client", invocation and f"invocation {invocation}", run.principal]
    if any((client, invocation, run.principal)):
        yield f"  for {', '.join(filter(None, said))}"
    if run.platform.properties:
        asked = ", ".join(f"{entry.name}={entry.value}" for entry in run.platform.properties)
        yield f"  platform {asked}"


def _name(run: explain.Run) -> str:
    return f"{run.action_digest.hash}/{run.action_digest.size_bytes}"


def _ending(run: explain.Run) -> Iterator[str]:
    stage = run.stage
    if stage == reapi.ExecutionStage.QUEUED:
        yield f"  queued since {_time(run.queued)}"
    elif stage == reapi.ExecutionStage.EXECUTING:
        yield f"  executing, accepted {_time(run.queued)}"
    else:
        yield f"  {_summary(run)}"
    if run.message:
        yield f"  {run.message}"


def _summary(run: explain.Run) -> str:
    """How it ended, in a line."""
    parts = [f"ended {_time(run.ended)}"]
    if run.HasField("exit_code"):
        parts.append(f"exit code {run.exit_code}")
    if run.error:
        parts.append(run.error)
    if run.executors:
        parts.append(f"on {', '.join(run.executors)}")
    answered = {"hit": "answered from the action cache", "": ""}
    parts.append(answered.get(run.cache_verdict, f"action cache: {run.cache_verdict}"))
    return "  ".join(filter(None, parts))


def _time(stamp: Timestamp) -> str:
    return f"{stamp.ToDatetime():%Y-%m-%d %H:%M:%S}Z"


def _time_table(found: list[Phase]) -> Table:
    total = sum(phase.seconds for phase in found)
    table = Table(box=None, show_header=False, pad_edge=True)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    for phase in (*found, Phase("together", total)):
        share = f"{phase.seconds / total:.0%}" if total > 0 else "-"
        table.add_row(phase.name, duration(phase.seconds), share)
    return table


def duration(seconds: float) -> str:
    """As 1.2 ms or 3.45 s."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _waiting(waiting: explain.Waiting) -> Iterator[str]:
    for executor, obstacle in sorted(waiting.obstacles.items()):
        yield f"executor {executor} could take it: {obstacle}"
    yield (
        f"{waiting.others_queued} others are queued and {waiting.executing} run, "
        f"{waiting.same_invocation} of these for the same invocation"
    )
    if waiting.kept_free:
        yield f"executor {waiting.kept_free} takes nothing behind it"


def _places(run: explain.Run) -> Iterator[str]:
    metadata = run.metadata
    if metadata.worker or run.executors:
        yield f"executor {metadata.worker or ', '.join(run.executors)}"
    if len(run.executors) > 1:
        yield f"after {len(run.executors)} attempts, on {', '.join(run.executors)}"
    for entry in metadata.auxiliary_metadata:
        facts = Struct()
        if entry.Unpack(facts):
            for name, value in dict(facts).items():
                yield f"{name.replace('_', ' ')}: {_fact(name, value)}"


def _fact(name: str, value: Any) -> str:
    if name.endswith("_seconds"):
        return duration(value)
    if name.endswith("_bytes"):
        return decimal(int(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _print_comparison(console: Console, found: explain.Comparison) -> None:
    console.print(
        f"  the nearest earlier action, with the same {found.alike}, is {_name(found.run)}"
    )
    console.print(f"  it {printable(_summary(found.run))}; this one differs from it in")
    table = Table(box=None, show_header=False, pad_edge=True)
    for _ in range(4):
        table.add_column(overflow="fold")
    for difference in found.differences:
        table.add_row(*map(printable, _row(difference)))
    console.print(table)
    for gone in found.gone:
        console.print(f"    {printable(gone)}: not compared, as it is no longer in the CAS")
    if found.cut_off:
        console.print(f"    and more: the first {len(found.differences)} are told")


def _row(difference: explain.Difference) -> tuple[str, str, str, str]:
    values = [shortened(text) for text in (difference.before, difference.after)]
    told = {"added": values[1], "removed": values[0]}.get(
        difference.change, f"{values[0] or 'none'} → {values[1] or 'none'}"
    )
    return f"  {difference.part}", difference.change, difference.name, told


def shortened(text: str) -> str:
    """A line's worth of `text`."""
    return text if len(text) <= _TOLD_LENGTH else f"{text[: _TOLD_LENGTH - 1]}…"
