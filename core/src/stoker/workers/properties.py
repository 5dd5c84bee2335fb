"""What the platform of an action says of persistent workers, in whichever dialect.

There is no standard for it. Sources: Bazel's ``persistentWorkerKey``, its execution requirements,
which clients may set as properties of the same names, and the property of BuildBuddy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from stoker.action import Platform

KEY = "persistentWorkerKey"
_ASKING = ("persistent-workers", "supports-workers")
_PROTOCOL = ("persistentWorkerProtocol", "requires-worker-protocol")
_MULTIPLEX = ("persistentWorkerMultiplex", "supports-multiplex-workers")
_SANDBOXING = ("supports-multiplex-sandboxing",)
_CANCELLATION = ("supports-worker-cancellation",)
_NAME = ("worker-key-mnemonic",)
_SILO = "cache-silo-key"

# Bazel's execution requirements are 1 and 0, others write as Python, YAML or Java do.
_MEANINGS = {"1": True, "true": True, "0": False, "false": False}


class UnclearProperties(ValueError):
    """Properties contradict each other, or have values that say nothing."""


class Wishes(NamedTuple):
    """What an action says of workers. None: nothing."""

    worker: bool | None
    protocol: str | None
    multiplex: bool | None
    sandboxing: bool | None
    """Whether a multiplex worker heeds ``sandbox_dir``."""
    cancellation: bool | None
    name: str | None
    """What to call its workers, in place of the mnemonic."""
    silo: str
    client_key: str
    keeps_container: bool | None
    """Whether the container of its image may serve further actions; None without an image."""


def asks_for_worker(platform: Platform) -> bool | None:
    """Whether `platform` asks for a worker, or for none; None where it says nothing of it.

    Raises UnclearProperties.
    """
    # PWK-01: the key is the client's affair, but a client that sends one means to have a worker.
    said = [(f"{KEY}={value}", True) for value in platform.get(KEY, ()) if value]
    return _verdict([*said, *_statements(platform, _ASKING)])


def read_wishes(platform: Platform) -> Wishes:
    """All that `platform` says. Raises UnclearProperties, naming property and value."""
    return Wishes(
        worker=asks_for_worker(platform),
        protocol=_one_value(platform, _PROTOCOL),
        multiplex=_verdict(_statements(platform, _MULTIPLEX)),
        sandboxing=_verdict(_statements(platform, _SANDBOXING)),
        cancellation=_verdict(_statements(platform, _CANCELLATION)),
        name=_one_value(platform, _NAME),
        silo=", ".join(platform.get(_SILO, ())),
        client_key=", ".join(platform.get(KEY, ())),
        keeps_container=_keeps_container(platform),
    )


def telling_processes_apart(platform: Platform) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The part of `platform` that belongs into a worker's key, beside what has a place of its own
    there.

    That is all but what only names a worker: ``worker-key-mnemonic`` is there to let actions of
    several mnemonics share one, some of which need not set it.
    """
    return tuple(sorted(item for item in platform.items() if not _has_another_place(*item)))


def _has_another_place(name: str, values: Collection[str]) -> bool:
    # Several values are one text there, which a single value may be too.
    return name in _NAME or (name in (_SILO, KEY) and len(values) == 1)


def _statements(platform: Platform, names: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    for name in names:
        for value in filter(None, platform.get(name, ())):
            meaning = _MEANINGS.get(value.lower())
            if meaning is None:
                raise UnclearProperties(f"property {name}={value} is neither 1, true, 0 nor false")
            yield f"{name}={value}", meaning


def _verdict(statements: Iterator[tuple[str, bool]] | list[tuple[str, bool]]) -> bool | None:
    said: dict[bool, str] = {}
    for text, meaning in statements:
        said.setdefault(meaning, text)
    if len(said) > 1:
        raise UnclearProperties(f"properties {said[True]} and {said[False]} contradict each other")
    return next(iter(said), None)


def _one_value(platform: Platform, names: tuple[str, ...]) -> str | None:
    said: dict[str, str] = {}
    for name in names:
        for value in filter(None, platform.get(name, ())):
            said.setdefault(value, f"{name}={value}")
    if len(said) > 1:
        raise UnclearProperties(f"properties {' and '.join(said.values())} contradict each other")
    return next(iter(said), None)


def _keeps_container(platform: Platform) -> bool | None:
    """PWK-03: without ``dockerReuse`` a client expects a container of its own for each action."""
    if not any(platform.get("container-image", ())):
        return None
    return bool(_verdict(_statements(platform, ("dockerReuse",))))
