"""What happens in a new process between a fork and the command's first instruction.

This is the way of those commands that cannot be spawned: of another user, with limits that a
process has to set itself, or with a program that is busy.
"""

from __future__ import annotations

import errno
import marshal
import os
import resource
import signal
import time

from stoker_exec_local.launcher import system
from stoker_exec_local.launcher.descendants import count_tasks_of_user
from stoker_exec_local.launcher.messages import UNAVAILABLE, UNMET, Start
from stoker_exec_local.launcher.program import (
    NotStarted,
    find_program,
    why_not_entered,
    why_not_executed,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from stoker_exec_local.launcher.group import Group

# A program that was just written is busy for as long as some other process that was forked
# meanwhile has not come to its exec: milliseconds (RUN-18).
_BUSY_PAUSES_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08)

_OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
# What the launcher ignores, and what Python does.
IGNORED_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGCHLD,
)
OOM_SCORE_ADJUSTMENT = b"500"


def become(
    start: Start,
    *,
    pipes: list[int],
    parent: int,
    user: tuple[int, int] | None,
    group: Group | None,
    report: int,
) -> NoReturn:
    """Become the command, or write why not to the descriptor `report`, and end."""
    try:
        _become(start, pipes, parent, user, group)
    except NotStarted as error:
        os.write(report, marshal.dumps(error.facts))
    except BaseException as error:  # noqa: BLE001  # no fork of the launcher may go on as it
        os.write(report, marshal.dumps(_why_not_prepared(error, start)))
    finally:
        os._exit(1)


def _become(
    start: Start,
    pipes: list[int],
    parent: int,
    user: tuple[int, int] | None,
    group: Group | None,
) -> None:
    os.setsid()
    if group is not None:
        create(group, visited=False)
        join(group)
    _open_streams(start, pipes)
    _prefer_to_be_killed()
    _limit(start, group, user)
    if user is not None:
        _change_user(*user)
    system.die_with_parent(parent)
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.chdir(start.folder)
    except OSError as error:
        raise why_not_entered(error, start) from error
    program = find_program(start)
    try:
        _execute(program, start)
    except (OSError, ValueError) as error:
        raise why_not_executed(error, start.argv[0], program) from error


def _why_not_prepared(error: BaseException, start: Start) -> tuple[str, str]:
    limit = start.memory_bytes
    if limit is not None and isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return UNMET, f"a memory limit of {limit} bytes is too low for a process to be started"
    return UNAVAILABLE, f"no process can be prepared: {error!r}"


def create(group: Group, *, visited: bool) -> None:
    """Make the groups of a process. Raises NotStarted."""
    try:
        group.create(visited=visited)
    except OSError as error:
        raise why_not_grouped(error) from error


def join(group: Group) -> None:
    """Take this process into its groups. Raises NotStarted."""
    try:
        group.join()
    except OSError as error:
        raise why_not_grouped(error) from error


def why_not_grouped(error: OSError) -> NotStarted:
    """Why a process cannot have control groups."""
    reason = f"{error.filename or 'a control group'}: {error.strerror}"
    return NotStarted(UNAVAILABLE, f"no control group can be had: {reason}")


def _open_streams(start: Start, pipes: list[int]) -> None:
    stderr = open_output(start.stderr)
    if start.stdout is None:
        stdin, stdout = pipes
    else:
        stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        stdout = open_output(start.stdout)
    # All are above 2: the launcher itself holds the three.
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        os.dup2(descriptor, number)


def open_output(path: bytes) -> int:
    """A file to append to, which only its owner may read. Raises NotStarted."""
    try:
        return os.open(path, _OUTPUT_FLAGS, 0o600)
    except OSError as error:
        reason = f"{os.fsdecode(path)} cannot be opened: {error.strerror}"
        raise NotStarted(UNAVAILABLE, reason) from error


def _prefer_to_be_killed() -> None:
    """When the machine runs out of memory, an action is to end rather than the server."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(descriptor, OOM_SCORE_ADJUSTMENT)
    except OSError:
        # Some containers refuse; the server is then as likely to be chosen, as without us.
        pass
    finally:
        os.close(descriptor)


def needs_limits_of_its_own(start: Start, group: Group | None) -> bool:
    """Whether there are limits of the process itself to set, that no control group enforces."""
    return (start.memory_bytes is not None and not (group and group.enforces("memory"))) or (
        start.processes is not None and not (group and group.enforces("pids"))
    )


def _limit(start: Start, group: Group | None, user: tuple[int, int] | None) -> None:
    """Set those limits of the process itself that no control group enforces."""
    if start.memory_bytes is not None and not (group and group.enforces("memory")):
        # Not the address space, of which some programs reserve far more than they use.
        _set_limit(resource.RLIMIT_DATA, start.memory_bytes)
    if start.processes is not None and not (group and group.enforces("pids")):
        uid = user[0] if user else os.getuid()
        # The system counts all tasks of the user.
        _set_limit(resource.RLIMIT_NPROC, count_tasks_of_user(uid) + start.processes)


def _set_limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _change_user(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    system.renounce_new_privileges()


def _execute(program: bytes, start: Start) -> None:
    for pause_seconds in _BUSY_PAUSES_SECONDS:
        try:
            os.execve(program, start.argv, start.environment)  # noqa: S606  # the trade
        except OSError as error:
            if error.errno != errno.ETXTBSY:
                raise
        time.sleep(pause_seconds)
    os.execve(program, start.argv, start.environment)  # noqa: S606  # the trade
