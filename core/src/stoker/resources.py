"""What an action asks of the machine beside a program: processors and memory. Pure.

Actions ask by platform properties. stoker's own names are ``cpus`` and ``memory``; what other
servers call the same is understood too:

================================================  ==========================================
``cpus``, ``EstimatedCPU``, ``cpu_count``,        processors: ``2``, ``0.5`` or ``500m``
``cores``, ``min-cores``
``memory``, ``EstimatedMemory``, ``min-mem``,     bytes: ``1073741824``, ``500MB``, ``1.5GiB``
``max-mem``
``memory_kb``                                     units of 1024 bytes: ``1048576``
================================================  ==========================================

Where several are given, the largest counts: an action must get along with what it says anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, NamedTuple

import msgspec

from stoker.action import Platform
from stoker.errors import InvalidRequest

ByteCount = Annotated[int, msgspec.Meta(ge=1, extra={"text": "bytes"})]
"""The type of a setting that is a number of bytes, or a text that `parse_bytes` takes."""

_BYTES = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([kmgt]?)(i?)b?", re.IGNORECASE)
_MILLICPUS = re.compile(r"([0-9]{1,9})m")
_CPUS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str) -> int:
    """The number of bytes that `text` means: ``16GiB`` and ``16Gi`` by 1024, ``16GB`` by 1000.

    Raises ValueError for any other text, and for less than a byte.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"{text!r} is no amount")
    unit = 1024 if match[3] else 1000
    # Not a float, which would round what has more than 15 digits.
    size_bytes = int(Decimal(match[1]) * unit ** _POWERS[match[2].lower()])
    if size_bytes < 1:
        raise ValueError(f"{text!r} is no amount")
    return size_bytes


def _parse_kibibytes(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text) or not int(text):
        raise ValueError(f"{text!r} is no amount")
    return int(text) * 1024


def _parse_millicpus(text: str) -> int:
    if match := _MILLICPUS.fullmatch(text):
        millicpus = int(match[1])
    elif _CPUS.fullmatch(text):
        millicpus = round(float(text) * 1000)
    else:
        raise ValueError(f"{text!r} is no amount")
    if not millicpus:
        raise ValueError(f"{text!r} is no amount")
    return millicpus


class _Unit(NamedTuple):
    parse: Callable[[str], int]
    expected: str


_CPU_UNIT = _Unit(_parse_millicpus, "a number of processors above 0, such as 2, 0.5 or 500m")
_BYTE_UNIT = _Unit(parse_bytes, "a number of bytes above 0, such as 1073741824, 500MB or 1.5GiB")
_KIBIBYTE_UNIT = _Unit(_parse_kibibytes, "a whole number of units of 1024 bytes, such as 1048576")

CPU_PROPERTIES: Mapping[str, _Unit] = dict.fromkeys(
    ("cpus", "EstimatedCPU", "cpu_count", "cores", "min-cores"), _CPU_UNIT
)
MEMORY_PROPERTIES: Mapping[str, _Unit] = {
    **dict.fromkeys(("memory", "EstimatedMemory", "min-mem", "max-mem"), _BYTE_UNIT),
    "memory_kb": _KIBIBYTE_UNIT,
}
RESOURCE_PROPERTIES = frozenset({*CPU_PROPERTIES, *MEMORY_PROPERTIES})
"""Properties that ask for an amount. They are never matched as values."""


@dataclass(frozen=True, slots=True)
class Request:
    """What an action asks for; None where it leaves that to the executor."""

    millicpus: int | None = None
    """Thousandths of a processor: whole numbers add up without a remainder."""
    memory_bytes: int | None = None


def requested(platform: Platform) -> Request:
    """What `platform` asks for. Raises InvalidRequest naming the property and what it takes."""
    return Request(_largest(platform, CPU_PROPERTIES), _largest(platform, MEMORY_PROPERTIES))


def _largest(platform: Platform, units: Mapping[str, _Unit]) -> int | None:
    amounts = (
        _amount(name, value, units[name])
        for name in platform
        if name in units
        for value in platform[name]
    )
    return max(amounts, default=None)


def _amount(name: str, value: str, unit: _Unit) -> int:
    try:
        return unit.parse(value)
    except ValueError:
        raise InvalidRequest(
            f"platform property {name}={value!r}: expected {unit.expected}"
        ) from None


class Share(NamedTuple):
    """Part of an executor."""

    millicpus: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an executor has for its actions, and what one gets that does not ask."""

    total: Share
    default: Share

    @classmethod
    def of_executor(
        cls, *, slots: int, cpus: float, memory_bytes: int, default_memory_bytes: int | None
    ) -> Capacity:
        """An action that does not ask counts as one processor, or as an even share where there
        are more slots than processors: so it is the slots that bound such actions. It counts as
        no memory, unless it is held to a default."""
        millicpus = round(cpus * 1000)
        default = Share(min(1000, millicpus // slots), default_memory_bytes or 0)
        return cls(Share(millicpus, memory_bytes), default)

    def share(self, request: Request) -> Share:
        """What an action with `request` takes."""
        cpus, memory_bytes = request.millicpus, request.memory_bytes
        return Share(
            self.default.millicpus if cpus is None else cpus,
            self.default.memory_bytes if memory_bytes is None else memory_bytes,
        )

    def shortfalls(self, request: Request) -> Iterator[str]:
        """What is too much here even when nothing else runs, in words."""
        cpus, memory_bytes = self.share(request)
        if cpus > self.total.millicpus:
            yield f"wants {cpus / 1000:g} cpus, has {self.total.millicpus / 1000:g}"
        if memory_bytes > self.total.memory_bytes:
            yield f"wants {memory_bytes} bytes of memory, has {self.total.memory_bytes}"
