"""The program that a function becomes: a worker or an ordinary command, as its arguments say."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal, NoReturn

from stoker.worker_kit.codecs import CODECS
from stoker.worker_kit.request import Request
from stoker.worker_kit.serving import Tool, run_tool, serve_requests

_WORKER_FLAG = "--persistent_worker"
_PROTOCOL_FLAG = "--worker_protocol="

# What build tools split off a command line and send with each request; see Bazel's WorkerParser.
_FLAG_FILE = re.compile(r"(?:@|--?flagfile=).+", re.DOTALL)
_MAX_DEPTH = 32


def serve(
    function: Tool,
    *,
    threads: int = 1,
    protocol: Literal["auto", "proto", "json"] = "auto",
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """Make `function` the program: call it once or for every request, and exit.

    With ``--persistent_worker`` among `arguments`, those of the process unless given, requests are
    read from stdin and answered on stdout until stdin ends. Without, `function` is called once
    with the arguments of the command line, ``@file`` expanded, and its exit code is the program's.

    `function` returns an exit code, or None for 0. An exception is exit code 1 and a traceback in
    the output; SystemExit is as in any program. What is printed while it runs is the output of
    the request, which an ordinary run has on stderr.

    Up to `threads` requests are worked on at once: with more than one, `function` must bear to be
    called by several threads, and the worker is a multiplex worker worth the name. With one,
    requests that come meanwhile wait, and `function` runs in the main thread.

    `protocol` is how to speak; ``--worker_protocol=`` on the command line counts more. By itself
    it is told by the first request.
    """
    line = list(sys.argv[1:] if arguments is None else arguments)
    persistent = _WORKER_FLAG in line
    rest = []
    name: str = protocol
    for argument in line:
        if argument.startswith(_PROTOCOL_FLAG):
            name = argument.removeprefix(_PROTOCOL_FLAG)
        elif argument != _WORKER_FLAG:
            rest.append(argument)
    if name not in CODECS:
        _refuse(f"{_PROTOCOL_FLAG}{name}: there are {', '.join(CODECS)}")
    if not persistent:
        sys.exit(_run_once(function, rest))
    sys.exit(serve_requests(function, rest, CODECS[name](), threads))


def _run_once(tool: Tool, arguments: Sequence[str]) -> int:
    request = Request(_as_a_worker_sees_them(arguments))
    with redirect_stdout(sys.stderr):
        return run_tool(tool, request)


def _as_a_worker_sees_them(arguments: Sequence[str]) -> list[str]:
    """Flag files go last, as they do where a worker is started with all the others."""
    flag_files = [each for each in arguments if _FLAG_FILE.fullmatch(each)]
    startup = [each for each in arguments if not _FLAG_FILE.fullmatch(each)]
    return startup + _expanded(flag_files, depth=0)


def _expanded(arguments: Sequence[str], depth: int) -> list[str]:
    if depth > _MAX_DEPTH:
        _refuse(f"flag files name each other more than {_MAX_DEPTH} deep")
    result = []
    for argument in arguments:
        path = argument[1:]
        # As build tools expand them: neither `@@x` nor `@repository//x` nor `--flagfile=x`.
        if not argument.startswith("@") or not path or path.startswith("@") or "//" in path:
            result.append(argument)
        else:
            result += _expanded(_lines(path), depth + 1)
    return result


def _lines(path: str) -> list[str]:
    """The lines of a flag file. Not splitlines, to which many more characters end a line."""
    try:
        lines = Path(path).read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        _refuse(f"flag file {path!r}: {error}")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _refuse(problem: str) -> NoReturn:
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {problem}\n")
    sys.exit(2)
