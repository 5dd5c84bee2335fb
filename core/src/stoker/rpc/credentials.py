"""TLS credentials of servers and clients."""

from dataclasses import dataclass, field

from stoker.rpc.completion_queue import client_tls, server_tls


@dataclass(frozen=True, slots=True)
class TlsCredentials:
    """What a server shows, and what it demands. All PEM.

    With `client_ca`, only clients that show a certificate signed by one of these are let in.
    """

    certificate_chain: bytes
    private_key: bytes = field(repr=False)
    client_ca: bytes | None = None

    def for_grpc(self) -> object:
        return server_tls(self.certificate_chain, self.private_key, self.client_ca)


@dataclass(frozen=True, slots=True)
class ClientTlsCredentials:
    """What a client trusts, and what it shows. All PEM.

    Without `root_certificates` it trusts the roots that grpcio brings along. A server that
    demands certificates of its clients needs the other two.
    """

    root_certificates: bytes | None = None
    certificate_chain: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)

    def for_grpc(self) -> object:
        return client_tls(self.root_certificates, self.certificate_chain, self.private_key)
