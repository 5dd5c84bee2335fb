"""Kinds of properties: what of an executor satisfies what of an action (SCH-01, EXE-13)."""

from __future__ import annotations

import pytest

from stoker.errors import InvalidRequest
from stoker.resources import Capacity, Request
from stoker.scheduler.matching import Matching, Offer, PropertyKind

CAPACITY = Capacity.of_executor(slots=4, cpus=4, memory_bytes=2**30, default_memory_bytes=None)


def differences(
    kinds: dict[str, PropertyKind], offered: dict[str, str], asked: dict[str, str]
) -> list[str]:
    matching = Matching(kinds)
    offer = Offer({name: tuple(value.split()) for name, value in offered.items()}, CAPACITY)
    platform = {name: tuple(value.split()) for name, value in asked.items()}
    return [*matching.differences(offer, matching.requirements(platform, Request()))]


@pytest.mark.parametrize(
    ("kind", "offered", "asked", "matches"),
    [
        ("one of", "avx avx2", "avx2", True),
        ("one of", "avx avx2", "avx2 sse", False),
        ("one of", "*", "anything", True),
        ("one of", "avx", "AVX", False),
        ("exact", "avx avx2", "avx2", False),
        ("exact", "avx avx2", "avx2 avx", True),
        ("at least", "12.5", "12", True),
        ("at least", "9", "10", False),
        ("consumed", "2", "2", True),
        ("consumed", "2", "2.001", False),
        ("pattern", "gcc-* clang", "gcc-12", True),
        ("pattern", "gcc-* clang", "gcc-12 clang-9", False),
        ("pattern", "*", "anything", True),
        ("ignored", "this", "that", True),
    ],
)
def test_each_kind(kind: PropertyKind, offered: str, asked: str, matches: bool) -> None:
    assert (not differences({"p": kind}, {"p": offered}, {"p": asked})) is matches
    # What an executor does not declare it does not have.
    assert (not differences({"p": kind}, {}, {"p": asked})) is (kind == "ignored")


def test_an_executor_of_an_exact_property_is_for_those_that_ask_for_it() -> None:
    told = differences({"Pool": "exact"}, {"Pool": "release"}, {})
    assert told == ["does not ask for Pool, offers release"]
    assert not differences({}, {"Pool": "release"}, {})


def test_differences_name_what_lacks() -> None:
    told = differences({"gpus": "at least"}, {"gpus": "1", "OS": "linux"}, {"gpus": "2", "OS": "x"})
    assert told == ["wants gpus=2, offers 1", "wants OS=x, offers linux"]


def test_what_is_no_number_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="gpus='many': expected a number"):
        differences({"gpus": "consumed"}, {"gpus": "1"}, {"gpus": "many"})


def test_keys_of_workers_do_not_route_and_digests_of_images_neither() -> None:
    asked = {"persistentWorkerKey": "k", "dockerReuse": "True"}
    assert not differences({}, {}, asked)
    image = {"container-image": "docker://host/tools@sha256:00ff"}
    assert not differences({}, {"container-image": "docker://host/tools"}, image)
    assert not differences({}, {"container-image": "docker://host/*"}, image)
    assert differences({}, {"container-image": "docker://other/*"}, image)
    # A server with workers of one sort on some machines only may say otherwise.
    assert differences({"persistentWorkerKey": "one of"}, {}, asked)
