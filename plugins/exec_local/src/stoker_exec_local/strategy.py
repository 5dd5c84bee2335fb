"""Starting processes of this machine as specifications ask."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from stoker import spi
from stoker_exec_local.estate import Land, establish
from stoker_exec_local.launcher.messages import Start
from stoker_exec_local.launcher.program import NOT_EXECUTABLE
from stoker_exec_local.launching import Launcher, open_launcher
from stoker_exec_local.process import LocalProcess


class LocalStrategy(spi.ExecutionStrategy):
    """Processes of this machine, without an enclosure. Opened by `open_local`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        user: spi.ProcessUser | None,
        land: Land | None,
        max_memory_bytes: int | None,
        enforcement: Sequence[str],
    ) -> None:
        self.user = user
        self.protects_inputs = user is not None
        self._nursery = nursery
        self._land = land
        self._max_memory_bytes = max_memory_bytes
        self._enforcement = tuple(enforcement)
        self._numbers = itertools.count(1)
        self._launcher: Launcher | None = None
        self._launching = trio.Lock()

    def enforcement(self) -> Sequence[str]:
        """See :class:`stoker.spi.ExecutionStrategy`."""
        return self._enforcement

    @asynccontextmanager
    async def start(self, spec: spi.ProcessSpec) -> AsyncIterator[spi.Process]:
        """See :class:`stoker.spi.ExecutionStrategy`."""
        start = _as_the_system_takes_it(spec)
        process = LocalProcess(await self.launcher(), next(self._numbers))
        process.begin(start)
        try:
            await process.wait_started()
            yield process
        finally:
            await process.end()

    async def launcher(self) -> Launcher:
        """The launcher, a new one if the last is lost. Raises Unavailable."""
        if self._launcher is not None and not self._launcher.is_lost:
            return self._launcher
        async with self._launching:
            if self._launcher is None or self._launcher.is_lost:
                self._launcher = await self._open_launcher()
        return self._launcher

    async def _open_launcher(self) -> Launcher:
        # A cancellation in between would leave a program or groups to nobody.
        with trio.CancelScope(shield=True):
            estate = None
            if self._land is not None:
                try:
                    estate = await trio.to_thread.run_sync(
                        establish, self._land, self._max_memory_bytes
                    )
                except OSError as error:
                    reason = f"no control groups can be made: {error}"
                    raise spi.Unavailable(reason) from error
            try:
                launcher = await open_launcher(self.user, estate)
            except BaseException:
                if estate is not None:
                    estate.remove()
                raise
            self._nursery.start_soon(launcher.run)
        return launcher

    async def close(self) -> None:
        """End the launcher, and wait until nothing is left. Shielded from cancellation."""
        if self._launcher is not None:
            self._launcher.close()
            with trio.CancelScope(shield=True):
                await self._launcher.ended.wait()


@asynccontextmanager
async def open_local(
    *,
    user: spi.ProcessUser | None = None,
    land: Land | None = None,
    max_memory_bytes: int | None = None,
    enforcement: Sequence[str] = (),
) -> AsyncIterator[LocalStrategy]:
    """Give a strategy whose launcher is running. Without `land` there are no control groups.

    Raises Unavailable.
    """
    failure: spi.Unavailable | None = None
    async with trio.open_nursery() as nursery:
        strategy = LocalStrategy(
            nursery,
            user=user,
            land=land,
            max_memory_bytes=max_memory_bytes,
            enforcement=enforcement,
        )
        try:
            await strategy.launcher()
        except spi.Unavailable as error:
            failure = error
        else:
            try:
                yield strategy
            finally:
                await strategy.close()
    if failure is not None:
        # Not from inside of the nursery, which would wrap it.
        raise failure


def _encoded(text: str) -> bytes:
    """As os.fsencode, which takes several times as long to look at what it is given."""
    return text.encode(_ENCODING, _ERRORS)


_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


def _as_the_system_takes_it(spec: spi.ProcessSpec) -> Start:
    try:
        return Start(
            [_encoded(argument) for argument in spec.argv],
            {_encoded(name): _encoded(value) for name, value in spec.environment.items()},
            os.fsencode(spec.root),
            _encoded(spec.working_directory),
            None if spec.stdout is None else os.fsencode(spec.stdout),
            os.fsencode(spec.stderr),
            spec.limits.cpus,
            spec.limits.memory_bytes,
            spec.limits.processes,
        )
    except UnicodeEncodeError as error:
        raise spi.ProgramNotStarted(
            ascii(spec.argv[0]), str(error), exit_code=NOT_EXECUTABLE
        ) from error
