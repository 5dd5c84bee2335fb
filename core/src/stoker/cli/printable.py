"""Texts of clients and servers, so that they do nothing to the terminal that shows them."""

from __future__ import annotations

from collections.abc import Mapping

_ESCAPES: Mapping[str, str] = {"\n": " ⏎ "}


def printable(text: str) -> str:
    """`text` in one line, with what is no character to be seen written out."""
    return "".join(c if c.isprintable() else _ESCAPES.get(c) or ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The same, but its lines stay lines."""
    return "\n".join(map(printable, text.split("\n")))
