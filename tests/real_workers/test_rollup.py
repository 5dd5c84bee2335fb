"""@bazel/rollup: it keeps what it has parsed, and is an input of the action, file by file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..end_to_end.actions import Tree
from .packages import tool_tree, with_files
from .workbench import Workbench

PROGRAM = "node_modules/@bazel/rollup/index.js"
PACKAGES = [
    "@bazel/rollup/*.js*",
    "@bazel/worker/*.js*",
    "google-protobuf/*",
    "rollup/package.json",
    "rollup/dist/*.js",
]
FLAGS = b"src/main.js\n--format\nesm\n--output.file\nout/bundle.js\n"
MAIN = b"import {twice} from './twice.js';\nexport const four = twice(2);\n"
TWICE = b"export const twice = number => 2 * number;\nexport const unused = 1;\n"


@pytest.fixture(scope="module")
def rollup(node_modules: Path) -> Tree:
    return tool_tree(node_modules, PACKAGES)


def sources(tool: Tree, **modules: bytes) -> Tree:
    files = {f"src/{name}.js": text for name, text in modules.items()}
    return with_files(tool, **files, flags=FLAGS)


# PWK-01, PWK-07, PWK-11 and PWK-17
async def test_bundles_what_has_changed_until_the_tool_does(
    bench: Workbench, node: str, rollup: Tree
) -> None:
    command = [node, PROGRAM, "@flags"]
    before = await bench.work(command, sources(rollup, main=MAIN, twice=TWICE), ["out"])
    edited = sources(rollup, main=MAIN, twice=TWICE.replace(b"2 * number", b"number + number"))
    after = await bench.work(command, edited, ["out"])
    assert (before.exit_code, after.exit_code) == (0, 0)
    assert (after.worker, after.served) == (before.worker, 2)
    assert b"2 * number" in before.outputs["out/bundle.js"]
    assert b"number + number" in after.outputs["out/bundle.js"]
    once = await bench.run_once(command, edited, ["out"])
    # What it says is another thing: without a worker it tells that it was started for this only.
    assert (once.exit_code, once.outputs) == (0, after.outputs)
    assert "Started a new process" in once.said

    changed = Tree({**edited.files}, tools=edited.tools)
    changed.files[PROGRAM] += b"// a newer one\n"
    other = await bench.work(command, changed, ["out"])
    assert other.outputs == after.outputs
    assert (other.worker != after.worker, other.served) == (True, 1)
    back = await bench.work(command, edited, ["out"])
    assert (back.worker, back.served) == (after.worker, 3)


async def test_does_not_find_a_module_that_is_no_input_any_more(
    bench: Workbench, node: str, rollup: Tree
) -> None:
    command = [node, PROGRAM, "@flags"]
    await bench.work(command, sources(rollup, main=MAIN, twice=TWICE), ["out"])
    lost = await bench.work(command, sources(rollup, main=MAIN), ["out"])
    assert (lost.exit_code, lost.outputs) == (1, {})
    # It remembers where the module was; a process of its own could not resolve it to begin with.
    assert "Could not load" in lost.said
    assert "src/twice.js" in lost.said
    found = await bench.work(command, sources(rollup, main=MAIN, twice=TWICE), ["out"])
    assert (found.exit_code, found.worker) == (0, lost.worker)
