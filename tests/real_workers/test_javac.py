"""Bazel's VanillaJavaBuilder: javac that stays warm, in a program of several thousand classes."""

from __future__ import annotations

import io
import zipfile

from .projects import DOOR, GREETER, library
from .projects import LIBRARY_OUTPUTS as OUTPUTS
from .workbench import Workbench


def classes(jar: bytes) -> set[str]:
    return {name for name in zipfile.ZipFile(io.BytesIO(jar)).namelist() if name.endswith(".class")}


# PWK-17
async def test_compiles_java_as_a_process_of_its_own_does(
    bench: Workbench, java_builder: list[str]
) -> None:
    command = [*java_builder, "@flags"]
    first = await bench.work(command, library(Greeter=GREETER), OUTPUTS)
    second = await bench.work(command, library(Greeter=GREETER, Door=DOOR), OUTPUTS)
    edited = GREETER.replace(b"Hello", b"Welcome")
    third = await bench.work(command, library(Greeter=edited, Door=DOOR), OUTPUTS)
    assert (first.worker, second.worker) == (second.worker, third.worker)
    assert [first.served, second.served, third.served] == [1, 2, 3]
    assert classes(first.outputs[OUTPUTS[0]]) == {
        "shop/Greeter.class",
        "shop/Greeter$Guest.class",
    }
    assert "shop/Door.class" in classes(second.outputs[OUTPUTS[0]])
    once = await bench.run_once(command, library(Greeter=edited, Door=DOOR), OUTPUTS)
    assert third.result == once.result
    assert third.outputs != second.outputs


async def test_tells_what_is_wrong_with_the_java_and_goes_on(
    bench: Workbench, java_builder: list[str]
) -> None:
    command = [*java_builder, "@flags"]
    # A source that is gone must not be found, though the worker has compiled it before.
    await bench.work(command, library(Greeter=GREETER, Door=DOOR), OUTPUTS)
    wrong = await bench.work(command, library(Door=DOOR), OUTPUTS)
    assert wrong.exit_code == 1
    assert "src/shop/Door.java:2: error: cannot find symbol" in wrong.said
    once = await bench.run_once(command, library(Door=DOOR), OUTPUTS)
    assert wrong.result == once.result
    again = await bench.work(command, library(Greeter=GREETER, Door=DOOR), OUTPUTS)
    assert (again.exit_code, again.worker) == (0, wrong.worker)
