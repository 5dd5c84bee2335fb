"""Commands from their fork until nothing of them is left, in one process that waits for all."""

from __future__ import annotations

import marshal
import os
import select
import signal
import time

from stoker_exec_local.launcher import messages
from stoker_exec_local.launcher.child import become, why_not_grouped
from stoker_exec_local.launcher.descendants import descendants, kill_descendants, send_to
from stoker_exec_local.launcher.group import Group
from stoker_exec_local.launcher.program import NotStarted
from stoker_exec_local.launcher.spawning import Spawner

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any

    from stoker_exec_local.launcher.group import Estate
    from stoker_exec_local.launcher.messages import Start

_SHORTEST_PAUSE_MS = 1
_LONGEST_PAUSE_MS = 50
_KIBIBYTE = 1024

# How long the start of a process is kept back, in the hope of telling its end with it. To wake the
# server costs it more than many a process takes.
_HOLD_NS = 2_000_000
_MILLISECOND_NS = 1_000_000


class Command:
    """One process, and all that came of it."""

    __slots__ = (
        "group",
        "has_exited",
        "is_ending",
        "number",
        "pid",
        "refusal",
        "report",
        "started_ns",
    )

    def __init__(self, number: int, pid: int, group: Group | None, report: int) -> None:
        self.number = number
        self.pid = pid
        self.started_ns = time.monotonic_ns()
        self.group = group
        self.report = report
        """Where the new process tells why it is none; -1 once that is known."""
        self.has_exited = False
        self.is_ending = False
        self.refusal: tuple[object, ...] = ()
        """Why it did not become the command, to be told when nothing is left of it."""


class Loop:
    """Waits for a socket, for children, and for other descriptors."""

    def __init__(self, inbox: _socket.socket, outbox: _socket.socket) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._inbox_is_open = True
        self._answers: list[tuple[object, ...]] = []
        self._hold_until_ns = 0
        self._poll = select.poll()
        self._poll.register(inbox.fileno(), select.POLLIN)
        self._wakeup, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll.register(self._wakeup, select.POLLIN)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Work until the inbox has ended and nothing is left to be waited for."""
        while self._inbox_is_open or self._has_work():
            self._step()

    def run_until_done(self) -> None:
        """Work until nothing is left to be waited for."""
        self._flush()
        while self._has_work():
            self._step()

    def _step(self) -> None:
        ready = [descriptor for descriptor, _ in self._poll.poll(self._shortest_pause_ms())]
        for descriptor in ready:
            if descriptor not in (self._wakeup, self._inbox.fileno()):
                self._on_readable(descriptor)
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
            self._reap()
        self._advance()
        if self._inbox_is_open and self._inbox.fileno() in ready:
            self._receive()
        self._flush()

    def _receive(self) -> None:
        try:
            packet, descriptors = messages.receive(self._inbox)
        except BlockingIOError:
            return
        except OSError:
            packet, descriptors = b"", []
        if packet:
            self._on_packet(packet, descriptors)
        else:
            self._inbox_is_open = False
            self._poll.unregister(self._inbox.fileno())
            self._on_inbox_end()

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return self._on_childless()
            if not pid:
                return None
            self._on_exit(pid, status, usage)

    def _shortest_pause_ms(self) -> float | None:
        pause_ms = self._pause_ms()
        if not self._answers:
            return pause_ms
        hold_ms = max(0, self._hold_until_ns - time.monotonic_ns()) / _MILLISECOND_NS
        return hold_ms if pause_ms is None else min(pause_ms, hold_ms)

    def _answer(self, *answer: object) -> None:
        """Tell the server at the end of this step."""
        self._answers.append(answer)
        self._hold_until_ns = 0

    def _answer_soon(self, *answer: object) -> None:
        """Tell the server, within a moment, or together with what else there is to tell."""
        if not self._answers:
            self._hold_until_ns = time.monotonic_ns() + _HOLD_NS
        self._answers.append(answer)

    def _flush(self) -> None:
        if self._answers and time.monotonic_ns() < self._hold_until_ns:
            return
        answers, self._answers = self._answers, []
        # Who is killed because the inbox has ended did not end as its command does: nobody is to
        # take it for that.
        if answers and self._inbox_is_open:
            # The server is gone if this fails, and the end of the inbox says so as well.
            try:
                self._outbox.send(marshal.dumps(answers))
            except OSError:
                return

    def _has_work(self) -> bool:
        raise NotImplementedError

    def _pause_ms(self) -> int | None:
        raise NotImplementedError

    def _on_packet(self, packet: bytes, descriptors: list[int]) -> None:
        raise NotImplementedError

    def _on_inbox_end(self) -> None:
        raise NotImplementedError

    def _on_readable(self, descriptor: int) -> None:
        raise NotImplementedError

    def _on_exit(self, pid: int, status: int, usage: Any) -> None:
        raise NotImplementedError

    def _on_childless(self) -> None:
        """No child is left, neither born nor adopted."""

    def _advance(self) -> None:
        """Go on with what is being ended."""


class Watch(Loop):
    """Commands that are children of this process.

    With an estate each has control groups. Without one there is one command only, and all that
    came of it are this process's descendants, however they tried not to be.
    """

    def __init__(
        self,
        inbox: _socket.socket,
        outbox: _socket.socket,
        user: tuple[int, int] | None,
        estate: Estate | None,
    ) -> None:
        super().__init__(inbox, outbox)
        self._user = user
        self._estate = estate
        self._spawner = Spawner()
        self._commands: dict[int, Command] = {}
        self._by_pid: dict[int, Command] = {}
        self._by_report: dict[int, Command] = {}
        self._ending: set[Command] = set()
        self._is_childless = False
        self._next_pause_ms = _SHORTEST_PAUSE_MS

    def start(self, number: int, start: Start, pipes: list[int]) -> None:
        """Start the command."""
        group = self._group(number, start)
        if self._user is None and self._spawner.can(start, group):
            self._spawn(number, start, pipes, group)
        else:
            self._fork(number, start, pipes, group)

    def _spawn(self, number: int, start: Start, pipes: list[int], group: Group | None) -> None:
        try:
            pid = self._spawner.spawn(start, pipes, group)
        except NotStarted as error:
            if group is not None:
                group.remove()
            self._answer(messages.NOT_STARTED, number, *error.facts)
            return
        if pid:
            self._settle(Command(number, pid, group, -1), is_brief=start.stdout is not None)
        else:
            # A child can wait until the program is not busy any more.
            self._fork(number, start, pipes, self._emptied(group, number, start))

    def _settle(self, command: Command, *, is_brief: bool) -> None:
        self._add(command)
        try:
            if command.group is not None:
                command.group.settle()
        except OSError as error:
            command.refusal = why_not_grouped(error).facts
            self._begin_end(command)
        else:
            # Whoever has pipes waits to write into them.
            tell = self._answer_soon if is_brief else self._answer
            tell(*_started(command))

    def _group(self, number: int, start: Start) -> Group | None:
        return Group(self._estate, number, start) if self._estate else None

    def _emptied(self, group: Group | None, number: int, start: Start) -> Group | None:
        if group is not None:
            group.remove()
        return self._group(number, start)

    def _fork(self, number: int, start: Start, pipes: list[int], group: Group | None) -> None:
        parent = os.getpid()
        try:
            report, to_report = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
        except OSError as error:
            reason = f"no process can be started now: {error.strerror}"
            self._answer(messages.NOT_STARTED, number, messages.UNAVAILABLE, reason)
            return
        if not pid:
            become(
                start, pipes=pipes, parent=parent, user=self._user, group=group, report=to_report
            )
        os.close(to_report)
        command = Command(number, pid, group, report)
        self._by_report[report] = command
        self._poll.register(report, select.POLLIN)
        self._add(command)

    def _add(self, command: Command) -> None:
        self._commands[command.number] = self._by_pid[command.pid] = command
        self._is_childless = False

    def _has_work(self) -> bool:
        return bool(self._commands)

    def _pause_ms(self) -> int | None:
        if not self._ending:
            self._next_pause_ms = _SHORTEST_PAUSE_MS
            return None
        pause_ms = self._next_pause_ms
        self._next_pause_ms = min(2 * pause_ms, _LONGEST_PAUSE_MS)
        return pause_ms

    def _on_packet(self, packet: bytes, descriptors: list[int]) -> None:
        kind, number, *fields = messages.unpack(packet, descriptors)
        if kind == messages.START:
            self.start(number, messages.Start(*fields), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        elif number in self._commands:
            command = self._commands[number]
            if kind == messages.TERMINATE:
                self._send(command, signal.SIGTERM)
            else:
                self._begin_end(command)

    def _on_inbox_end(self) -> None:
        for command in self._commands.values():
            command.is_ending = True
            self._ending.add(command)
        self._advance()

    def _begin_end(self, command: Command) -> None:
        command.is_ending = True
        self._ending.add(command)
        self._next_pause_ms = _SHORTEST_PAUSE_MS
        self._kill(command)

    def _advance(self) -> None:
        for command in list(self._ending):
            if not self._is_gone(command):
                self._kill(command)
            if self._is_gone(command):
                self._forget(command)
                kind = messages.NOT_STARTED if command.refusal else messages.ENDED
                self._answer(kind, command.number, *command.refusal)

    def _on_readable(self, report: int) -> None:
        command = self._by_report.get(report)
        if command is not None:
            self._hear(command)

    def _hear(self, command: Command) -> None:
        """What the new process says about its start: nothing, if it became the command."""
        facts = os.read(command.report, 65536)
        self._poll.unregister(command.report)
        del self._by_report[command.report]
        os.close(command.report)
        command.report = -1
        if facts:
            command.refusal = marshal.loads(facts)  # noqa: S302  # of our own fork
            self._begin_end(command)
        else:
            self._answer(*_started(command))

    def _on_exit(self, pid: int, status: int, usage: Any) -> None:
        command = self._by_pid.pop(pid, None)
        if command is None:
            return
        if command.report != -1:
            self._hear(command)
        command.has_exited = True
        if command.refusal:
            return
        facts = _facts(command, status, usage)
        # Whoever has no descendants left needs no end.
        is_gone = not command.is_ending and self._reap_rest(command, is_well=not facts[0])
        self._answer(messages.EXITED, command.number, *facts, is_gone)
        if is_gone:
            self._forget(command)

    def _reap_rest(self, command: Command, *, is_well: bool) -> bool:
        if command.group is None:
            try:
                os.waitid(os.P_ALL, 0, _PEEK)
            except ChildProcessError:
                self._is_childless = True
        elif is_well:
            return command.group.give_back()
        return self._is_gone(command)

    def _on_childless(self) -> None:
        self._is_childless = True

    def _is_gone(self, command: Command) -> bool:
        if not command.has_exited:
            return False
        return self._is_childless if command.group is None else command.group.remove()

    def _send(self, command: Command, number: int) -> None:
        if command.group is not None:
            command.group.send(number)
        else:
            send_to(descendants(os.getpid()), number)

    def _kill(self, command: Command) -> None:
        if not command.has_exited:
            # It may not have come into its groups yet.
            os.kill(command.pid, signal.SIGKILL)
        if command.group is not None:
            command.group.kill()
        else:
            kill_descendants(os.getpid())

    def _forget(self, command: Command) -> None:
        del self._commands[command.number]
        self._ending.discard(command)


def _started(command: Command) -> tuple[object, ...]:
    # Without groups this is the supervisor of the one command, and nothing else came of it.
    where = command.group.memory_source() if command.group else (messages.DESCENDANTS, os.getpid())
    return messages.STARTED, command.number, command.pid, command.started_ns, where


_PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT


def _facts(command: Command, status: int, usage: Any) -> tuple[object, ...]:
    """How a command ended (RUN-15), by which limit, and what it used."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = os.WEXITSTATUS(status) if number is None else 128 + number
    seconds = usage.ru_utime, usage.ru_stime
    peak = usage.ru_maxrss * _KIBIBYTE
    breach = ""
    if command.group is not None:
        seconds = command.group.cpu_seconds() or seconds
        peak = command.group.peak_memory_bytes() or peak
        breach = command.group.breach(peak) if code else ""
    return code, number, breach, (*seconds, peak)
