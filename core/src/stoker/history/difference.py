"""What two actions differ in, but for their inputs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from stoker.action import platform_of
from stoker.protos import remote_execution_pb2 as reapi

_MAX_COMPARED_ARGUMENTS = 400
"""Of longer stretches that differ only the whole is told: to align them takes their square."""


class Difference(NamedTuple):
    """One thing in which an action differs from an earlier one."""

    part: str
    """argument, environment, platform, working directory, output, output property, output format,
    timeout, salt, do_not_cache, input, or encoding."""
    change: str
    """added, removed, changed; of inputs also mode changed, properties changed."""
    name: str
    """The position of an argument, the name of a variable or property, a path."""
    before: str = ""
    after: str = ""


def action_differences(before: reapi.Action, after: reapi.Action) -> Iterator[Difference]:
    """What the Action messages themselves differ in; their platforms are compared elsewhere."""
    yield from _value("timeout", _timeout(before), _timeout(after))
    yield from _value("salt", before.salt.hex(), after.salt.hex())
    yield from _value("do_not_cache", str(before.do_not_cache), str(after.do_not_cache))


def platform_differences(
    before: tuple[reapi.Action, reapi.Command], after: tuple[reapi.Action, reapi.Command]
) -> Iterator[Difference]:
    """Properties that are asked for, wherever they are written (EXE-12)."""
    old, new = platform_of(*before), platform_of(*after)
    yield from _entries("platform", _joined(old), _joined(new))


def command_differences(before: reapi.Command, after: reapi.Command) -> Iterator[Difference]:
    """What the Command messages differ in, but for their platforms."""
    yield from _arguments(before.arguments, after.arguments)
    yield from _entries("environment", _environment(before), _environment(after))
    yield from _value("working directory", before.working_directory, after.working_directory)
    yield from _sets("output", _outputs(before), _outputs(after))
    yield from _sets("output property", before.output_node_properties, after.output_node_properties)
    yield from _value("output format", _format_name(before), _format_name(after))


def encoding_difference(what: str) -> Difference:
    """For messages that say the same in other bytes: their digests differ all the same."""
    return Difference("encoding", "changed", what, "", "the same entries in another order or form")


def _timeout(action: reapi.Action) -> str:
    if not action.HasField("timeout"):
        return ""
    return f"{action.timeout.seconds + action.timeout.nanos / 1e9:g} s"


def _format_name(command: reapi.Command) -> str:
    number = command.output_directory_format
    try:
        return reapi.Command.OutputDirectoryFormat.Name(number)
    except ValueError:
        return str(number)


def _environment(command: reapi.Command) -> dict[str, str]:
    return {variable.name: variable.value for variable in command.environment_variables}


def _joined(platform: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {name: ", ".join(values) for name, values in platform.items()}


def _outputs(command: reapi.Command) -> list[str]:
    return list(command.output_paths or (*command.output_files, *command.output_directories))


def _value(part: str, before: str, after: str) -> Iterator[Difference]:
    if before != after:
        yield Difference(part, _change(before, after), "", before, after)


def _change(before: str | None, after: str | None) -> str:
    if not before:
        return "added"
    return "changed" if after else "removed"


def _entries(
    part: str, before: Mapping[str, str], after: Mapping[str, str]
) -> Iterator[Difference]:
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None:
            yield Difference(part, "added", name, "", new or "")
        elif new is None:
            yield Difference(part, "removed", name, old, "")
        elif old != new:
            yield Difference(part, "changed", name, old, new)


def _sets(part: str, before: Sequence[str], after: Sequence[str]) -> Iterator[Difference]:
    for name in sorted(set(before) ^ set(after)):
        yield Difference(part, "removed" if name in before else "added", name)


def _arguments(before: Sequence[str], after: Sequence[str]) -> Iterator[Difference]:
    start, end = _common(before, after)
    old, new = list(before[start : len(before) - end]), list(after[start : len(after) - end])
    if len(old) == len(new):
        for offset, (was, now) in enumerate(zip(old, new, strict=True)):
            if was != now:
                yield Difference("argument", "changed", str(start + offset), was, now)
    elif max(len(old), len(new)) > _MAX_COMPARED_ARGUMENTS:
        places = f"{start}…{start + len(new) - 1}"
        counts = f"{len(old)} arguments", f"{len(new)} arguments"
        yield Difference("argument", "changed", places, *counts)
    else:
        yield from _aligned(old, new, start)


def _common(before: Sequence[str], after: Sequence[str]) -> tuple[int, int]:
    """How long the beginning and the end are that both have."""
    shortest = min(len(before), len(after))
    start = next((i for i in range(shortest) if before[i] != after[i]), shortest)
    rest = shortest - start
    end = next((i for i in range(rest) if before[-1 - i] != after[-1 - i]), rest)
    return start, end


def _aligned(before: list[str], after: list[str], start: int) -> Iterator[Difference]:
    """Positions are those of the later command line; of what was removed, those it had."""
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            continue
        both = min(i2 - i1, j2 - j1)
        for k in range(both):
            place = str(start + j1 + k)
            yield Difference("argument", "changed", place, before[i1 + k], after[j1 + k])
        for i in range(i1 + both, i2):
            yield Difference("argument", "removed", str(start + i), before[i], "")
        for j in range(j1 + both, j2):
            yield Difference("argument", "added", str(start + j), "", after[j])
