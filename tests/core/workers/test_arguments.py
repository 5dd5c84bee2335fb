"""Command lines are split and expanded as Bazel does it (PWK-04)."""

from __future__ import annotations

import pytest

from stoker.errors import InvalidRequest
from stoker.workers import arguments
from stoker.workers.arguments import CommandLine, expand_arguments, split_arguments


def test_flag_files_are_told_from_what_starts_the_worker() -> None:
    line = ["java", "@a", "-jar", "--flagfile=b", "-flagfile=c", "x.jar", "@@d", "@repo//:e"]
    assert split_arguments(line) == CommandLine(
        startup=("java", "-jar", "x.jar"),
        flag_files=("@a", "--flagfile=b", "-flagfile=c", "@@d", "@repo//:e"),
    )


@pytest.mark.parametrize("argument", ["@", "a@b", "--flagfile=", "-flagfile", "--flag_file=x", ""])
def test_what_names_no_flag_file(argument: str) -> None:
    assert split_arguments(["tool", argument]) is None


async def expand(files: dict[str, bytes], *flag_files: str) -> list[str]:
    async def read(path: str) -> bytes:
        return files[path]

    return await expand_arguments(flag_files, read)


async def test_lines_become_arguments_as_they_are() -> None:
    text = b"-d\r\nout dir \n\n'quoted'\n# none\n\x0b\xc2\x85 \xe2\x80\xa8\n\n"
    assert await expand({"f": text}, "@f") == [
        "-d",
        "out dir ",
        "",
        "'quoted'",
        "# none",
        "\x0b\x85 \u2028",
        "",
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [(b"", []), (b"\n", [""]), (b"a", ["a"]), (b"a\r\n", ["a"]), (b"a\n\n", ["a", ""])],
)
async def test_a_final_newline_adds_nothing(text: bytes, lines: list[str]) -> None:
    assert await expand({"f": text}, "@f") == lines


async def test_files_are_expanded_in_order_and_within_each_other() -> None:
    files = {"a": b"1\n@b\n3\n", "b": b"2\n", "c": b"@b"}
    assert await expand(files, "@a", "@c", "@b") == ["1", "2", "3", "2", "2"]


async def test_only_the_plain_form_is_expanded() -> None:
    # WORKERS 2.3: as Bazel was measured to do it; it does not take "@@f" for a literal "@f".
    verbatim = ["@@f", "@repo//:f", "--flagfile=f", "-flagfile=f"]
    assert await expand({"g": "\n".join([*verbatim, "@"]).encode()}, *verbatim, "@g") == [
        *verbatim,
        *verbatim,
        "@",
    ]


async def test_a_circle_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"a -> b -> \./a"):
        await expand({"a": b"@b", "b": b"@./a"}, "@a")


async def test_depth_is_bounded() -> None:
    files = {str(n): f"@{n + 1}".encode() for n in range(arguments.MAX_DEPTH)}
    deepest = str(arguments.MAX_DEPTH)
    with pytest.raises(InvalidRequest, match=f"'{deepest}' is nested more than 32 deep"):
        await expand(files | {deepest: b"x"}, "@0")
    assert await expand(files | {deepest: b"x"}, "@1") == ["x"]


async def test_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "MAX_FLAG_FILE_BYTES", 10)
    assert await expand({"a": b"12345"}, "@a", "@a") == ["12345", "12345"]
    with pytest.raises(InvalidRequest, match="more than 10 bytes"):
        await expand({"a": b"12345"}, "@a", "@a", "@a")


async def test_the_number_of_files_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "MAX_FLAG_FILES", 10)
    files = {"none": b"", "nine": b"@none\n" * 9, "ten": b"@none\n" * 10}
    assert await expand(files, "@nine") == []
    with pytest.raises(InvalidRequest, match="named more than 10 times, the last is 'none'"):
        await expand(files, "@ten")


async def test_the_number_of_lines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "MAX_LINES", 10)
    assert await expand({"a": b"\n" * 5}, "@a", "@a") == [""] * 10
    with pytest.raises(InvalidRequest, match="more than 10 lines together, the last of them 'b'"):
        await expand({"a": b"\n" * 5, "b": b"\n" * 6}, "@a", "@b")


async def test_a_line_may_be_long() -> None:
    assert await expand({"f": b"x" * 200_000 + b"\ny"}, "@f") == ["x" * 200_000, "y"]


async def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'f' is no UTF-8"):
        await expand({"f": b"caf\xe9"}, "@f")
