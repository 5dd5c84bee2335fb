"""A server with an executor for each way to isolate actions, which platforms choose by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs actions as another user")
needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed"
)

ISOLATIONS = [
    pytest.param("copies"),
    pytest.param("user", marks=needs_root),
    pytest.param("as-laid", marks=needs_bubblewrap),
    pytest.param("overlay", marks=needs_bubblewrap),
]

_SERVICES = {
    "copies": "",
    "user": '[strategies.user]\nkind = "local"\nuser = "nobody"\n',
    "as-laid": '[sandboxes.as-laid]\nkind = "bubblewrap"\n',
    "overlay": '[sandboxes.overlay]\nkind = "bubblewrap"\ninputs = "overlay"\n',
}


def isolations() -> list[str]:
    """Those that can be had here."""
    names = ["copies"]
    names += ["user"] if os.geteuid() == 0 else []
    names += ["as-laid", "overlay"] if shutil.which("bwrap") else []
    return names


def isolating_toml(
    *, slots: int = 1, store: str = "", settings: str = "", more: Mapping[str, str] | None = None
) -> str:
    """A configuration with an executor for each of `isolations`, each with so many slots.

    `settings` are further lines of each executor, `store` of the blob store. `more` has further
    executors: the text of their tables, and of services, by their names.
    """
    names = isolations()
    tables = [_executor(name, slots, settings) + _SERVICES[name] for name in names]
    tables += (more or {}).values()
    return _frame([*names, *(more or {})], store) + "".join(tables)


def _executor(name: str, slots: int, settings: str) -> str:
    strategy = "user" if name == "user" else "local"
    sandbox = "none" if name in ("copies", "user") else name
    return executor_table(name, slots, settings, strategy=strategy, sandbox=sandbox)


def executor_table(
    name: str, slots: int, settings: str = "", *, strategy: str = "local", sandbox: str = "none"
) -> str:
    """The table of one executor, which actions get by the platform property ``isolation``.

    `settings` are further lines of it.
    """
    return f"""
[executors.{name}]
strategy = "{strategy}"
sandbox = "{sandbox}"
slots = {slots}
cpus = 1000
properties = {{ isolation = "{name}" }}
limits.termination_grace_seconds = 0.2
workers.shutdown_grace_seconds = 0.2
{settings}
"""


def _frame(executors: Sequence[str], store: str) -> str:
    return f"""
[server]
listen = ["127.0.0.1:0"]
drain_seconds = 0.5
[scheduler]
abandoned_after_seconds = 0.05
reconnect_seconds = 1.0
[blob_stores.main]
kind = "disk"
path = "cas"
{store}
[action_caches.main]
kind = "disk"
path = "actions"
[instances.""]
blob_store = "main"
action_cache = "main"
cache_failures = true
executors = {list(executors)}
""".replace("'", '"')
