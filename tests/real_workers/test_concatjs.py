"""@bazel/concatjs: tsc_wrapped, which believes the digests that its request lists, and only those.

The compiler with its libraries is an input of the action, as it refuses to read a file of which no
digest was sent.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ..end_to_end.actions import Tree
from .packages import tool_tree
from .projects import MAIN, SHAPES, TSC_WRAPPED, TSC_WRAPPED_PACKAGES, project
from .workbench import Workbench


@pytest.fixture(scope="module")
def compiler(node_modules: Path) -> Tree:
    return tool_tree(node_modules, TSC_WRAPPED_PACKAGES)


# PWK-07 and PWK-17
async def test_compiles_what_has_a_new_digest(bench: Workbench, node: str, compiler: Tree) -> None:
    command = [node, TSC_WRAPPED, "@@tsconfig.json"]
    before = await bench.work(command, project(compiler, shapes=SHAPES, main=MAIN), ["out"])
    assert (before.exit_code, before.said) == (0, "")
    edited = project(compiler, shapes=SHAPES.replace(b"square.side * ", b"2 * "), main=MAIN)
    after = await bench.work(command, edited, ["out"])
    assert (after.worker, after.served) == (before.worker, 2)
    assert b"2 * square.side" in after.outputs["out/src/shapes.js"]
    assert after.outputs["out/src/main.js"] == before.outputs["out/src/main.js"]
    assert after.result == (await bench.run_once(command, edited, ["out"])).result


async def test_tells_the_errors_of_the_files_as_they_are_now(
    bench: Workbench, node: str, compiler: Tree
) -> None:
    command = [node, TSC_WRAPPED, "@@tsconfig.json"]
    await bench.work(command, project(compiler, shapes=SHAPES, main=MAIN), ["out"])
    wrong = project(compiler, shapes=SHAPES.replace(b"side: number", b"edge: number"), main=MAIN)
    told = await bench.work(command, wrong, ["out"])
    assert (told.exit_code, told.outputs) == (1, {})
    assert "src/shapes.ts" in told.said
    assert "TS2339" in told.said
    assert told.result == (await bench.run_once(command, wrong, ["out"])).result
    mended = await bench.work(command, project(compiler, shapes=SHAPES, main=MAIN), ["out"])
    assert (mended.exit_code, mended.said, mended.worker) == (0, "", told.worker)


async def test_refuses_a_file_of_which_it_was_sent_no_digest(
    bench: Workbench, node: str, node_modules: Path
) -> None:
    # A compiler that is no input: its libraries are read from elsewhere.
    program = str(node_modules.parent / TSC_WRAPPED)
    sources = project(Tree(), shapes=SHAPES, main=MAIN)
    refused = await bench.work([node, program, "@@tsconfig.json"], sources, ["out"])
    assert (refused.exit_code, refused.outputs) == (1, {})
    assert "missing input digest for" in refused.said
    # Without a worker there are no digests, and it reads what it finds.
    once = await bench.run_once([node, program, "@@tsconfig.json"], sources, ["out"])
    assert once.exit_code == 0
