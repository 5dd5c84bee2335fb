"""Encloses processes by bubblewrap."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import trio

from stoker import spi
from stoker_sandbox_bubblewrap import diagnosis, overlay, wishes
from stoker_sandbox_bubblewrap.command_line import (
    COMMAND_FILE,
    RUN_COMMAND_FILE,
    Enclosure,
    Tools,
    command_file,
    command_line,
    fits,
    inner_command,
)
from stoker_sandbox_bubblewrap.private_folder import make_private_folder, remove_private_folder
from stoker_sandbox_bubblewrap.program import check_program, check_words
from stoker_sandbox_bubblewrap.settings import BubblewrapSettings
from stoker_sandbox_bubblewrap.view import View

_log = logging.getLogger(__name__)

# Not SIGHUP: 129 is an exit code that programs choose themselves, git among them.
_FATAL_SIGNALS: Final = frozenset(
    {
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGILL,
        signal.SIGTRAP,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGKILL,
        signal.SIGUSR1,
        signal.SIGSEGV,
        signal.SIGUSR2,
        signal.SIGPIPE,
        signal.SIGALRM,
        signal.SIGTERM,
        signal.SIGXCPU,
        signal.SIGXFSZ,
        signal.SIGSYS,
    }
)


class Bubblewrap(spi.Sandbox):
    """Processes in namespaces of their own, with a read-only system around their folders."""

    def __init__(self, settings: BubblewrapSettings, view: View, tools: Tools) -> None:
        self._settings = settings
        self._view = view
        self._tools = tools
        self.protects_inputs = settings.inputs == "overlay"

    def enforcement(self) -> Sequence[str]:
        """See :class:`stoker.spi.Sandbox`."""
        by_property = self._settings.network_by_property
        networks = {
            ("off", False): "no network but loopback",
            ("off", True): "no network but loopback, unless a platform property asks for it",
        }
        network = networks.get((self._settings.network, by_property), "the machine's network")
        inputs = {
            "as-laid": "the input root is writable as it was laid out",
            "overlay": "the input root is seen through an overlay: its files cannot be changed",
        }
        return (
            f"bubblewrap: namespaces for mounts, processes, IPC, users, host name; {network}",
            "bubblewrap: a read-only system and private /tmp and /dev/shm",
            "bubblewrap: of the server's folders nothing but the action's own",
            f"bubblewrap: {inputs[self._settings.inputs]}",
            "bubblewrap: all that a process started ends with it, whatever it did to get away",
        )

    def read_exit(self, exit_: spi.Exit) -> spi.Exit:
        """Take a code by which bubblewrap tells of a signal for that signal.

        A command that chooses such a code itself, as shells do for their children, is not told
        apart from one that was ended by the signal.
        """
        number = exit_.code - 128
        if exit_.signal is None and number in _FATAL_SIGNALS:
            return exit_._replace(signal=number)
        return exit_

    @asynccontextmanager
    async def enclose(self, spec: spi.ProcessSpec) -> AsyncIterator[spi.ProcessSpec]:
        """See :class:`stoker.spi.Sandbox`.

        Leaving it cleanly, when the process has ended, makes what was written to an overlay part
        of the root; leaving it by an exception, cancellation included, drops that. Raises on
        leaving what `stoker_sandbox_bubblewrap.diagnosis.check_started` raises.
        """
        enclosure = await trio.to_thread.run_sync(self._prepare, spec)
        is_clean = False
        try:
            yield enclosure.rewritten
            is_clean = True
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_leave, enclosure, is_clean)

    def _prepare(self, spec: spi.ProcessSpec) -> _Prepared:
        network = wishes.network(self._settings, spec.properties)
        is_overlay = wishes.overlay(self._settings, spec)
        with _disk_errors("the sandbox cannot be prepared"):
            self._view.check_apart(spec)
            check_words(spec)
            program = check_program(spec, _Seen(self._view, spec))
            user = _owner(spec.root)
            private = make_private_folder(spec.root, user)
            enclosure = Enclosure(
                spec=spec,
                program=program,
                view=self._view,
                network=network,
                overlay=is_overlay,
                private=private,
                user=user,
                namespaces=self._settings.namespaces,
                tmpfs_bytes=self._settings.tmpfs_bytes,
            )
            try:
                return _Prepared(
                    enclosure, self._rewrite(enclosure), diagnosis.size_of(spec.stderr)
                )
            except BaseException:
                _remove(private)
                raise

    def _rewrite(self, enclosure: Enclosure) -> spi.ProcessSpec:
        spec = enclosure.spec
        if enclosure.overlay:
            overlay.prepare(enclosure.private, str(spec.root), enclosure.user)
        command = inner_command(enclosure)
        if not fits(command):
            _write(os.path.join(enclosure.private, COMMAND_FILE), enclosure, command)
            command = RUN_COMMAND_FILE
        return replace(
            spec,
            argv=command_line(self._tools, enclosure, command),
            # A variable such as LD_PRELOAD must not reach a program outside of the enclosure.
            environment={},
            # It is entered inside, where no link leads out.
            working_directory="",
        )


class _Prepared(NamedTuple):
    enclosure: Enclosure
    rewritten: spi.ProcessSpec
    said_before_bytes: int
    """How much the file of stderr held already."""


class _Seen:
    """Tells whether a file, by its real path, is there inside."""

    def __init__(self, view: View, spec: spi.ProcessSpec) -> None:
        self._view = view
        folders = (spec.root, spec.temporary_directory)
        self._folders = tuple(Path(os.path.realpath(folder)) for folder in folders)

    def __call__(self, path: str) -> bool:
        return self._view.shows(path) or any(
            Path(path).is_relative_to(folder) for folder in self._folders
        )


def _owner(root: Path) -> spi.ProcessUser:
    """Whom the process will run as: the root was made to belong to that user."""
    status = root.stat()
    if status.st_uid == os.geteuid():
        return spi.ProcessUser(os.geteuid(), os.getegid())
    return spi.ProcessUser(status.st_uid, status.st_gid)


def _write(path: str, enclosure: Enclosure, command: Sequence[str]) -> None:
    Path(path).write_bytes(command_file(command))
    overlay.give(path, enclosure.user)


def _leave(prepared: _Prepared, is_clean: bool) -> None:
    enclosure = prepared.enclosure
    try:
        if is_clean:
            _settle(enclosure, prepared.said_before_bytes)
    finally:
        _remove(enclosure.private)


def _settle(enclosure: Enclosure, said_before_bytes: int) -> None:
    with _disk_errors("what the process wrote cannot be taken over"):
        diagnosis.check_started(enclosure.spec, enclosure.private, said_before_bytes)
        if enclosure.overlay:
            overlay.apply(enclosure.private, str(enclosure.spec.root))


def _remove(private: str) -> None:
    try:
        remove_private_folder(private)
    except OSError as error:
        # It lies in the action's own place, which whoever made that removes or reports.
        _log.warning("the sandbox's folder %s is not removed: %s", private, error)


@contextmanager
def _disk_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise spi.Unavailable(f"{doing}: {error}") from error
