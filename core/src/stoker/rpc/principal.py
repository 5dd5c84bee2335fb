"""Who a client has proved to be: the name in the certificate that it showed."""

import hashlib
from collections.abc import Mapping, Sequence

NAMES = ("peer_uri", "peer_email", "peer_dns", "x509_common_name")
"""gRPC's properties of a peer, those that name it best first.

The alternative names go before the common name, which counts only where there are none of them: a
certificate binds the former to its key (RFC 5280, 4.2.1.6), and the latter is any text (RFC 6125,
6.4.4). Addresses say where a client is, and not who.
"""

_CERTIFICATE = "x509_pem_cert"


def principal_of(properties: Mapping[str, Sequence[bytes]]) -> str:
    """The first of a client's best names; that of its certificate where that names nobody.

    Empty for a client that had to show no certificate.
    """
    certificates = properties.get(_CERTIFICATE)
    if not certificates:
        return ""
    for kind in NAMES:
        for name in properties.get(kind, ()):
            if name:
                # Not "replace", by which two names could become the same one.
                return name.decode(errors="backslashreplace")
    return f"certificate:{hashlib.sha256(certificates[0]).hexdigest()}"
