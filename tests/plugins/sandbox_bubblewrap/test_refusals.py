"""ISO-11: where nothing can be enclosed, nothing runs; and what is shown is checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from stoker import spi
from stoker.execution.enclosed import Enclosed
from stoker.testing.execution_strategy_laws import Workplace
from stoker.testing.sandbox_laws import run_plain as run

OpenBox = Callable[..., AbstractAsyncContextManager[spi.Sandbox]]

OPEN = """
import sys
from pathlib import Path
import trio
from stoker import spi
from stoker_sandbox_bubblewrap import stoker_sandboxes

async def main():
    provider = stoker_sandboxes()["bubblewrap"]
    async with provider.open(provider.settings(), spi.Context("box", Path(sys.argv[1]), {})):
        print("open")

try:
    trio.run(main)
except spi.ConfigurationError as error:
    print(error)
"""


def _tools_without(folder: Path, absent: str) -> str:
    for name in {"bwrap", "unshare", "mount", "sh"} - {absent}:
        path = shutil.which(name)
        assert path is not None
        (folder / name).symlink_to(path)
    return str(folder)


async def test_an_absent_program_is_named_with_its_package(
    open_box: OpenBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", _tools_without(tmp_path / "bin", "bwrap"))
    with pytest.raises(spi.ConfigurationError, match="package bubblewrap") as caught:
        async with open_box():
            pass
    assert caught.value.problems[0].startswith("sandboxes.box: bwrap is not installed")


def test_forbidden_namespaces_are_told_with_the_way_out(tmp_path: Path) -> None:
    # The kernel's own setting, within a namespace in which it is ours to set.
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    told = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh"),
            *(sys.executable, "-c", OPEN, str(tmp_path)),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "sandboxes.box: nothing can be enclosed" in told
    assert "sysctl -w user.max_user_namespaces=" in told


async def test_a_sandbox_that_breaks_later_runs_nothing(
    open_box: OpenBox,
    strategy: spi.ExecutionStrategy,
    place: Workplace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", _tools_without(tmp_path / "bin", ""))
    async with open_box() as sandbox:
        (tmp_path / "bin" / "bwrap").unlink()
        with pytest.raises(spi.Unavailable, match="bwrap"):
            await run(Enclosed(strategy, sandbox), place.script("touch ran"))
    assert list(place.root.iterdir()) == []


async def test_an_overlay_that_cannot_be_mounted_runs_nothing(
    open_box: OpenBox,
    strategy: spi.ExecutionStrategy,
    place: Workplace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", _tools_without(tmp_path / "bin", ""))
    async with open_box(inputs="overlay") as sandbox:
        (tmp_path / "bin" / "mount").unlink()
        (tmp_path / "bin" / "mount").write_text("#!/bin/sh\necho mount: no >&2; exit 32\n")
        (tmp_path / "bin" / "mount").chmod(0o755)
        with pytest.raises(spi.Unavailable, match="mount"):
            await run(Enclosed(strategy, sandbox), place.script("touch ran"))
    assert list(place.root.iterdir()) == []


async def test_a_command_that_speaks_like_the_sandbox_is_believed_to_have_run(
    open_box: OpenBox, strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    script = place.script("echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    async with open_box() as sandbox:
        assert await run(Enclosed(strategy, sandbox), script) == spi.Exit(1)


@pytest.mark.parametrize("what", ["configuration", "home"])
async def test_the_servers_own_folders_cannot_be_shown(
    open_box: OpenBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(spi.ConfigurationError, match="belongs to the server"):
        async with open_box(also_shown=(str(tmp_path / what),)):
            pass


async def test_what_lies_in_a_shown_folder_can_be_hidden(
    open_box: OpenBox, strategy: spi.ExecutionStrategy, place: Workplace, tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    for name in ("sdk", "configuration", "hidden"):
        (shown / name).mkdir(parents=True)
        (shown / name / "file").write_text(f"in {name}\n")
    async with open_box(
        folder=shown / "configuration", also_shown=(str(shown),), hidden=(str(shown / "hidden"),)
    ) as sandbox:
        script = place.script('cat "$1"/*/file; touch "$1/sdk/new" "$1/hidden/new"', str(shown))
        assert await run(Enclosed(strategy, sandbox), script) == spi.Exit(1)
    assert place.stdout.read_text() == "in sdk\n"
    assert not (shown / "sdk" / "new").exists()


async def test_folders_of_actions_in_a_shown_folder_are_refused(
    open_box: OpenBox, strategy: spi.ExecutionStrategy, tmp_path: Path
) -> None:
    (tmp_path / "shown" / "actions").mkdir(parents=True)
    place = Workplace(tmp_path / "shown" / "actions")
    async with open_box(also_shown=(str(tmp_path / "shown"),)) as sandbox:
        with pytest.raises(spi.FailedPrecondition, match="other actions"):
            await run(Enclosed(strategy, sandbox), place.script("touch ran"))
    assert list(place.root.iterdir()) == []


@pytest.mark.slow
def test_the_laws_hold_of_a_server_that_is_not_root(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests are what runs without rights already")
    # Python itself may lie where another user cannot reach it, and so may this checkout.
    python = Path("/usr/bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    paths = [path for path in sys.path if path and Path(path).exists()]
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(paths),
        "HOME": "/nonexistent",
    }
    probe = (
        subprocess.run(
            [
                *drop,
                str(python),
                "-c",
                "import pytest, pytest_trio, trio, stoker.spi, msgspec._core",
            ],
            env=environment,
            check=False,
            capture_output=True,
        )
        if python.exists()
        else None
    )
    if probe is None or probe.returncode != 0:
        pytest.skip("another user can start no Python that has what this one has")
    base = Path("/tmp", f"{tmp_path.name}-{os.getpid()}")
    tests = Path(__file__).parent
    try:
        ended = subprocess.run(
            [
                *(*drop, str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *(f"--basetemp={base}", f"--rootdir={tests.parent.parent.parent}"),
                *(str(tests / name) for name in ("test_laws.py", "test_overlay.py")),
                *("-k", "not TestAsAnotherUser"),
            ],
            env=environment,
            cwd=tests.parent.parent.parent,
            check=False,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout
        assert " passed" in ended.stdout
    finally:
        shutil.rmtree(base, ignore_errors=True)
