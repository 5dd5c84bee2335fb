"""What the demo shows, on a terminal and elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.demo.passes import Pass


def introduce(console: Console, modules: int, at_once: int) -> None:
    """Say what will happen."""
    console.print(
        "stoker starts on its built-in defaults. Then mypy type-checks "
        f"{_count(modules, 'module')}\n"
        f"of Python's standard library, {at_once} at a time, three times over:\n"
        "as one-shot processes, on persistent workers, and from the action cache.\n",
        highlight=False,
    )


class PassProgress:
    """Shows how far each pass has come: bars on a terminal, a line a pass elsewhere."""

    def __init__(self, console: Console, bars: Progress) -> None:
        self._console = console
        self._bars = bars

    @contextmanager
    def watch(self, title: str, actions: int) -> Iterator[Callable[[], None]]:
        """Show one pass; gives what to call whenever one of its actions has ended."""
        bar = self._bars.add_task(title, total=actions)
        yield lambda: self._bars.advance(bar)
        if not self._console.is_terminal:
            self._console.print(f"{title}: {actions} actions have ended", highlight=False)


@contextmanager
def open_progress(console: Console) -> Iterator[PassProgress]:
    """A display of progress, up to date until the context is left."""
    columns = (
        TextColumn("{task.description:20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        yield PassProgress(console, bars)


def conclude(console: Console, passes: Sequence[Pass]) -> None:
    """Show what was measured, what it means, and what to type next."""
    console.print()
    console.print(_table(passes))
    console.print(_explanation(passes), highlight=False)
    console.print(_next_steps(), highlight=False, markup=False)


def _table(passes: Sequence[Pass]) -> Table:
    table = Table("pass")
    for heading in ("actions", "wall time", "time an action", "ratio"):
        table.add_column(heading, justify="right")
    slowest = passes[0].action_seconds
    for done in passes:
        table.add_row(
            done.title,
            f"{len(done.actions)}",
            f"{done.wall_seconds:.2f} s",
            f"{done.action_seconds * 1000:.0f} ms",
            f"{slowest / done.action_seconds:.1f} x",
        )
    return table


def _explanation(passes: Sequence[Pass]) -> str:
    on_workers = passes[1]
    workers, actions = len(on_workers.workers), len(on_workers.actions)
    first, later = (on_workers.median_seconds(first=first) for first in (True, False))
    return f"""\
Time an action: wall time x {on_workers.at_once} at once / {actions} actions,
so that the start of the workers is in it.
{_count(workers, "worker process")} served {_count(actions, "request")}. The first one to each took
{first:.2f} s, later ones {later:.2f} s (medians).
The {_count(actions, "report")} of each pass are the same, byte for byte."""


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _next_steps() -> str:
    stoker = _shown(Path(sys.executable).with_name("stoker"))
    return f"""
What to type next:

  # Listen on 127.0.0.1:8980 and run actions on this machine.
  {stoker} serve --local-execution
  # Build your own workspace on it.
  bazel build --remote_executor=grpc://127.0.0.1:8980 //...
  # Run a command on it, with this folder as the input.
  {stoker} run -- CMD
  # Begin a configuration of your own.
  {stoker} init
  # Run all tests.
  make test

What to read next: README.md, docs/ARCHITECTURE.md, and in examples/
mypy_worker (the tool of this demo) and bazel (a workspace to build)."""


def _shown(path: Path) -> Path:
    """As short as it can be typed here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
