"""TOML tables to frozen structs, with a sentence for each thing wrong.

msgspec checks one value at a time; this goes through a table key by key, so that all problems are
told at once and each names its table, its key and the nearest spelling.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from stoker.spi import Settings

StructT = TypeVar("StructT", bound=Settings)


def convert_table(
    table: str, raw: object, struct: type[StructT], problems: list[str]
) -> StructT | None:
    """`raw` as a `struct`; or None, after adding what is wrong with it to `problems`."""
    if not isinstance(raw, Mapping):
        problems.append(f"[{table}] must be a table, not {_toml_type(raw)}")
        return None
    before = len(problems)
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    for key in raw:
        if key not in fields:
            problems.append(f"[{table}] has no key {key!r}{nearest(key, fields)}")
    values = {}
    for key, field in fields.items():
        if key in raw:
            values[field.name] = _convert_value(table, key, raw[key], field.type, problems)
        elif field.required:
            problems.append(f"[{table}] needs the key {key!r} ({_expected(field.type)})")
    return struct(**values) if len(problems) == before else None


def _convert_value(table: str, key: str, raw: object, kind: Any, problems: list[str]) -> object:
    if isinstance(kind, type) and issubclass(kind, Settings):
        return convert_table(f"{table}.{key}", raw, kind, problems)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        where = place.rstrip("`")
        problems.append(f"[{table}] {key}{where}: {_lower_first(reason)}, got {raw!r}")
        return None


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause that names what `word` may have been meant to be, or all that there is."""
    known = list(known)
    if close := difflib.get_close_matches(word, known, n=1, cutoff=0.6):
        return f": did you mean {close[0]!r}?"
    if not known:
        return ": there are none"
    return f": there are {', '.join(repr(name) for name in sorted(known))}"


def references(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """The tables that `settings` names: its key, the sort of table, and the name given there."""
    hints = get_type_hints(type(settings), include_extras=True)
    for key, hint in hints.items():
        sort = _refers_to(hint)
        value = getattr(settings, key)
        if sort is None or value is None:
            continue
        for name in (value,) if isinstance(value, str) else value:
            yield key, sort, name


def _refers_to(hint: Any) -> str | None:
    """The sort of table that a type names: itself, or as an item of a tuple, list or union."""
    if get_origin(hint) is Annotated:
        for note in hint.__metadata__:
            if isinstance(note, msgspec.Meta) and note.extra and "refers_to" in note.extra:
                return str(note.extra["refers_to"])
        return _refers_to(get_args(hint)[0])
    found = (_refers_to(part) for part in get_args(hint) if part is not Ellipsis)
    return next((sort for sort in found if sort), None)


def _expected(kind: Any) -> str:
    try:
        msgspec.convert(None, kind)
    except msgspec.ValidationError as error:
        return _lower_first(str(error).partition(", got")[0])
    return "optional"


def _lower_first(text: str) -> str:
    text = text.partition(", got `")[0]
    return text[:1].lower() + text[1:]


def _toml_type(value: object) -> str:
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a float"}
    return names.get(type(value), "an array")
