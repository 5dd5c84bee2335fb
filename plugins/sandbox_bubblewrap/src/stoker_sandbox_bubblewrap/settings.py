"""``[sandboxes.NAME]`` with ``kind = "bubblewrap"``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stoker import spi

DEFAULT_SHOWN = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib*",
    # Of /etc only what programs need to run, and nothing that may hold a secret.
    "/etc/alternatives",
    "/etc/group",
    "/etc/hosts",
    "/etc/java-*",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/python3*",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)

AbsolutePath = Annotated[str, msgspec.Meta(pattern="^/")]
Network = Literal["off", "host"]
Inputs = Literal["as-laid", "overlay"]


class BubblewrapSettings(spi.Settings, frozen=True):
    """What an enclosed process gets, and what an action's platform may change of it."""

    network: Network = "off"
    """off: a loopback interface of its own and nothing else. host: the machine's network."""
    network_by_property: bool = False
    """Whether a platform property may ask for the machine's network where `network` is off.
    One that asks for no network is always heard."""
    inputs: Inputs = "as-laid"
    """as-laid: the input root itself. overlay: a view of it that can be written at will, whose
    changes become part of the root when the process has ended."""
    shown: tuple[AbsolutePath, ...] = DEFAULT_SHOWN
    """What of the machine is there, read-only; shell patterns. It replaces the defaults."""
    also_shown: tuple[AbsolutePath, ...] = ()
    """As `shown`, in addition to it."""
    hidden: tuple[AbsolutePath, ...] = ()
    """Folders inside of what is shown that appear empty."""
    namespaces: bool = False
    """Whether processes may make namespaces of users, as the sandboxes of browsers do. Where the
    server is root, they can then undo the limits of a control group of version 1."""
    tmpfs_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """The size of each of /tmp and /dev/shm; unset for the kernel's default, half of the memory."""
