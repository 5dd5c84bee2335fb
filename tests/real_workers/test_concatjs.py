"""@bazel/concatjs: tsc_wrapped, which believes the digests that its request lists, and only those.

The compiler with its libraries is an input of the action, as it refuses to read a file of which no
digest was sent.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..end_to_end.actions import Tree
from .packages import tool_tree, with_files
from .workbench import Workbench

PROGRAM = "node_modules/@bazel/concatjs/internal/tsc_wrapped/tsc_wrapped.js"
PACKAGES = [
    "@bazel/concatjs/internal/*.js",
    "@bazel/concatjs/third_party/*.proto",
    "typescript/package.json",
    "typescript/lib/typescript.js",
    "typescript/lib/lib*.d.ts",
    *(f"{name}/*" for name in ("protobufjs", "@protobufjs", "long", "tsutils", "tslib")),
]
SHAPES = b"""export interface Square { side: number }
export const area = (square: Square): number => square.side * square.side;
"""
MAIN = b"""import {area, Square} from './shapes';
const square: Square = {side: 3};
console.log(area(square));
"""


@pytest.fixture(scope="module")
def compiler(node_modules: Path) -> Tree:
    return tool_tree(node_modules, PACKAGES)


def project(tool: Tree, **sources: bytes) -> Tree:
    files = {f"src/{name}.ts": text for name, text in sources.items()}
    settings = {
        "compilerOptions": {
            "target": "es2018",
            "lib": ["es2018", "dom"],
            "module": "commonjs",
            "moduleResolution": "node",
            "rootDir": ".",
            "rootDirs": ["."],
            "outDir": "out",
            "declaration": True,
            "strict": True,
            "types": [],
        },
        "files": list(files),
        "bazelOptions": {
            "target": "//src:project",
            "workspaceName": "workspace",
            "package": "src",
            "compilationTargetSrc": list(files),
            "expectedDiagnostics": [],
            "disableStrictDeps": True,
            "es5Mode": True,
            "tsickle": False,
            "typeCheck": True,
        },
    }
    return with_files(tool, **files, **{"tsconfig.json": json.dumps(settings).encode()})


# PWK-07 and PWK-17
async def test_compiles_what_has_a_new_digest(bench: Workbench, node: str, compiler: Tree) -> None:
    command = [node, PROGRAM, "@@tsconfig.json"]
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
    command = [node, PROGRAM, "@@tsconfig.json"]
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
    program = str(node_modules.parent / PROGRAM)
    sources = project(Tree(), shapes=SHAPES, main=MAIN)
    refused = await bench.work([node, program, "@@tsconfig.json"], sources, ["out"])
    assert (refused.exit_code, refused.outputs) == (1, {})
    assert "missing input digest for" in refused.said
    # Without a worker there are no digests, and it reads what it finds.
    once = await bench.run_once([node, program, "@@tsconfig.json"], sources, ["out"])
    assert once.exit_code == 0
