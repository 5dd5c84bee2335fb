"""What ``[server]`` may listen on."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from stoker.config.structs import ServerTable


def listener_problems(server: ServerTable) -> Iterator[str]:
    """What is wrong with the addresses of `server`, and with the TLS that guards them."""
    if not server.listen:
        yield "[server] listen: give at least one address"
    tls = server.tls_certificate is not None
    yield from _tls_problems(server)
    if (metrics := server.metrics_listen) and (
        metrics.startswith("unix:") or _bad_address(metrics)
    ):
        yield f"[server] metrics_listen: {metrics!r} is not host:port"
    for address in server.listen:
        if reason := _bad_address(address):
            yield f"[server] listen: {address!r} {reason}"
        elif not tls and not server.insecure and not _is_loopback(address):
            yield (
                f"[server] listen: {address!r} is open to other machines without TLS; "
                f"give tls_certificate and tls_key, or say insecure = true"
            )


def _tls_problems(server: ServerTable) -> Iterator[str]:
    tls = server.tls_certificate is not None
    if tls != (server.tls_key is not None):
        yield "[server] tls_certificate and tls_key go together"
    if server.tls_client_ca is not None and not tls:
        yield "[server] tls_client_ca needs tls_certificate and tls_key"


def _bad_address(address: str) -> str | None:
    if address.startswith("unix:"):
        return None if address.removeprefix("unix:") else "names no path"
    host, colon, port = address.rpartition(":")
    if not colon or not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        return "is neither host:port nor unix:/path"
    return None


def _is_loopback(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
