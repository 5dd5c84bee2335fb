"""Compile protos/ into core/src, or say which compiled files are stale.

python protos/generate.py          writes them
python protos/generate.py --check  names those that are stale, and exits 1 if there are any
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.resources
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]  # grpcio-tools ships no types

SOURCE_ROOT = Path(__file__).resolve().parent
TARGET_ROOT = SOURCE_ROOT.parent / "core" / "src"

# Another version writes other text, and a newer compiler's text refuses an older protobuf runtime:
# README.md says when these may move.
COMPILERS = {"grpcio-tools": "1.76.0", "mypy-protobuf": "5.1.0"}


class CompilationFailedError(Exception):
    """The compiler refused the sources; it has said why on stderr."""


def other_compilers() -> list[str]:
    """Name the compilers that are not installed in the version the committed files come from."""
    wanted = [f"{name}=={version}" for name, version in COMPILERS.items()]
    present = {f"{name}=={installed_version(name)}" for name in COMPILERS}
    return [requirement for requirement in wanted if requirement not in present]


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None where it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def import_paths() -> list[str]:
    """Return where imports are looked for: ours, the well-known types, Google's common types."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    status = importlib.resources.files("google.rpc") / "status.proto"
    common = Path(str(status)).parents[2]
    # The package ships this one file under another name than the one it is compiled under.
    operations = "google/longrunning/operations.proto"
    shipped = common / "google" / "longrunning" / "operations_proto.proto"
    return [str(SOURCE_ROOT), str(well_known), f"{operations}={shipped}", str(common)]


def compile_into(target_root: Path) -> None:
    """Write the module and the type stub of every source below `target_root`.

    Raises CompilationFailedError; files written before that stay.
    """
    sources = sorted(path.relative_to(SOURCE_ROOT) for path in SOURCE_ROOT.rglob("*.proto"))
    arguments = [
        "protoc",
        *(f"--proto_path={path}" for path in import_paths()),
        f"--plugin=protoc-gen-mypy={Path(sys.executable).with_name('protoc-gen-mypy')}",
        f"--python_out={target_root}",
        f"--mypy_out=quiet:{target_root}",
        *(source.as_posix() for source in sources),
    ]
    if protoc.main(arguments) != 0:
        raise CompilationFailedError


def generated_files(root: Path) -> dict[str, bytes]:
    """Map the path of every compiled file below `root`, relative to it, to its content."""
    paths = (path for path in root.rglob("*_pb2.py*") if path.suffix in {".py", ".pyi"})
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def freshly_compiled() -> dict[str, bytes]:
    """Compile into a directory that is gone afterwards; return what `generated_files` saw."""
    with tempfile.TemporaryDirectory() as directory:
        compile_into(Path(directory))
        return generated_files(Path(directory))


def stale_files(wanted: dict[str, bytes], present: dict[str, bytes]) -> list[str]:
    """Name the files that are missing, differ, or have lost their source."""
    names = sorted(wanted.keys() | present.keys())
    return [name for name in names if wanted.get(name) != present.get(name)]


def bring_up_to_date(path: Path, content: bytes | None) -> None:
    """Write one compiled file, or remove it where `content` is None."""
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def main(arguments: list[str], target_root: Path = TARGET_ROOT) -> int:
    """Bring the compiled files up to date, or only compare; return the exit status.

    That is 0, or 1 where a comparison found stale files, or 2 where a compiler is missing.
    """
    parser = argparse.ArgumentParser(description="Compile protos/ into core/src.")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 if stale")
    only_check = parser.parse_args(arguments).check
    if others := other_compilers():
        sys.stderr.write(f"these exact versions are needed: {' '.join(others)}\n")
        return 2
    wanted = freshly_compiled()
    stale = stale_files(wanted, generated_files(target_root))
    for name in stale:
        if not only_check:
            bring_up_to_date(target_root / name, wanted.get(name))
        done = "stale" if only_check else "updated" if name in wanted else "removed"
        sys.stdout.write(f"{done}: {name}\n")
    return 1 if only_check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
