"""The language of `.page` files: one block a paragraph, its kind told by its first characters.

= Title          a heading, `==` a lesser one
* entry          a list, one entry a line
anything else    a paragraph
"""

from __future__ import annotations

import html


class MarkupError(Exception):
    """A page cannot be compiled: `line` (from 1) and what is wrong with it."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


def to_html(text: str) -> str:
    """Return the page as HTML. Raises MarkupError at the first line that has no meaning."""
    return "".join(_block_to_html(line, block) for line, block in _blocks(text))


def _blocks(text: str) -> list[tuple[int, list[str]]]:
    """Split at empty lines; every block comes with the number of its first line."""
    blocks: list[tuple[int, list[str]]] = []
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            inside = False
        elif inside:
            blocks[-1][1].append(line)
        else:
            blocks.append((number, [line]))
            inside = True
    return blocks


def _block_to_html(line: int, block: list[str]) -> str:
    if block[0].startswith("="):
        return _heading_to_html(line, block)
    if block[0].startswith("* "):
        return _list_to_html(line, block)
    return f"<p>{html.escape(' '.join(block))}</p>\n"


def _heading_to_html(line: int, block: list[str]) -> str:
    marker, _, title = block[0].partition(" ")
    if len(block) > 1:
        raise MarkupError(line + 1, "a heading has one line")
    if marker not in {"=", "=="} or not title:
        raise MarkupError(line, f"no such heading: {block[0]}")
    return f"<h{len(marker)}>{html.escape(title)}</h{len(marker)}>\n"


def _list_to_html(line: int, block: list[str]) -> str:
    for offset, entry in enumerate(block):
        if not entry.startswith("* "):
            raise MarkupError(line + offset, f"not an entry of a list: {entry}")
    entries = "".join(f"<li>{html.escape(entry[2:])}</li>" for entry in block)
    return f"<ul>{entries}</ul>\n"
