"""Starting a command without a copy of the launcher: ten times less work than by a fork.

The system lends the launcher's memory to the new process until that becomes the command, so that
nothing can be prepared in it. What a process is born with, it has from the launcher, which for
that moment goes into the command's folder and control groups itself; it has one thread only.

A disk that does not answer when a program is started from it holds up the launcher with it.
"""

from __future__ import annotations

import errno
import os

from stoker_exec_local.launcher.child import (
    IGNORED_SIGNALS,
    OOM_SCORE_ADJUSTMENT,
    create,
    join,
    needs_limits_of_its_own,
    open_output,
)
from stoker_exec_local.launcher.program import find_program, why_not_entered, why_not_executed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stoker_exec_local.launcher.group import Group
    from stoker_exec_local.launcher.messages import Start

# In a group with less room the launcher itself might be what the system kills to make some.
_SMALLEST_MEMORY_BYTES = 32 * 1024 * 1024


class Spawner:
    """Starts commands as the launcher's own user."""

    def __init__(self) -> None:
        self._stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._score = -1
        self._own_score = b""
        try:
            self._score = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
            self._own_score = os.read(self._score, 16)
        except OSError:
            # Some containers refuse; the server is then as likely to be chosen, as without us.
            self._score = -1

    def can(self, start: Start, group: Group | None) -> bool:
        """Whether the command needs nothing that only the new process itself could do."""
        if needs_limits_of_its_own(start, group):
            return False
        if group is None:
            return True
        is_wide = start.memory_bytes is None or start.memory_bytes >= _SMALLEST_MEMORY_BYTES
        return is_wide and group.can_be_visited

    def spawn(self, start: Start, pipes: list[int], group: Group | None) -> int:
        """Start the command and give its number, or 0 where the program is busy being written.

        `Group.settle` is to follow. Raises NotStarted; a group may then be left, and be empty.
        """
        if group is not None:
            create(group, visited=True)
        opened: list[int] = []
        try:
            return self._spawn(start, self._open_streams(start, pipes, opened), group)
        finally:
            os.chdir("/")
            for descriptor in opened:
                os.close(descriptor)

    def _open_streams(self, start: Start, pipes: list[int], opened: list[int]) -> list[int]:
        opened.append(open_output(start.stderr))
        if start.stdout is None:
            return [*pipes, opened[0]]
        opened.append(open_output(start.stdout))
        return [self._stdin, opened[1], opened[0]]

    def _spawn(self, start: Start, streams: list[int], group: Group | None) -> int:
        try:
            os.chdir(start.folder)
        except OSError as error:
            raise why_not_entered(error, start) from error
        program = find_program(start)
        try:
            return self._execute(program, start, streams, group)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ETXTBSY:
                return 0
            raise why_not_executed(error, start.argv[0], program) from error

    def _execute(
        self, program: bytes, start: Start, streams: list[int], group: Group | None
    ) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, stream, n) for n, stream in enumerate(streams)]
        try:
            self._adjust_score(OOM_SCORE_ADJUSTMENT)
            if group is not None:
                join(group)
            return os.posix_spawn(
                program,
                start.argv,
                start.environment,
                file_actions=actions,
                setsid=True,
                setsigdef=IGNORED_SIGNALS,
            )
        finally:
            self._adjust_score(self._own_score)
            if group is not None:
                _leave(group)

    def _adjust_score(self, score: bytes) -> None:
        if self._score == -1:
            return
        try:
            os.pwrite(self._score, score, 0)
        except OSError:
            return  # see above


def _leave(group: Group) -> None:
    try:
        group.leave()
    except OSError:
        # What ends the group would end the launcher, so it must not go on. All processes end with
        # it, and the server starts another.
        os._exit(1)
