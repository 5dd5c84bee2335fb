"""The logs of a pool's workers: those of the living, and the newest of those that have ended."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from stoker.spi import ProcessUser
from stoker.workers.log import remove_log


class WorkerLogs:
    """The files of one folder. Calls block for as long as a file system may. Raise OSError."""

    def __init__(self, folder: Path, kept: int, user: ProcessUser | None) -> None:
        """Keep at most `kept` logs of workers that have ended; all belong to `user`."""
        self._folder = folder
        self._kept = kept
        self._user = user
        self._ended: deque[Path] = deque()

    def open(self, name: str) -> Path:
        """A new log, which only its owner may read, for the worker `name`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        log = self._folder / f"{name}.log"
        log.touch(0o600)
        if self._user is not None:
            # A process may open by name what it has as a descriptor.
            os.chown(log, *self._user)
        return log

    def end(self, log: Path) -> None:
        """Its worker has ended. It stays as long as it is one of the newest."""
        self._ended.append(log)
        while len(self._ended) > self._kept:
            remove_log(self._ended.popleft())

    def remove(self) -> None:
        """Remove the logs of all workers that have ended, and the folder."""
        while self._ended:
            remove_log(self._ended.popleft())
        if self._folder.is_dir():
            self._folder.rmdir()
