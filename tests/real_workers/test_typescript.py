"""@bazel/typescript: a worker around the compiler's watch mode.

It looks at no digest: an edit is what the kernel tells it of its files. After it has answered it
collects garbage, for a tenth of a second or so, and of a request that comes while it does it hears
before it hears of an edit, whoever has made that edit, and compiles what was there before. So it is
given an edit when it is at rest, as a person would. The end of its stdin does not end it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from ..end_to_end.actions import Tree
from ..end_to_end.remains import marked
from .workbench import Done, Workbench

MARK = "stoker's typescript"

FLAGS = b"--project\ntsconfig.json\n--outDir\nout\n--rootDir\nsrc\n"
CONFIGURATION = {
    "compilerOptions": {
        "target": "es2018",
        "lib": ["es2018"],
        "skipLibCheck": True,
        "module": "commonjs",
        "declaration": True,
        "strict": True,
        "types": [],
    },
    "include": ["src/*.ts"],
}
ADD = b"export const add = (one: number, other: number): number => one + other;\n"
MAIN = b"import {add} from './add';\nexport const three: number = add(1, 2);\n"


@pytest.fixture(scope="module")
def compiler(node: str, node_modules: Path) -> list[str]:
    worker = node_modules / "@bazel" / "typescript" / "internal" / "worker" / "worker_adapter.js"
    required = str(node_modules / "typescript")
    return [node, str(worker), "--typescript_require_path", required, "@flags"]


def project(**sources: bytes) -> Tree:
    files = {f"src/{name}.ts": text for name, text in sources.items()}
    return Tree({**files, "flags": FLAGS, "tsconfig.json": json.dumps(CONFIGURATION).encode()})


async def wait_at_rest() -> None:
    """Until the worker has nothing to do for a while."""
    before, now = -1, -2
    while before != now:
        await trio.sleep(0.1)
        before, now = now, processor_time(next(iter(marked(MARK))))


def processor_time(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# PWK-17
async def test_sees_edits_errors_and_new_files(bench: Workbench, compiler: list[str]) -> None:
    async def work(tree: Tree) -> Done:
        done = await bench.work(compiler, tree, ["out"], environment={"MARK": MARK})
        await wait_at_rest()
        return done

    before = await work(project(add=ADD, main=MAIN))
    assert (before.exit_code, set(before.outputs)) == (
        0,
        {"out/add.js", "out/add.d.ts", "out/main.js", "out/main.d.ts"},
    )
    # As long as before, so that it differs by its content only.
    edited = project(add=ADD.replace(b"one + other", b"other + one"), main=MAIN)
    after = await work(edited)
    assert (after.worker, after.served) == (before.worker, 2)
    assert b"other + one" in after.outputs["out/add.js"]

    wrong = project(add=ADD, main=MAIN.replace(b": number", b": string"))
    told = await work(wrong)
    assert (told.exit_code, told.served) == (1, 3)
    assert "src/main.ts(2,14): error TS2322" in told.said

    # Without a worker it says the same among other things, and ends as if all were well.
    once = await bench.run_once(compiler, wrong, ["out"])
    assert (once.exit_code, once.outputs) == (0, told.outputs)
    assert told.said in once.said

    grown = await work(project(add=ADD, main=MAIN, more=MAIN.replace(b"three", b"again")))
    assert (grown.exit_code, grown.worker) == (0, before.worker)
    assert b"exports.again" in grown.outputs["out/more.js"]
