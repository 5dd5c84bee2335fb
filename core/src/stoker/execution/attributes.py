"""Extended attributes of folders, which outlive what is in them. These functions block."""

from __future__ import annotations

import errno
import os

# What processes may set without rights of their own; all else is the system's affair.
_OF_USERS = ("user.", "system.posix_acl_")


def has_attributes(folder: str) -> bool:
    """Whether somebody has given `folder` attributes. Follows no symbolic link."""
    return bool(_names(os.listxattr(folder, follow_symlinks=False)))


def strip_attributes(descriptor: int) -> None:
    """Take the attributes that somebody gave to an open folder. Raises OSError."""
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return
    for name in _names(names):
        os.removexattr(descriptor, name)


def _names(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(_OF_USERS)]
