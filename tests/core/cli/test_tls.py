"""TLS by TOML, and the command line as its client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from stoker.errors import ConfigurationError, sole_cause
from stoker.testing.server import EXECUTING, open_test_server

Done = subprocess.CompletedProcess[str]
Stoker = Callable[..., Awaitable[Done]]

TLS = EXECUTING + 'tls_certificate = "server.pem"\ntls_key = "server.key"\n'
MUTUAL = TLS + 'tls_client_ca = "ca.pem"\n'


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of an authority, a server and a client."""
    folder = tmp_path_factory.mktemp("pems")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("server", "client"):
        leaf = authority.issue_cert("127.0.0.1", common_name=name)
        leaf.private_key_pem.write_to_path(folder / f"{name}.key")
        for pem in leaf.cert_chain_pems:
            pem.write_to_path(folder / f"{name}.pem", append=True)
    return folder


@asynccontextmanager
async def serving(toml: str, pems: Path) -> AsyncIterator[Stoker]:
    async with open_test_server(toml, pems) as server:

        async def stoker(*arguments: object, scheme: str = "grpcs") -> Done:
            done = await trio.run_process(
                [sys.executable, "-m", "stoker", *map(str, arguments)],
                env={**os.environ, "STOKER_SERVER": f"{scheme}://{server.address}"},
                cwd=pems,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            return subprocess.CompletedProcess(
                done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
            )

        yield stoker


async def test_a_trusted_server_runs_the_command(pems: Path, tmp_path: Path) -> None:
    async with serving(TLS, pems) as stoker:
        done = await stoker(
            "run", "--tls-ca", pems / "ca.pem", "--input-root", tmp_path, "--", "echo", "hello"
        )
        assert (done.returncode, done.stdout) == (0, "hello\n")


async def test_what_is_not_trusted_gets_nowhere(pems: Path, tmp_path: Path) -> None:
    async with serving(TLS, pems) as stoker:
        run = ("run", "--input-root", tmp_path, "--", "true")
        unknown = await stoker(*run)
        assert unknown.returncode == 1
        assert unknown.stderr.startswith("Error: the server at grpcs://127.0.0.1:")
        plain = await stoker(*run, scheme="grpc")
        assert plain.returncode == 1
        mixed = await stoker("run", "--tls-ca", "ca.pem", *run[1:], scheme="grpc")
        assert "say grpcs://" in mixed.stderr


async def test_a_server_may_ask_who_comes(pems: Path, tmp_path: Path) -> None:
    async with serving(MUTUAL, pems) as stoker:
        run = ("run", "--input-root", tmp_path, "--tls-ca", "ca.pem")
        nobody = await stoker(*run, "--", "true")
        assert nobody.returncode == 1
        half = await stoker(*run, "--tls-certificate", "client.pem", "--", "true")
        assert "--tls-certificate and --tls-key go together" in half.stderr
        somebody = await stoker(
            *run, "--tls-certificate", "client.pem", "--tls-key", "client.key", "--", "true"
        )
        assert (somebody.returncode, somebody.stderr.count("Error")) == (0, 0)


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ("absent.pem", "tls_certificate: {}/absent.pem is not a file"),
        ("server.key", "tls_certificate and tls_key cannot be used together"),
        ("client.pem", "tls_certificate and tls_key cannot be used together"),
    ],
)
async def test_a_certificate_that_is_none(pems: Path, replaced: str, said: str) -> None:
    with pytest.raises((ConfigurationError, ExceptionGroup)) as info:
        async with serving(TLS.replace("server.pem", replaced), pems):
            pass
    cause = sole_cause(info.value)
    assert isinstance(cause, ConfigurationError)
    assert said.format(pems) in str(cause)
