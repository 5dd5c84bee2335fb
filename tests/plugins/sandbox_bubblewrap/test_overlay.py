"""What is written to an overlay becomes the root's, and never its inputs' originals."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from stoker import spi
from stoker.execution.enclosed import Enclosed
from stoker.testing.execution_strategy_laws import Witness, Workplace
from stoker.testing.sandbox_laws import run_plain as run
from stoker_sandbox_bubblewrap import overlay
from stoker_sandbox_bubblewrap.private_folder import make_private_folder, remove_private_folder

OpenBox = Callable[..., AbstractAsyncContextManager[spi.Sandbox]]


@pytest.fixture
async def enclosed(
    open_box: OpenBox, strategy: spi.ExecutionStrategy
) -> AsyncIterator[spi.ExecutionStrategy]:
    async with open_box(inputs="overlay") as sandbox:
        yield Enclosed(strategy, sandbox)


def tree(folder: Path) -> dict[str, str]:
    """What is in a folder, and its kind or content."""
    return {str(path.relative_to(folder)): _kind(path) for path in folder.rglob("*")}


def _kind(path: Path) -> str:
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return "/" if path.is_dir() else path.read_text()


# Each begins with: d/e/f and d/g, files; l -> d; s, a file.
CHANGES = [
    "echo new > d/e/f",
    "rm -r d",
    "rm -r d; mkdir d; echo n > d/n",
    "rm -r d; echo file > d",
    "rm s; mkdir s; echo in > s/in",
    "rm -r d/e; ln -s /nowhere d/e",
    "rm l; mkdir -p l/a/b/c; touch l/a/b/c/file",
    "rm -r d/e; mkdir -p d/e/e2; mv s d/e/e2/; ln -s s d/e/t",
    "mv d/e/f d/g",
    "mv d d2 || true; rm -rf d; ls d2/e",
    "mkdir a; cp -r d a; rm -r d/e a/d/e/f",
    "chmod 700 d; chmod 711 .",
    "ln d/e/f hard; ln hard d/harder",
    "mkdir x; touch x/y; chmod 555 x; chmod 500 d/e",
    "touch -d 2001-01-01 d/e d/g new",
    ":",
]


@pytest.mark.parametrize("change", CHANGES)
async def test_the_root_is_as_if_it_had_been_written_itself(
    enclosed: spi.ExecutionStrategy, strategy: spi.ExecutionStrategy, tmp_path: Path, change: str
) -> None:
    seen = []
    for name, way in (("plain", strategy), ("overlay", enclosed)):
        (tmp_path / name).mkdir()
        place = Workplace(tmp_path / name)
        (place.root / "d" / "e").mkdir(parents=True)
        for path in ("d/e/f", "d/g", "s"):
            (place.root / path).write_text(path)
        (place.root / "l").symlink_to("d")
        assert await run(way, place.script(f"set -e; {change}")) == spi.Exit(0)
        modes = {
            str(path.relative_to(place.root)): stat.S_IMODE(path.lstat().st_mode)
            for path in (place.root, *place.root.rglob("*"))
        }
        old = sorted(
            str(path.relative_to(place.root))
            for path in place.root.rglob("*")
            if path.lstat().st_mtime < 1_000_000_000
        )
        seen.append((tree(place.root), modes, old))
        assert [path.name for path in place.root.parent.iterdir() if "sandbox" in path.name] == []
    assert seen[0] == seen[1]


async def test_files_without_change_are_the_same_files(
    enclosed: spi.ExecutionStrategy, place: Workplace
) -> None:
    (place.root / "kept").write_text("")
    (place.root / "changed").write_text("")
    before = {path.name: path.stat().st_ino for path in place.root.iterdir()}
    assert await run(enclosed, place.script("cat kept; echo x >> changed")) == spi.Exit(0)
    after = {path.name: path.stat().st_ino for path in place.root.iterdir()}
    assert after["kept"] == before["kept"]
    assert after["changed"] != before["changed"]


async def test_a_root_that_changes_is_shown_itself(
    enclosed: spi.ExecutionStrategy, place: Workplace
) -> None:
    (place.root / "file").write_text("")
    before = (place.root / "file").stat().st_ino
    spec = replace(place.script("echo x >> file"), root_changes=True)
    assert await run(enclosed, spec) == spi.Exit(0)
    assert (place.root / "file").stat().st_ino == before


async def test_a_platform_may_ask_for_it(
    open_box: OpenBox, strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    (place.root / "file").write_text("")
    before = (place.root / "file").stat().st_ino
    spec = replace(place.script("echo x >> file"), properties={"sandbox-inputs": ("overlay",)})
    async with open_box() as sandbox:
        assert not sandbox.protects_inputs
        assert await run(Enclosed(strategy, sandbox), spec) == spi.Exit(0)
    assert (place.root / "file").read_text() == "x\n"
    assert (place.root / "file").stat().st_ino != before


async def test_what_a_cancelled_process_wrote_is_dropped(
    enclosed: spi.ExecutionStrategy, place: Workplace
) -> None:
    (place.root / "file").write_text("old")
    witness = Witness(place.spec("true").temporary_directory / "witness")
    text = f"exec 9>{witness.path}; echo new > file; echo ready >&9; sleep 1000"
    with trio.CancelScope() as scope:
        async with enclosed.start(place.script(text)) as process:
            await witness.wait_for("ready")
            scope.cancel()
            await process.wait()
    await witness.wait_until_all_are_gone()
    witness.close()
    assert tree(place.root) == {"file": "old"}
    assert sorted(path.name for path in place.root.parent.iterdir()) == [
        "root",
        "stderr",
        "stdout",
        "temporary",
    ]


async def test_nothing_that_a_process_leaves_is_too_deep_or_closed_to_be_removed(
    enclosed: spi.ExecutionStrategy, place: Workplace
) -> None:
    name = "d" * 200
    text = (
        f"i=0; while [ $i -lt 100 ]; do mkdir {name} && cd {name} || exit 1; i=$((i+1)); done; "
        "touch file; mkdir -p closed/in; chmod 0 closed; kill -9 $$"
    )

    async def run_and_fail() -> None:
        async with enclosed.start(place.script(text)) as process:
            await process.wait()
            raise KeyError

    with pytest.raises(KeyError):
        await run_and_fail()
    assert tree(place.root) == {}
    assert not [path for path in place.root.parent.iterdir() if "sandbox" in path.name]


async def test_the_changes_of_another_user(
    open_box: OpenBox, strategy: spi.ExecutionStrategy
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root starts processes of other users")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    place = Workplace(folder)
    for path in (place.root, place.spec("true").temporary_directory):
        os.chown(path, 65534, 65534)
    (place.root / "sub").mkdir()
    os.chown(place.root / "sub", 65534, 65534)
    for name in ("input", "removed", "sub/removed"):
        (place.root / name).write_text("the server's")
    text = "rm removed sub/removed; echo x >> input; mkdir new; echo y > new/y; echo z > sub/z; :"
    drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
    async with open_box(inputs="overlay") as sandbox, sandbox.enclose(place.script(text)) as spec:
        program = shutil.which(drop[0])
        assert program is not None
        assert await run(
            strategy, replace(spec, argv=(program, *drop[1:], *spec.argv))
        ) == spi.Exit(0)
    # It belongs to the server, so that it cannot be changed, as is so without an overlay.
    assert tree(place.root) == {
        "input": "the server's",
        "new": "/",
        "new/y": "y\n",
        "sub": "/",
        "sub/z": "z\n",
    }
    assert (place.root / "new" / "y").stat().st_uid == 65534
    await trio.to_thread.run_sync(shutil.rmtree, folder)


def test_folders_closed_to_everybody_are_merged(tmp_path: Path) -> None:
    # As an unprivileged server meets them; root would not notice.
    user = spi.ProcessUser(os.geteuid(), os.getegid())
    root = tmp_path / "root"
    (root / "closed").mkdir(parents=True)
    (root / "closed" / "old").write_text("")
    private = make_private_folder(root, user)
    overlay.prepare(private, str(root), user)
    upper = Path(private, "upper", "closed")
    upper.mkdir()
    (upper / "new").write_text("")
    upper.chmod(0)
    (root / "closed").chmod(0)
    overlay.apply(private, str(root))
    assert stat.S_IMODE((root / "closed").stat().st_mode) == 0
    (root / "closed").chmod(0o700)
    assert tree(root) == {"closed": "/", "closed/new": "", "closed/old": ""}
    remove_private_folder(private)
    assert not Path(private).exists()
