"""What of the machine an enclosed process sees. These functions look at the disk."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stoker import spi
from stoker_sandbox_bubblewrap.settings import DEFAULT_SHOWN, BubblewrapSettings


@dataclass(frozen=True, slots=True)
class View:
    """Paths of the machine that are shown read-only under their own names, without others."""

    shown: tuple[str, ...]
    hidden: tuple[str, ...]
    arguments: tuple[str, ...]
    """What bubblewrap makes them from."""

    def shows(self, path: str) -> bool:
        """Whether the file at `path`, links resolved, is there inside."""
        return _lies_below(path, self.shown) and not _lies_below(path, self.hidden)

    def check_apart(self, spec: spi.ProcessSpec) -> None:
        """Raise FailedPrecondition where what is shown would show folders of other actions."""
        for folder in (spec.root, spec.temporary_directory):
            if self.shows(os.path.realpath(folder.parent)):
                raise spi.FailedPrecondition(
                    f"the sandbox shows a folder of the machine that {folder} lies in, "
                    "and so those of other actions"
                )


def look(settings: BubblewrapSettings, configuration: Path) -> View:
    """What the settings mean on this machine, now; `configuration` is the TOML file's folder.

    That folder is hidden where it lies in what is shown, and so is the server's home in what was
    asked for beyond the defaults. Raises ConfigurationError where one of them itself is shown.
    """
    patterns = (*settings.shown, *settings.also_shown)
    shown = tuple(dict.fromkeys(path for pattern in patterns for path in _matches(pattern)))
    own = {os.path.realpath(configuration)}
    if not set(patterns) <= set(DEFAULT_SHOWN):
        own.add(os.path.realpath(Path.home()))
    if exposed := sorted(own & {os.path.realpath(path) for path in shown}):
        raise spi.ConfigurationError([f"shown: {exposed[0]} belongs to the server"])
    hidden = tuple(
        dict.fromkeys(path for path in (*sorted(own), *settings.hidden) if _lies_below(path, shown))
    )
    return View(
        tuple(os.path.realpath(path) for path in shown), hidden, tuple(_arguments(shown, hidden))
    )


def _matches(pattern: str) -> Sequence[str]:
    return sorted(glob.glob(pattern.rstrip("/") or "/"))  # noqa: PTH207  # absolute patterns


def _arguments(shown: Sequence[str], hidden: Iterable[str]) -> Iterable[str]:
    for path in shown:
        real = os.path.realpath(path)
        others = [other for other in shown if other != path]
        if Path(path).is_symlink() and _lies_below(real, others):
            yield from ("--symlink", str(Path(path).readlink()), path)
        else:
            # It was there when the server started, and may be gone by now.
            yield from ("--ro-bind-try", real, path)
    for path in hidden:
        yield from ("--tmpfs", path, "--remount-ro", path)


def _lies_below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)
