"""Documents: what a TOML file holds, before it is checked and as it is told."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from stoker.config.structs import Configuration
from stoker.errors import ConfigurationError
from stoker.spi import Settings


def default_document(state: Path, *, local_execution: bool) -> dict[str, Any]:
    """What the server does without a TOML file: cache on disk and, if told so, run actions here."""
    document: dict[str, Any] = {
        "server": {"state_directory": str(state)},
        "blob_stores": {"main": {"kind": "disk", "path": str(state / "cas")}},
        "action_caches": {"main": {"kind": "disk", "path": str(state / "actions")}},
        "instances": {"": {"blob_store": "main", "action_cache": "main"}},
    }
    if local_execution:
        document["executors"] = {"local": {"strategy": "local", "properties": _this_machine()}}
        document["instances"][""]["executors"] = ["local"]
    return document


def _this_machine() -> dict[str, str]:
    names = {"x86_64": "x86-64", "aarch64": "arm-a64"}
    machine = os.uname().machine
    return {"OSFamily": "linux", "ISA": names.get(machine, machine)}


def read_toml(path: Path) -> dict[str, Any]:
    """The document in a TOML file. Raises ConfigurationError naming the file, and the place."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ConfigurationError([f"{path} is nested too deeply"]) from error
    except OSError as error:
        raise ConfigurationError([f"cannot read {path}: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"{path} is not TOML: {error}"]) from error


def effective_document(configuration: Configuration) -> dict[str, Any]:
    """`configuration`, defaults included, as a document that means the same."""
    document: dict[str, Any] = {
        "server": _plain(configuration.server),
        "log": _plain(configuration.log),
        "scheduler": _plain(configuration.scheduler),
        "log_streams": _plain(configuration.log_streams),
        "history": _plain(configuration.history),
    }
    for name, service in configuration.services.items():
        table = document.setdefault(name.table, {})
        table[name.name] = {"kind": service.kind, **_plain(service.settings)}
    for table, entries in (
        ("executors", configuration.executors),
        ("instances", configuration.instances),
    ):
        if entries:
            document[table] = {name: _plain(settings) for name, settings in entries.items()}
    return document


def _plain(settings: Settings) -> dict[str, Any]:
    """`settings` in TOML's types; TOML has no null, so what is unset is left out."""
    plain: dict[str, Any] = _without_none(msgspec.to_builtins(settings))
    return plain


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(held) for key, held in value.items() if held is not None}
    return [_without_none(item) for item in value] if isinstance(value, (list, tuple)) else value
