"""A command as container engines take it, and what its exit code says."""

from __future__ import annotations

import signal
from collections.abc import Collection, Sequence
from typing import Final

from stoker import spi

# Not SIGHUP: 129 is an exit code that programs choose themselves.
_FATAL_SIGNALS: Final = frozenset(
    {
        *(signal.SIGINT, signal.SIGQUIT, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT),
        *(signal.SIGBUS, signal.SIGFPE, signal.SIGKILL, signal.SIGUSR1, signal.SIGSEGV),
        *(signal.SIGUSR2, signal.SIGPIPE, signal.SIGALRM, signal.SIGTERM, signal.SIGXCPU),
        *(signal.SIGXFSZ, signal.SIGSYS),
    }
)


def as_the_engine_takes_it(
    spec: spi.ProcessSpec,
    *,
    program: str,
    env: str | None,
    of_image: Collection[str],
    is_podman: bool,
) -> tuple[Sequence[str], Sequence[str]]:
    """The command and its variables: a name without a value is one that is taken away.

    `program` is where the command was found, and `env` the program of that name, if there is one.
    `of_image` are the names of variables that the image sets.
    """
    given = spec.environment
    variables = [f"{name}={value}" for name, value in given.items()]
    argv = list(spec.argv)
    if "/" not in argv[0] and not given.get("PATH"):
        # Engines look a bare name up in the PATH that the process has.
        argv[0] = program
    if is_podman:
        return ([env, "-i", *variables, *argv] if env else argv), variables
    if not given.get("HOME") and env:
        # Engines set it where it is empty; who is started by `env` is rid of that.
        argv = [env, *(["HOME="] if "HOME" in given else ["-u", "HOME"]), *argv]
    unwanted = {"HOSTNAME", "PATH", *of_image} - given.keys()
    return argv, [*variables, *sorted(unwanted)]


def fatal_signal(code: int) -> signal.Signals | None:
    """The signal that a command ended by, as far as its exit code tells."""
    number = code - 128
    return signal.Signals(number) if number in _FATAL_SIGNALS else None
