"""Compiles one `.page` file to HTML: once, or again and again as a persistent worker.

    page_compiler [--protocol=proto|json] @PARAMS                one page, then exit
    page_compiler [--protocol=proto|json] --persistent_worker    a page for every request

PARAMS is a file of arguments, one a line; a request of a worker holds the same arguments:
--source FILE --output FILE --statistics FILE. The statistics tell which process compiled
the page and how many it had compiled by then: a file of its own, because it differs from
run to run while the HTML does not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from . import markup
from .worker_protocols import JsonProtocol, ProtoProtocol, WorkerProtocol, WorkResponse

PROTOCOLS: dict[str, WorkerProtocol] = {"proto": ProtoProtocol(), "json": JsonProtocol()}


class Compiler:
    """Compiles pages and counts them."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._pages_seen = 0

    def compile(self, arguments: list[str], input_paths: list[str]) -> tuple[int, str]:
        """Return the exit code and what is to be told about the page, empty if all is well."""
        self._pages_seen += 1
        page = _page_arguments().parse_args(arguments)
        try:
            source = page.source.read_text(encoding="utf-8")
            page.output.write_text(markup.to_html(source), encoding="utf-8")
        except markup.MarkupError as error:
            return 1, f"{page.source}:{error.line}: {error.problem}\n"
        except OSError as error:
            return 1, f"{error}\n"
        page.statistics.write_text(self._statistics(input_paths), encoding="utf-8")
        return 0, ""

    def _statistics(self, input_paths: list[str]) -> str:
        facts = {
            "mode": self._mode,
            "process_id": os.getpid(),
            "requests_served": self._pages_seen,
            "inputs": sorted(input_paths),
        }
        return json.dumps(facts, indent=2) + "\n"


def _page_arguments() -> argparse.ArgumentParser:
    # A worker lives on when a request's arguments are wrong: no exit from within the parser.
    parser = argparse.ArgumentParser(prog="page_compiler", exit_on_error=False)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--statistics", type=Path, required=True)
    return parser


def serve(protocol: WorkerProtocol) -> None:
    """Answer requests on stdin with responses on stdout until stdin ends."""
    with os.fdopen(0, "rb", closefd=False) as requests, os.fdopen(os.dup(1), "wb") as responses:
        # From here on a stray print goes to stderr: only responses may go to stdout.
        os.dup2(2, 1)
        compiler = Compiler("worker")
        for request in protocol.read_requests(requests):
            if request.cancel:
                # One request at a time: whatever this cancels has been answered already.
                continue
            exit_code, output = compiler.compile(request.arguments, request.input_paths)
            protocol.write_response(responses, WorkResponse(exit_code, output, request.request_id))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="page_compiler", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="proto")
    parser.add_argument("--persistent_worker", action="store_true")
    parser.add_argument("params", metavar="@PARAMS", nargs="?")
    options = parser.parse_args()
    if options.persistent_worker:
        serve(PROTOCOLS[options.protocol])
        return 0
    if options.params is None or not options.params.startswith("@"):
        parser.error("give either --persistent_worker or @PARAMS")
    arguments = Path(options.params[1:]).read_text(encoding="utf-8").splitlines()
    exit_code, output = Compiler("one-shot").compile(arguments, [])
    sys.stderr.write(output)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
