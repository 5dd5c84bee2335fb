"""What Linux offers to processes and Python does not: prctl."""

from __future__ import annotations

import ctypes
import os
import signal

_SET_PARENT_DEATH_SIGNAL = 1
_SET_CHILD_SUBREAPER = 36
_SET_NO_NEW_PRIVILEGES = 38

_prctl = ctypes.CDLL(None, use_errno=True).prctl
_prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _set(_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Be killed when `parent` ends, which may have happened already.

    To be called after a change of user, which would undo it.
    """
    _set(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def renounce_new_privileges() -> None:
    """Gain nothing by set-user-ID programs from now on."""
    _set(_SET_NO_NEW_PRIVILEGES, 1)


def _set(option: int, value: int) -> None:
    if _prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
