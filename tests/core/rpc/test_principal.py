"""Who a client has proved to be."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
import trustme

from stoker.rpc import (
    ClientTlsCredentials,
    ServerCall,
    TlsCredentials,
    open_channel,
    unary_unary,
)
from stoker.rpc.principal import principal_of

AUTHORITY = trustme.CA()
SERVER = AUTHORITY.issue_cert("127.0.0.1")
ROOT = AUTHORITY.cert_pem.bytes()


async def tell_principal(_request: bytes, call: ServerCall) -> bytes:
    return call.principal.encode()


METHODS = {"Ask": unary_unary(tell_principal, bytes, bytes)}


async def asked(target: str, credentials: ClientTlsCredentials | None = None) -> str:
    async with open_channel(target, credentials=credentials) as channel:
        return (await channel.unary_unary("/test.Service/Ask", b"", bytes)).decode()


@pytest.mark.parametrize(
    ("issue", "principal"),
    [
        (lambda: AUTHORITY.issue_cert("127.0.0.1", common_name="Zoë"), "Zoë"),
        (lambda: AUTHORITY.issue_cert("host.example", common_name="Zoë"), "host.example"),
        (lambda: AUTHORITY.issue_cert("h.example", "z@example.org"), "z@example.org"),
    ],
    ids=["common-name", "host", "email"],
)
async def test_the_best_name_in_the_certificate(
    serve: Any, issue: Callable[[], trustme.LeafCert], principal: str
) -> None:
    tls = TlsCredentials(
        SERVER.cert_chain_pems[0].bytes(), SERVER.private_key_pem.bytes(), client_ca=ROOT
    )
    running = await serve(METHODS, credentials=tls)
    shown = issue()
    credentials = ClientTlsCredentials(
        ROOT, shown.cert_chain_pems[0].bytes(), shown.private_key_pem.bytes()
    )
    assert await asked(running.target, credentials) == principal


async def test_whoever_shows_none_is_nobody(serve: Any) -> None:
    plain = await serve(METHODS)
    assert await asked(plain.target) == ""
    tls = TlsCredentials(SERVER.cert_chain_pems[0].bytes(), SERVER.private_key_pem.bytes())
    one_sided = await serve(METHODS, credentials=tls)
    assert await asked(one_sided.target, ClientTlsCredentials(ROOT)) == ""


def test_names_that_differ_stay_so() -> None:
    certificate = {"x509_pem_cert": [b"PEM"]}
    spiffe = {"peer_uri": [b"spiffe://a/b"], "peer_dns": [b"a"], "x509_common_name": [b"c"]}
    assert principal_of({**certificate, **spiffe}) == "spiffe://a/b"
    assert principal_of({**certificate, "peer_dns": [b""], "x509_common_name": [b"c"]}) == "c"
    odd = {principal_of({**certificate, "x509_common_name": [b]}) for b in (b"\xfe", b"\xff")}
    assert len(odd) == 2
    # An address names no client, and an empty name nobody: the certificate itself does.
    nameless = {**certificate, "peer_ip": [b"::1"], "x509_common_name": [b""]}
    assert principal_of(nameless) == f"certificate:{sha256(b'PEM').hexdigest()}"
    assert principal_of({"x509_common_name": [b"c"]}) == ""
