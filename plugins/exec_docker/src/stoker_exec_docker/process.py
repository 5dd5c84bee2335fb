"""One process in a container that it has to itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Final

import trio

from stoker import spi
from stoker_exec_docker.command import as_the_engine_takes_it, fatal_signal
from stoker_exec_docker.connection import Connection, start_command
from stoker_exec_docker.container import Container
from stoker_exec_docker.engine import Engine, Facts, NoSuchThing, NotAnswering, Refused
from stoker_exec_docker.frames import STDERR, Frame, FrameDecoder
from stoker_exec_docker.handover import handed_over
from stoker_exec_docker.inside import Inside, InsideFolder
from stoker_exec_docker.pipes import Stdin, Stdout, output_pipes
from stoker_exec_docker.program import find_env, find_program
from stoker_exec_docker.rooting import as_rooted, rooted

# Most commands have ended by then, which their streams tell; to ask meanwhile would keep the
# engine from starting them.
_START_PAUSE_SECONDS: Final = 0.25
_FIRST_PAUSE_SECONDS: Final = 0.005
_LONGEST_PAUSE_SECONDS: Final = 0.1
_KILL_BOUND_SECONDS: Final = 20.0
_START_BOUND_SECONDS: Final = 2.0
_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_REPLACE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class ContainerLost(Exception):
    """The container is no longer there, or its engine; nothing was started."""


class DockerProcess(spi.Process):
    """See :class:`stoker.spi.Process`. Whoever calls `begin` calls `end`, whatever happened."""

    def __init__(
        self, engine: Engine, nursery: trio.Nursery, container: Container, spec: spi.ProcessSpec
    ) -> None:
        self.name = f"a command in {container.name}"
        self.facts = {
            "container_image": container.plan.image.digest,
            "container": "kept" if container.plan.keep else "own",
        }
        self._engine = engine
        self._nursery = nursery
        self._container = container
        self._spec = spec
        self._files = ExitStack()
        self._env_program: str | None = None
        self._command = ""
        self._connection: Connection | None = None
        self._may_run = False
        """Whether the engine was asked to start it, and its end is not known."""
        self._is_known = False
        """Whether it has been seen running, or ended."""
        self._pumped = trio.Event()
        self._is_torn = False
        """Whether its streams ended where they surely should not."""
        self._exited = trio.Event()
        self._ended = False
        self._killing = trio.Lock()
        self._exit: spi.Exit | None = None
        self._failure: spi.StokerError | None = None
        self._life = trio.CancelScope(shield=True)
        self._output = Stdout() if spec.stdout is None else None
        self._log = -1
        self._out = -1

    # --- beginning -------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Start it. Raises what `ExecutionStrategy.start` raises, and ContainerLost."""
        try:
            program = await trio.to_thread.run_sync(self._admit)
        except ProcessLookupError as error:
            raise ContainerLost(f"{self._container.name} has ended") from error
        try:
            self._command = await self._prepare(program)
        except (NoSuchThing, Refused, NotAnswering) as error:
            raise ContainerLost(str(error)) from error
        self._may_run = True
        try:
            with trio.fail_after(self._engine.call_timeout_seconds):
                self._connection = await start_command(self._engine, self._command)
        except trio.TooSlowError as error:
            raise NotAnswering("the container engine does not answer in time") from error
        if self._output is not None:
            self.stdin, self.stdout = Stdin(self._connection), self._output
        self._nursery.start_soon(self._attend, self._connection)

    def _admit(self) -> str:
        """Let the container see the folders, and look for the program there.

        Raises ProcessLookupError if it has ended.
        """
        container, spec = self._container, self._spec
        try:
            container.admit(spec)
            user = container.plan.wishes.user
            self._files.enter_context(handed_over((spec.root, spec.temporary_directory), user))
            self._open_files()
        except ProcessLookupError:
            raise
        except OSError as error:
            container.usable = False
            raise spi.Unavailable(f"{container.name} cannot be prepared: {error}") from error
        inside = self._view()
        program = find_program(inside, self._spec, user)
        self._check_working_directory(inside)
        self._env_program = find_env(inside)
        return program

    def _view(self) -> Inside:
        """What the process will see. Raises Unavailable, FailedPrecondition."""
        if not self._container.plan.wishes.input_root_as_root:
            return self._container.inside
        spec = self._spec
        try:
            own_root = rooted(self._container.inside, spec.root, spec.temporary_directory)
            self._files.enter_context(own_root)
            view = InsideFolder(spec.root)
        except OSError as error:
            raise spi.Unavailable(f"the input root cannot be /: {error}") from error
        self._files.callback(view.close)
        self._spec = as_rooted(spec)
        return view

    def _check_working_directory(self, inside: Inside) -> None:
        folder = self._spec.working_directory
        status = inside.status(os.path.join(self._spec.root, folder))
        if status is None or not stat.S_ISDIR(status.st_mode):
            raise spi.FailedPrecondition(
                f"the working directory {folder or '.'} leads to no directory"
            )

    def _open_files(self) -> None:
        self._log = self._open(os.open(self._spec.stderr, _APPEND, 0o600))
        if self._spec.stdout is not None:
            self._out = self._open(os.open(self._spec.stdout, _REPLACE, 0o600))

    def _open(self, descriptor: int) -> int:
        self._files.callback(os.close, descriptor)
        return descriptor

    async def _prepare(self, program: str) -> str:
        spec = self._spec
        argv, environment = as_the_engine_takes_it(
            spec,
            program=program,
            env=self._env_program,
            of_image=self._container.plan.image.variables,
            is_podman=self._engine.is_podman,
        )
        return await self._engine.prepare_command(
            self._container.identity,
            argv,
            environment=environment,
            working_directory=os.path.join(spec.root, spec.working_directory),
            user=self._container.plan.wishes.user,
            stdin=spec.stdout is None,
            privileged=self._container.plan.wishes.privileged,
        )

    # --- while it lives --------------------------------------------------------------------------

    async def _attend(self, connection: Connection) -> None:
        with self._life:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, connection)
                    self._exit = await self._watch()
                    nursery.cancel_scope.cancel()
            except* spi.StokerError as group:
                self._failure = self._failure or _first(group)
            except* (NoSuchThing, Refused, OSError) as group:
                self._failure = self._failure or spi.Unavailable(
                    f"{self.name} was lost: {group.exceptions[0]}"
                )
        self._exited.set()
        if self._output is not None:
            self._output.end()

    async def _pump(self, connection: Connection) -> None:
        decoder = FrameDecoder()
        try:
            while data := await connection.receive():
                await self._deliver(decoder.feed(data))
            self._is_torn = not decoder.is_whole
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # What became of the process is told by others.
            self._is_torn = True
        finally:
            self._pumped.set()
            if self._output is not None:
                self._output.end()

    async def _deliver(self, frames: Sequence[Frame]) -> None:
        files: list[tuple[int, bytes]] = []
        for frame in frames:
            if frame.stream == STDERR:
                files.append((self._log, frame.data))
            elif self._output is None:
                files.append((self._out, frame.data))
            else:
                await self._output.feed(frame.data)
        if files:
            await trio.to_thread.run_sync(_write_all, files)

    async def _watch(self) -> spi.Exit:
        """Wait for its end, kill what it left, and tell how it ended."""
        with trio.move_on_after(_START_PAUSE_SECONDS):
            await self._pumped.wait()
        facts = await self._wait_until_known()
        self._is_known = True
        if facts["Running"]:
            await self._wait_for_end(int(facts["Pid"]))
            # What it left may hold its outputs open.
            await self._kill_what_is_left()
            facts = await self._wait_until_over()
        if self._output is None:
            await self._pumped.wait()
        if self._is_torn:
            raise spi.Unavailable(f"the streams of {self.name} broke off")
        return await self._read_exit(facts)

    async def _kill_what_is_left(self) -> None:
        async with self._killing:
            # Once it is given back, what runs in the container is another's.
            if not self._ended:
                await trio.to_thread.run_sync(self._container.kill)

    async def _wait_until_known(self) -> Facts:
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            facts = await self._engine.inspect_command(self._command)
            if (facts["Running"] and facts["Pid"]) or self._is_over(facts):
                return facts
            await trio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)

    def _is_over(self, facts: Facts) -> bool:
        if facts["Running"] or facts["ExitCode"] is None:
            return False
        # Podman says 0 from the beginning: only the end of the streams tells.
        return not self._engine.is_podman or self._pumped.is_set()

    async def _wait_for_end(self, pid: int) -> None:
        """Until the process has ended, whoever else holds its outputs."""
        outputs = output_pipes(pid)
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # The number may have been given to another since.
            if self._container.is_member(pid):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._ask_when_streams_end, pid, outputs)
                    await trio.lowlevel.wait_readable(descriptor)
                    nursery.cancel_scope.cancel()
        finally:
            os.close(descriptor)

    async def _ask_when_streams_end(self, pid: int, outputs: frozenset[int]) -> None:
        """Find out whether it was the process that ended them, or an engine that went away."""
        await self._pumped.wait()
        await self._engine.inspect_command(self._command)
        # It would write on, and nobody would ever have it.
        if outputs & output_pipes(pid):
            raise spi.Unavailable(f"the streams of {self.name} ended while it had them open")

    async def _wait_until_over(self) -> Facts:
        pause_seconds = _FIRST_PAUSE_SECONDS
        while not self._is_over(facts := await self._engine.inspect_command(self._command)):
            await trio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
        return facts

    async def _read_exit(self, facts: Facts) -> spi.Exit:
        code = int(facts["ExitCode"]) & 255
        if not facts["Pid"] and not self._engine.is_podman:
            self._container.usable = False
            raise spi.Unavailable(f"the container engine has not started {self.name}")
        died = await self._is_container_out_of_memory() if code == 137 else False
        breach = await trio.to_thread.run_sync(
            partial(self._container.breach, code, out_of_memory=died)
        )
        return spi.Exit(
            code,
            fatal_signal(code),
            breach,
            await trio.to_thread.run_sync(self._container.usage),
        )

    async def _is_container_out_of_memory(self) -> bool:
        try:
            state = (await self._engine.inspect(self._container.identity))["State"]
        except (NoSuchThing, Refused):
            return False
        if not state["Running"]:
            self._container.usable = False
        return bool(state["OOMKilled"])

    async def wait(self) -> spi.Exit:
        """See :class:`stoker.spi.Process`. Raises Unavailable if the engine was lost."""
        await self._exited.wait()
        if self._exit is None:
            raise self._failure or spi.Unavailable(f"the end of {self.name} was not seen")
        return self._exit

    def terminate(self) -> None:
        """See :class:`stoker.spi.Process`."""
        if not self._ended and not self._exited.is_set():
            self._container.terminate()

    async def measure_memory(self) -> int | None:
        """See :class:`stoker.spi.Process`."""
        if self._ended or self._exited.is_set():
            return None  # what is in use now is the container's own, or another process's
        return await trio.to_thread.run_sync(self._container.memory_bytes)

    # --- ending ----------------------------------------------------------------------------------

    async def end(self) -> None:
        """Leave nothing of it. Shielded. Raises Unavailable if something withstands."""
        self._ended = True
        with trio.CancelScope(shield=True):
            try:
                await self._end_processes()
            finally:
                self._life.cancel()
                if self._connection is not None:
                    self._connection.close()
                if self._output is not None:
                    self._output.close()
                await trio.to_thread.run_sync(self._files.close)

    async def _end_processes(self) -> None:
        if self._may_run and not self._is_known and not await self._becomes_known():
            # It may begin at any moment: only with the container it surely does not.
            await self._engine_removes()
            return
        try:
            with trio.fail_after(_KILL_BOUND_SECONDS):
                async with self._killing:
                    await trio.to_thread.run_sync(self._container.settle)
        except (spi.Unavailable, OSError, trio.TooSlowError):
            await self._engine_removes()

    async def _becomes_known(self) -> bool:
        with (
            trio.move_on_after(_START_BOUND_SECONDS),
            suppress(NoSuchThing, Refused, spi.Unavailable),
        ):
            await self._wait_until_known()
            return True
        return False

    async def _engine_removes(self) -> None:
        self._container.usable = False
        try:
            await self._engine.remove(self._container.identity)
        except (NoSuchThing, Refused) as error:
            raise spi.Unavailable(f"{self.name} cannot be ended: {error}") from error
        finally:
            with suppress(spi.Unavailable, OSError):
                await trio.to_thread.run_sync(self._container.settle)


def _first(group: BaseExceptionGroup[spi.StokerError]) -> spi.StokerError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, spi.StokerError)
    return error


def _write_all(pieces: Sequence[tuple[int, bytes]]) -> None:
    for descriptor, data in pieces:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
