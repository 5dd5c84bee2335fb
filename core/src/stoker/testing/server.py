"""A whole server on a free port, in the running trio program, for tests."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from stoker.compose import RunningServer, open_server
from stoker.config import check_document
from stoker.plugins import load_catalogue

MEMORY_ONLY = """
[blob_stores.main]
kind = "memory"
[action_caches.main]
kind = "memory"
[instances.""]
blob_store = "main"
action_cache = "main"
"""

EXECUTING = f"""
{MEMORY_ONLY}
executors = ["local"]
[executors.local]
strategy = "local"
slots = 4
properties = {{ OSFamily = "linux" }}
limits = {{ termination_grace_seconds = 0.2 }}
[server]
drain_seconds = 0.5
"""


@dataclass(frozen=True, slots=True)
class ServerUnderTest:
    """A running server, and where it listens."""

    address: str
    running: RunningServer


@asynccontextmanager
async def open_test_server(toml: str, folder: Path) -> AsyncIterator[ServerUnderTest]:
    """Serve as `toml` says, with its relative paths in `folder`, until the context is left.

    Without a ``[server]`` table, or with one that does not say where to listen, it takes a free
    port of the loopback interface.
    """
    document = tomllib.loads(toml)
    document.setdefault("server", {}).setdefault("listen", ["127.0.0.1:0"])
    configuration = check_document(document, folder, load_catalogue())
    async with open_server(configuration, load_catalogue()) as running:
        yield ServerUnderTest(running.addresses[0], running)
