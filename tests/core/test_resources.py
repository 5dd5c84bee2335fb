"""What actions ask for, and what an executor has."""

from __future__ import annotations

import pytest

from stoker.errors import InvalidRequest
from stoker.resources import Capacity, Request, Share, parse_bytes, requested

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("1073741824", GIB),
        ("16GiB", 16 * GIB),
        ("16Gi", 16 * GIB),
        ("16 gib", 16 * GIB),
        ("500MB", 500_000_000),
        ("500M", 500_000_000),
        ("1.5GiB", 3 * GIB // 2),
        ("1kB", 1000),
        ("2t", 2 * 10**12),
        ("999999999999999999", 999_999_999_999_999_999),
    ],
)
def test_texts_that_are_numbers_of_bytes(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.1", "-1", "1e9", "GiB", "1 2", "16iB", "1PB", "٣", "inf", "9" * 19, "1_000"],
)
def test_texts_that_are_not(text: str) -> None:
    with pytest.raises(ValueError, match="is no amount"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("name", "value", "request_"),
    [
        ("cpus", "2", Request(2000)),
        ("cpus", "0.5", Request(500)),
        ("EstimatedCPU", "500m", Request(500)),
        ("cpu_count", "4", Request(4000)),
        ("cores", "1", Request(1000)),
        ("min-cores", "1", Request(1000)),
        ("memory", "1GiB", Request(None, GIB)),
        ("EstimatedMemory", "1GB", Request(None, 10**9)),
        ("min-mem", "1024", Request(None, 1024)),
        ("max-mem", "1024", Request(None, 1024)),
        ("memory_kb", "2", Request(None, 2048)),
        ("OSFamily", "linux", Request()),
    ],
)
def test_how_to_ask(name: str, value: str, request_: Request) -> None:  # SCH-01
    assert requested({name: (value,)}) == request_


def test_the_largest_counts() -> None:
    platform = {"cpus": ("1", "3"), "min-cores": ("2",), "min-mem": ("1",), "max-mem": ("2",)}
    assert requested(platform) == Request(3000, 2)


@pytest.mark.parametrize("value", ["", "0", "0m", "-1", "two", "1.2345", "nan", "1e3", "٣"])
def test_what_is_no_number_of_processors(value: str) -> None:
    with pytest.raises(InvalidRequest, match=r"cpus=.*expected a number of processors above 0"):
        requested({"cpus": (value,)})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("memory", "lots", "a number of bytes above 0"),
        ("memory_kb", "1GiB", "units of 1024 bytes"),
        ("memory_kb", "0", "units of 1024 bytes"),
    ],
)
def test_what_is_no_amount_of_memory(name: str, value: str, expected: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}='{value}': expected .*{expected}"):
        requested({name: (value,)})


def test_what_an_action_counts_that_does_not_ask() -> None:
    few = Capacity.of_executor(slots=2, cpus=8, memory_bytes=GIB, default_memory_bytes=None)
    assert few.share(Request()) == Share(1000, 0)
    many = Capacity.of_executor(slots=3, cpus=1, memory_bytes=GIB, default_memory_bytes=7)
    assert many.share(Request()) == Share(333, 7)
    assert many.share(Request(memory_bytes=9)) == Share(333, 9)


def test_slots_bound_what_does_not_ask() -> None:
    for slots in range(1, 70):
        for cpus in (0.1, 1, 1.5, 3, 64):
            capacity = Capacity.of_executor(
                slots=slots, cpus=cpus, memory_bytes=GIB, default_memory_bytes=None
            )
            assert capacity.share(Request()).millicpus * slots <= capacity.total.millicpus
