"""Splitting a command line into what starts a worker and what is asked of it, as Bazel does.

Source: Bazel's legacy mode, which is its default: ``WorkerParser`` and ``WorkerSpawnRunner``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from stoker.errors import InvalidRequest

MAX_DEPTH = 32
"""How deep flag files may name flag files."""

MAX_FLAG_FILE_BYTES = 64 * 1024 * 1024
"""How much the flag files of one request may hold together."""

MAX_FLAG_FILES = 10_000
"""How many flag files one request may name, each counted as often as it is named."""

MAX_LINES = 1_000_000
"""How many lines the flag files of one request may have together."""

ReadFlagFile = Callable[[str], Awaitable[bytes]]

_FLAG_FILE_ARGUMENT = re.compile(r"(?:@|--?flagfile=).+", re.DOTALL)


class CommandLine(NamedTuple):
    """A command line in its two parts, each in the order of the original."""

    startup: tuple[str, ...]
    flag_files: tuple[str, ...]
    """As they are written: ``@path``, ``-flagfile=path`` or ``--flagfile=path``."""


def split_arguments(arguments: Sequence[str]) -> CommandLine | None:
    """The two parts of `arguments`, or None where no argument names a flag file (PWK-04).

    ``@@x`` and ``@repository//x`` count as naming one, a lone ``@`` does not.
    """
    flag_files = tuple(filter(_FLAG_FILE_ARGUMENT.fullmatch, arguments))
    if not flag_files:
        return None
    startup = tuple(text for text in arguments if not _FLAG_FILE_ARGUMENT.fullmatch(text))
    return CommandLine(startup, flag_files)


def flag_file_path(argument: str) -> str | None:
    """The file whose lines replace `argument`, or None where the tool gets it as it stands.

    Only ``@path`` is replaced: not ``@@x``, no label of a repository, neither flagfile form.
    """
    path = argument[1:]
    if not argument.startswith("@") or not path or path.startswith("@") or "//" in path:
        return None
    return path


async def expand_arguments(flag_files: Sequence[str], read: ReadFlagFile) -> list[str]:
    """The arguments of a request: `flag_files` in order, with lines in place of ``@path``.

    `read` is given each path as it is written. One line is one argument, and an empty line an
    empty one, however long. Raises InvalidRequest for files that name each other in a circle, or
    more than `MAX_DEPTH` deep, that are more than `MAX_FLAG_FILES`, of more than
    `MAX_FLAG_FILE_BYTES` together or of more than `MAX_LINES` lines, or that are no UTF-8.
    """
    return await _Expansion(read).expand(flag_files)


class _Expansion:
    """The expansion of one request's arguments."""

    def __init__(self, read: ReadFlagFile) -> None:
        self._read = read
        self._open: list[str] = []  # the files that are being expanded, outermost first
        self._total_bytes = 0
        self._total_files = 0
        self._total_lines = 0

    async def expand(self, arguments: Sequence[str]) -> list[str]:
        expanded: list[str] = []
        for argument in arguments:
            path = flag_file_path(argument)
            if path is None:
                expanded.append(argument)
            else:
                expanded += await self._expand_file(path)
        return expanded

    async def _expand_file(self, path: str) -> list[str]:
        self._check_nesting(path)
        data = await self._read_bounded(path)
        self._count_lines(path, data)
        lines = _lines(path, data)
        self._open.append(posixpath.normpath(path))
        expanded = await self.expand(lines)
        self._open.pop()
        return expanded

    def _check_nesting(self, path: str) -> None:
        if posixpath.normpath(path) in self._open:
            chain = " -> ".join([*self._open, path])
            raise InvalidRequest(f"flag files name each other in a circle: {chain}")
        if len(self._open) == MAX_DEPTH:
            raise InvalidRequest(f"flag file {path!r} is nested more than {MAX_DEPTH} deep")

    async def _read_bounded(self, path: str) -> bytes:
        self._total_files += 1
        if self._total_files > MAX_FLAG_FILES:
            raise InvalidRequest(
                f"flag files are named more than {MAX_FLAG_FILES} times, the last is {path!r}"
            )
        data = await self._read(path)
        self._total_bytes += len(data)
        if self._total_bytes > MAX_FLAG_FILE_BYTES:
            raise InvalidRequest(
                f"flag files hold more than {MAX_FLAG_FILE_BYTES} bytes together, "
                f"the last of them {path!r}"
            )
        return data

    def _count_lines(self, path: str, data: bytes) -> None:
        # Before they are split: short lines take many times their memory as arguments.
        self._total_lines += data.count(b"\n")
        if self._total_lines > MAX_LINES:
            raise InvalidRequest(
                f"flag files hold more than {MAX_LINES} lines together, the last of them {path!r}"
            )


def _lines(path: str, data: bytes) -> list[str]:
    """The lines of a flag file. Not splitlines, to which many more characters end a line."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"flag file {path!r} is no UTF-8 text: {error}") from error
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
