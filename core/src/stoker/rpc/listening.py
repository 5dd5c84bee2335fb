"""Finding out whether and why one cannot listen: gRPC says so only in its own log."""

import contextlib
import socket
from pathlib import Path


def reason_not_to_listen(address: str) -> str:
    """Return why nothing can listen on `address`, by trying it with plain sockets."""
    try:
        if address.startswith("unix:"):
            _try_unix(address.removeprefix("unix:"))
        else:
            _try_host_and_port(address)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return "gRPC refused it, and its credentials if it has any"


def is_served(address: str) -> bool:
    """Return whether a server answers on the unix socket `address`; False for other addresses.

    gRPC takes the path of a unix socket from whoever has it, dead or alive.
    """
    if not address.startswith("unix:"):
        return False
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(address.removeprefix("unix:"))
    except OSError:
        return False
    return True


def _try_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(path)
    with contextlib.suppress(OSError):
        Path(path).unlink()


def _try_host_and_port(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError("it is neither host:port nor unix:path")
    for family, kind, _, _, where in socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
