"""The user that a setting names."""

from __future__ import annotations

import grp
import os
import pwd

from stoker import spi


def resolve_user(user: str | int | None, group: str | int | None, table: str) -> spi.ProcessUser:
    """The user to run processes as, given at least one of the settings.

    Raises ConfigurationError naming the key of `table` that is wrong.
    """
    if user is None:
        raise spi.ConfigurationError([f"{table}.group: a group needs a user beside it"])
    if os.geteuid() != 0:
        raise spi.ConfigurationError([f"{table}.user: only root can run processes as another user"])
    uid, gid = _user(user, table)
    if group is not None:
        gid = _group(group, table)
    elif gid is None:
        raise spi.ConfigurationError([f"{table}.group: needed, as {user} is not in /etc/passwd"])
    if uid == 0:
        raise spi.ConfigurationError([f"{table}.user: {user} is root; leave the key out for that"])
    return spi.ProcessUser(uid, gid)


def _user(user: str | int, table: str) -> tuple[int, int | None]:
    try:
        entry = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
    except (KeyError, OverflowError, ValueError):
        if isinstance(user, int) and _can_be_an_id(user):
            return user, None
        raise spi.ConfigurationError([f"{table}.user: there is no user {user!r}"]) from None
    return entry.pw_uid, entry.pw_gid


def _group(group: str | int, table: str) -> int:
    if isinstance(group, int) and _can_be_an_id(group):
        return group
    try:
        return grp.getgrnam(str(group)).gr_gid
    except (KeyError, ValueError):
        raise spi.ConfigurationError([f"{table}.group: there is no group {group!r}"]) from None


def _can_be_an_id(number: int) -> bool:
    # The last one means "unchanged" to the system calls.
    return 0 <= number < 2**32 - 1
