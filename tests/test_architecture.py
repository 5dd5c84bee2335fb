"""The house as docs/ARCHITECTURE.md draws it: imports go down only, and grpc stays in its room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker import spi

REPOSITORY = Path(__file__).parent.parent
CORE = REPOSITORY / "core" / "src" / "stoker"

GROUND = {"digest", "errors", "action", "resources", "protos", "hookspecs"}
MAY_IMPORT: dict[str, set[str]] = {
    # what everybody stands on
    "errors": {"digest"},
    "digest": {"errors", "protos"},
    "action": {"digest", "errors", "protos"},
    "resources": {"action", "errors"},
    "machine": set(),
    "database": {"errors"},
    "alarm": set(),
    "hookspecs": {"spi"},
    "protos": set(),
    "spi": {"digest", "errors", "protos"},
    # rooms that know nothing of each other, but for what is named
    "rpc": set(),
    "storage": GROUND | {"spi"},
    "log_streams": GROUND | {"spi"},
    "workers": GROUND | {"spi", "storage", "alarm"},
    "execution": GROUND | {"spi", "storage", "workers", "log_streams"},
    "scheduler": GROUND | {"spi", "storage", "database", "alarm", "log_streams"},
    "history": GROUND | {"spi", "storage", "database"},
    "frontend": GROUND
    | {"spi", "storage", "scheduler", "workers", "rpc", "log_streams", "history", "__init__"},
    "web": {"errors", "scheduler", "workers"},
    "client": GROUND | {"rpc", "storage", "spi", "__init__"},
    # what knows them all
    # The client is also what makes another server a store of this one.
    "builtin": GROUND | {"spi", "storage", "client"},
    "tables": GROUND | {"spi"},
    "plugins": GROUND | {"spi"},
    "config": GROUND
    | {"spi", "plugins", "tables", "frontend", "scheduler", "execution", "workers", "storage"}
    | {"machine", "log_streams", "history"},
    "tls": {"config", "errors", "rpc"},
    "compose": GROUND
    | {"spi", "plugins", "tables", "tls", "config", "rpc", "frontend", "scheduler", "execution"}
    | {"storage", "workers", "machine", "web", "log_streams", "history"},
    "testing": GROUND | {"spi", "compose", "config", "plugins", "rpc", "storage"},
    "cli": GROUND
    | {"spi", "compose", "config", "plugins", "tables", "tls", "client", "rpc", "__init__"}
    | {"scheduler", "workers", "worker_check", "execution"},
    # Tools import it, and wait for that at every start.
    "worker_kit": {"protos"},
    "worker_check": {"spi", "errors"},
    "__main__": {"cli"},
    "__init__": set(),
}

# Three independent choices: no file knows two of them (compose and the door know them all).
CHOICES = {"ExecutionStrategy", "Sandbox", "WorkerProtocol"}


def room_of(file: Path) -> str:
    return file.relative_to(CORE).parts[0].removesuffix(".py")


def core_files() -> list[Path]:
    return [
        file
        for file in sorted(CORE.rglob("*.py"))
        if not file.name.endswith("_pb2.py") and file.parent.name != "protos"
    ]


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Every module that `file` imports, with the name taken from it; type-checking ones too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            for alias in node.names:
                yield node.module or "", alias.name


def rooms_imported(file: Path) -> set[str]:
    rooms = set()
    for module, name in imports(file):
        parts = module.split(".")
        if parts[0] == "stoker":
            is_room = (len(parts) == 1 and (CORE / name).exists()) or (CORE / f"{name}.py").exists()
            rooms.add(parts[1] if len(parts) > 1 else name if is_room else "__init__")
    return rooms


@pytest.mark.parametrize("file", core_files(), ids=lambda file: str(file.relative_to(CORE)))
def test_imports_go_down_only(file: Path) -> None:
    room = room_of(file)
    assert room in MAY_IMPORT, f"{room} is a new room: say here what it may import"
    assert rooms_imported(file) - {room} <= MAY_IMPORT[room]


def test_only_the_rpc_room_imports_grpc() -> None:
    offenders = [
        file
        for file in core_files()
        if room_of(file) != "rpc" and any(m.split(".")[0] == "grpc" for m, _ in imports(file))
    ]
    assert offenders == []


def test_no_file_knows_two_of_strategy_sandbox_and_protocol() -> None:
    # Those that join them: a strategy in a sandbox, and the pool whose processes speak a protocol.
    joints = {
        Path("execution/enclosed.py"): {"ExecutionStrategy", "Sandbox"},
        Path("execution/executor.py"): {"ExecutionStrategy", "WorkerProtocol"},
        Path("workers/pool.py"): {"ExecutionStrategy", "WorkerProtocol"},
        Path("workers/worker.py"): {"ExecutionStrategy", "WorkerProtocol"},
    }
    known = {
        file.relative_to(CORE): CHOICES & {name for _, name in imports(file)}
        for file in core_files()
        if room_of(file) not in {"compose", "spi", "hookspecs"}
    }
    assert {file: names for file, names in known.items() if len(names) > 1} == joints


# Packages of their own: the plugins here, and the example of one that is from elsewhere.
OUTSIDERS = [
    *(plugin / "src" for plugin in sorted((REPOSITORY / "plugins").iterdir())),
    REPOSITORY / "examples" / "third_party_strategy",
]


def name_of(package: Path) -> str:
    return package.parent.name if package.name == "src" else package.name


@pytest.mark.parametrize("plugin", OUTSIDERS, ids=name_of)
def test_plugins_use_the_public_door_only(plugin: Path) -> None:
    for file in sorted(plugin.rglob("*.py")):
        for module, name in imports(file):
            if module.split(".")[0] == "stoker":
                public = module == "stoker.spi" or module.startswith("stoker.protos")
                assert public or (module == "stoker" and name in {"spi", "protos"}), (file, module)


@pytest.mark.parametrize("plugin", OUTSIDERS, ids=name_of)
def test_plugins_take_only_what_the_door_names(plugin: Path) -> None:
    taken = {name for file in plugin.rglob("*.py") for name in taken_from_the_door(file)}
    assert taken
    assert taken <= set(spi.__all__)


def taken_from_the_door(file: Path) -> Iterator[str]:
    for module, name in imports(file):
        if module == "stoker.spi":
            yield name
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "spi":
            yield node.attr


def test_what_the_door_names_is_there() -> None:
    assert [name for name in spi.__all__ if not hasattr(spi, name)] == []
    assert len(set(spi.__all__)) == len(spi.__all__)
