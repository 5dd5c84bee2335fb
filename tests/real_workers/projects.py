"""What is compiled: a library in Java, and a project in TypeScript for tsc_wrapped."""

from __future__ import annotations

import json

from ..end_to_end.actions import Tree
from .packages import with_files

LIBRARY_OUTPUTS = ["out/library.jar", "out/library.jdeps"]

GREETER = b"""package shop;
public class Greeter {
    public record Guest(String name) {}
    public String greet(Guest guest) { return "Hello, " + guest.name(); }
}
"""

DOOR = b"""package shop;
public final class Door extends Greeter {
    public static void main(String[] names) {
        for (String name : names) System.out.println(new Door().greet(new Guest(name)));
    }
}
"""


def library(**sources: bytes) -> Tree:
    files = {f"src/shop/{name}.java": text for name, text in sources.items()}
    flags = [
        *("--output", LIBRARY_OUTPUTS[0], "--output_deps_proto", LIBRARY_OUTPUTS[1]),
        *("--target_label", "//shop:library"),
        *("--sources", *files),
        *("--javacopts", "--release", "17", "-Xlint:all", "--"),
    ]
    return Tree({**files, "flags": "".join(f"{flag}\n" for flag in flags).encode()})


TSC_WRAPPED = "node_modules/@bazel/concatjs/internal/tsc_wrapped/tsc_wrapped.js"
TSC_WRAPPED_PACKAGES = [
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
