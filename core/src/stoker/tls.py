"""What the server shows to clients that connect by TLS, and asks of them."""

from __future__ import annotations

import ssl
from pathlib import Path

from stoker.config import Configuration
from stoker.errors import ConfigurationError
from stoker.rpc import TlsCredentials


def load_tls(configuration: Configuration) -> TlsCredentials | None:
    """What the server shows to clients and asks of them; None without TLS.

    Raises ConfigurationError naming the file that cannot be used.
    """
    server = configuration.server
    if server.tls_certificate is None or server.tls_key is None:
        return None
    authority = server.tls_client_ca
    _check_pems(configuration, server.tls_certificate, server.tls_key, authority)
    return TlsCredentials(
        certificate_chain=_pem("tls_certificate", configuration.path(server.tls_certificate)),
        private_key=_pem("tls_key", configuration.path(server.tls_key)),
        client_ca=None
        if authority is None
        else _pem("tls_client_ca", configuration.path(authority)),
    )


def _check_pems(
    configuration: Configuration, certificate: str, key: str, authority: str | None
) -> None:
    """gRPC only says that it cannot listen; OpenSSL says why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name, text in (("tls_certificate", certificate), ("tls_key", key)):
        _pem(name, configuration.path(text))
    try:
        context.load_cert_chain(configuration.path(certificate), configuration.path(key))
    except ssl.SSLError as error:
        reason = error.reason or error
        raise ConfigurationError(
            [f"[server] tls_certificate and tls_key cannot be used together: {reason}"]
        ) from error
    if authority is not None:
        data = _pem("tls_client_ca", configuration.path(authority))
        try:
            context.load_verify_locations(cadata=data.decode("ascii", "replace"))
        except ssl.SSLError as error:
            raise ConfigurationError(
                [f"[server] tls_client_ca holds no certificate: {error.reason or error}"]
            ) from error


def _pem(key: str, path: Path) -> bytes:
    if not path.is_file():
        raise ConfigurationError([f"[server] {key}: {path} is not a file"])
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            [f"[server] {key}: cannot read {path}: {error.strerror}"]
        ) from error
