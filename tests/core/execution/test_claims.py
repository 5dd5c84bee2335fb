"""Who may use a folder together, and in which order; trees made of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from stoker.digest import SHA256
from stoker.errors import InvalidRequest
from stoker.execution.arrangement import MAX_DEPTH
from stoker.execution.claims import Claim, Claims
from stoker.execution.union import agree, find, union, without
from stoker.storage.input_tree import FileEntry, InputDirectory

Tree = Mapping[str, "bytes | str | Tree"]


def directory(entries: Tree) -> InputDirectory:
    """Bytes are files, text is the target of a link."""
    directories = {n: directory(e) for n, e in entries.items() if isinstance(e, Mapping)}
    files = {n: FileEntry(SHA256.digest(e)) for n, e in entries.items() if isinstance(e, bytes)}
    symlinks = {n: e for n, e in entries.items() if isinstance(e, str)}
    told = repr([files, {n: d.digest for n, d in directories.items()}, symlinks])
    return InputDirectory(SHA256.digest(told.encode()), files, directories, symlinks)


def claim_of(entries: Tree, *outputs: str, folders: tuple[str, ...] = (), **fields: Any) -> Claim:
    parents = {output.rpartition("/")[0] for output in outputs}
    return Claim(
        directory(entries),
        frozenset(outputs),
        frozenset({*parents, *folders} - {""}),
        fields.get("is_alone", False),
    )


AGREEING = [
    (claim_of({"a": b"1", "d": {"b": b""}}, "x"), claim_of({"a": b"1", "d": {"c": b""}}, "y")),
    (claim_of({}, "out/x"), claim_of({}, "out/y")),
    (claim_of({"d": {"a": b""}}, "d/x"), claim_of({"d": {"b": b""}}, "d/y")),
    (claim_of({"l": "a"}), claim_of({"l": "a"})),
]
DISAGREEING = [
    (claim_of({"a": b"1"}), claim_of({"a": b"2"})),
    (claim_of({"a": b"1"}), claim_of({"a": "1"})),
    (claim_of({"d": {"a": b"1"}}), claim_of({"d": {"a": {}}})),
    (claim_of({"l": "a"}), claim_of({"l": "b"})),
    (claim_of({}, "x"), claim_of({}, "x")),
    (claim_of({}, "x"), claim_of({}, "x/y")),
    (claim_of({}, ""), claim_of({})),
    (claim_of({}, "x"), claim_of({"x": b""})),
    (claim_of({}, "x"), claim_of({"x": {"y": b""}})),
    (claim_of({}, "x/y"), claim_of({"x": b""})),
    (claim_of({}, "x"), claim_of({}, folders=("x/work",))),
    (claim_of({}, is_alone=True), claim_of({})),
]


@pytest.mark.parametrize(("one", "other"), AGREEING)
def test_who_may_share_a_folder(one: Claim, other: Claim) -> None:
    assert one.agrees_with(other)
    assert other.agrees_with(one)


@pytest.mark.parametrize(("one", "other"), DISAGREEING)
def test_who_may_not_share_a_folder(one: Claim, other: Claim) -> None:
    assert not one.agrees_with(other)
    assert not other.agrees_with(one)


def test_first_come_first_served_but_nobody_waits_for_what_is_no_concern_of_his() -> None:
    claims, granted = Claims(), list[str]()
    first, rival, third = claim_of({"a": b"1"}), claim_of({"a": b"2"}), claim_of({"a": b"1"})
    stranger = claim_of({"b": b""})
    for name, new in (("first", first), ("rival", rival), ("third", third), ("b", stranger)):
        claims.ask(new, lambda name=name: granted.append(name))  # type: ignore[misc]
    # The third would agree with the first, but keep the rival waiting.
    assert granted == ["first", "b"]
    claims.give_back(first)
    assert granted == ["first", "b", "rival"]
    claims.give_back(rival)
    assert granted == ["first", "b", "rival", "third"]


def test_one_who_gives_up_waiting_holds_up_nobody() -> None:
    claims, granted = Claims(), list[str]()
    first, rival, third = claim_of({"a": b"1"}), claim_of({"a": b"2"}), claim_of({"a": b"1"})
    claims.ask(first, list)
    claims.ask(rival, lambda: granted.append("rival"))
    claims.ask(third, lambda: granted.append("third"))
    claims.give_back(rival)
    assert granted == ["third"]


def test_a_union_holds_all_of_both() -> None:
    below = directory({"a": b"1", "d": {"x": b"", "same": b""}, "l": "a", "t": b"", "f": {}})
    above = directory({"a": b"2", "d": {"y": b"", "same": b""}, "t": {"u": b""}, "f": b""})
    both = union(below, above)
    expected: Tree = {
        "a": b"2",
        "d": {"x": b"", "y": b"", "same": b""},
        "l": "a",
        "t": {"u": b""},
        "f": b"",
    }
    assert agree(both, directory(expected))
    assert both.entries == directory(expected).entries
    assert union(both, above) is both
    assert union(above, both) is both
    assert union(above, directory({"a": b"2"})) is above
    assert union(below, below) is below
    again = union(directory({"a": b"1", "d": {"x": b""}}), directory({"d": {"x": b"!"}}))
    assert again.digest != both.digest


def test_a_tree_without_a_path() -> None:
    tree = directory({"d": {"x": b"", "y": b""}, "a": b""})
    rest = without(tree, "d/x")
    assert find(rest, "d/x") is None
    assert find(rest, "d/y") is not None
    assert find(without(rest, "d"), "d") is None
    assert without(tree, "d/z") is tree
    assert without(tree, "a/b") is tree


def test_trees_that_are_too_deep_for_a_folder() -> None:
    deep: list[InputDirectory] = []
    for content in (b"1", b"2"):
        tree = directory({"f": content})
        for _ in range(MAX_DEPTH + 1):
            told = SHA256.digest(tree.digest.hash.encode())
            tree = InputDirectory(told, {}, {"d": tree}, {})
        deep.append(tree)
    with pytest.raises(InvalidRequest, match="deep"):
        union(deep[0], deep[1])
