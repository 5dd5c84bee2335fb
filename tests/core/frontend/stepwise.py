"""Actions that do one step after another, each when they are told to."""

from __future__ import annotations

import os
from pathlib import Path

STEPWISE = """exec 3<"$0"
while read word <&3 && [ "$word" != end ]; do echo "$word"; echo "${word}!" >&2; done"""


class Fifo:
    """What an action waits for."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        # Not to wait for the action, which has it open for as long as it lives.
        self._end = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def tell(self, *words: str) -> None:
        """Let an action go on that reads lines."""
        os.write(self._end, "".join(f"{word}\n" for word in words).encode())

    def close(self) -> None:
        os.close(self._end)
