"""Runs the tests of stoker.rpc on the oldest and the newest grpcio that stoker allows.

The package drives a private layer of grpcio, so its range is as wide as what this has passed.
Each version gets a throw-away environment with no more in it than the package and its tests
need. An old grpcio has no wheel for a new interpreter: then the oldest that has one is taken,
and named.

    python tests/core/rpc/contract.py            # both ends of the range
    python tests/core/rpc/contract.py 1.71.0     # these versions

The exit code is that of the first run that failed. pip is used as it is configured.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TESTS = Path(__file__).resolve().parent
PACKAGES = ("protobuf", "googleapis-common-protos", "trio", "pytest", "pytest-trio", "trustme")


def allowed_range() -> tuple[str, str]:
    """Return the lower bound of grpcio, and the requirement as a whole, from core's metadata."""
    metadata = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text())
    for requirement in metadata["project"]["dependencies"]:
        found = re.match(r"grpcio\s*>=\s*([\d.]+)", requirement)
        if found:
            return found[1], requirement
    raise SystemExit("core/pyproject.toml sets no lower bound for grpcio")


def core_requirements() -> list[str]:
    """Return what core says of the other packages, so that the run keeps to it."""
    metadata = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text())
    stated = {re.split(r"[<>=!~ ]", item)[0]: item for item in metadata["project"]["dependencies"]}
    return [stated.get(package, package) for package in PACKAGES]


def install(environment: Path, *requirements: str) -> str:
    """Install from wheels only; return what stood in the way, nothing when it was done."""
    command = [
        str(environment / "bin" / "python"),
        *("-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--only-binary", ":all:", *requirements),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def install_lowest(environment: Path, lowest: str) -> str:
    """Install `lowest`, or the first of the later minor versions that has a wheel."""
    major, minor = (int(part) for part in lowest.split(".")[:2])
    later = [f"{major}.{number}.*" for number in range(minor + 1, minor + 20)]
    obstacle = ""
    for version in [lowest, *later]:
        obstacle = install(environment, f"grpcio=={version}")
        if not obstacle:
            break
    return obstacle


def install_grpcio(environment: Path, version: str) -> str:
    """Install one version: a number, "lowest" or "newest" of those allowed."""
    lowest, requirement = allowed_range()
    if version == "lowest":
        return install_lowest(environment, lowest)
    return install(environment, requirement if version == "newest" else f"grpcio=={version}")


def run_tests(environment: Path) -> int:
    python = environment / "bin" / "python"
    version = subprocess.run(
        [python, "-c", "import grpc, platform; print(grpc.__version__, platform.python_version())"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    print(f"grpcio {version[0]} on Python {version[1]}", flush=True)
    command: list[str | Path] = [
        *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *("--rootdir", ROOT, "--basetemp", environment / "temporary", TESTS),
    ]
    path = {"PYTHONPATH": str(ROOT / "core" / "src"), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, check=False, cwd=ROOT, env=path).returncode


def check(version: str) -> int:
    """Run the tests on one version, in an environment made for it; return their exit code."""
    with tempfile.TemporaryDirectory(prefix="rpc-contract-") as folder:
        environment = Path(folder)
        venv.create(environment, with_pip=True)
        obstacle = install_grpcio(environment, version) or install(
            environment, *core_requirements()
        )
        if obstacle:
            print(f"no environment for grpcio {version}:\n{obstacle}", file=sys.stderr)
            return 1
        return run_tests(environment)


def main() -> int:
    for version in sys.argv[1:] or ["lowest", "newest"]:
        code = check(version)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
