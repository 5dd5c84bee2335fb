"""``python -m bench``: measures, one thing after the other, and prints a table."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from bench import (
    action_cache,
    buckets,
    byte_stream,
    containers,
    find_missing,
    input_roots,
    journal,
    local_strategy,
    one_shot,
    outputs,
    process_starts,
    real_workers,
    report,
    rpc_unary,
    scheduling,
    storage,
    waiting,
    warm_worker,
)

MEASUREMENTS = {
    "rpc_unary": rpc_unary.measure,
    "byte_stream": byte_stream.measure,
    "find_missing": find_missing.measure,
    "action_cache": action_cache.measure,
    "input_roots": input_roots.measure,
    "process_starts": process_starts.measure,
    "one_shot": one_shot.measure,
    "warm_worker": warm_worker.measure,
    "real_workers": real_workers.measure,
    "containers": containers.measure,
    "local_strategy": local_strategy.measure,
    "outputs": outputs.measure,
    "storage": storage.measure,
    "scheduling": scheduling.measure,
    "waiting": waiting.measure,
    "journal": journal.measure,
    "buckets": buckets.measure,
}

TABLE_WIDTH = 150
DEFAULT_FILE = Path(__file__).with_name("results") / "latest.json"


def main() -> None:
    options = _parse_options()
    console = Console()
    # A table that the terminal has to wrap is still whole; one that is cut to fit is not.
    console.width = max(console.width, TABLE_WIDTH)
    load_average_before = os.getloadavg()[0]
    rows = []
    for name in options.names or MEASUREMENTS:
        start = time.monotonic()
        rows += MEASUREMENTS[name](quick=options.quick)
        console.print(f"{name}: {time.monotonic() - start:.0f} s")
    report.print_table(rows, console)
    document = {
        "quick": options.quick,
        "machine": report.machine(),
        "load_average": {"before": load_average_before, "after": os.getloadavg()[0]},
        "rows": [report.as_json(row) for row in rows],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"load average {load_average_before:.2f} before; every figure: {options.json}")
    missed = [row for row in rows if row.at_most is not None and row.ratio > row.at_most]
    for row in missed:
        console.print(f"missed: {row.what}: {row.ratio:.2f}, at most {row.at_most:.2f} was agreed")
    if missed and not options.quick:
        sys.exit(1)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="see that all runs; no true figures")
    parser.add_argument("--json", type=Path, metavar="FILE", default=DEFAULT_FILE)
    options = parser.parse_args()
    if unknown := set(options.names) - set(MEASUREMENTS):
        parser.error(f"no measurement is called {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    main()
