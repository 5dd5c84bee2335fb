"""TOML tables to frozen structs, with a sentence for each thing wrong.

msgspec checks one value at a time; this goes through a table key by key, so that all problems are
told at once and each names its table, its key and the nearest spelling.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from stoker.resources import parse_bytes
from stoker.spi import Settings

StructT = TypeVar("StructT", bound=Settings)


def convert_table(
    table: str, raw: object, struct: type[StructT], problems: list[str]
) -> StructT | None:
    """`raw` as a `struct`; or None, after adding what is wrong with it to `problems`."""
    if not isinstance(raw, Mapping):
        problems.append(f"[{table}] must be a table, not {toml_type(raw)}")
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
    if (item := _item_settings(kind)) is not None:
        return _convert_array(f"{table}.{key}", raw, item, problems)
    if isinstance(raw, float) and not math.isfinite(raw):
        problems.append(f"[{table}] {key}: expected a finite number, got {raw!r}")
        return None
    if isinstance(raw, str) and _note(kind, "text") == "bytes":
        try:
            raw = parse_bytes(raw)
        except ValueError:
            problems.append(
                f"[{table}] {key}: expected a number of bytes, or a text such as '16GiB', "
                f"got {raw!r}"
            )
            return None
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        where = place.rstrip("`")
        problems.append(f"[{table}] {key}{where}: {_in_toml_words(reason)}, got {raw!r}")
        return None


def _item_settings(kind: Any) -> type[Settings] | None:
    """What an array of tables consists of, if `kind` is one."""
    if get_origin(kind) is not tuple:
        return None
    item = get_args(kind)[0]
    return item if isinstance(item, type) and issubclass(item, Settings) else None


def _convert_array(
    table: str, raw: object, item: type[Settings], problems: list[str]
) -> tuple[Settings | None, ...] | None:
    if not isinstance(raw, list | tuple):
        problems.append(f"[{table}] must be an array of tables, as [[{table}]]")
        return None
    return tuple(
        convert_table(f"{table}[{position}]", entry, item, problems)
        for position, entry in enumerate(raw)
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause that names what `word` may have been meant to be, or all that there is."""
    known = list(known)
    if close := difflib.get_close_matches(word, known, n=1, cutoff=0.6):
        return f": did you mean {close[0]!r}?"
    if not known:
        return ": there are none"
    return f": there are {', '.join(repr(name) for name in sorted(known))}"


def references(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """The tables that `settings` names: its key, the sort of table, and the name given there.

    Keys of tables inside of it come with where those are, as in ``rules[0].protocol``.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    for key, hint in hints.items():
        value = getattr(settings, key)
        if inner := [*_settings_in(key, value)]:
            for place, below in inner:
                for inner_key, sort, name in references(below):
                    yield f"{place}.{inner_key}", sort, name
            continue
        named = _note(hint, "refers_to")
        if named is None or value is None:
            continue
        for name in (value,) if isinstance(value, str) else value:
            yield key, named, name


def _settings_in(key: str, value: object) -> Iterator[tuple[str, Settings]]:
    """The tables that a value is, or consists of, each with where it is."""
    if isinstance(value, Settings):
        yield key, value
    elif isinstance(value, tuple):
        for position, item in enumerate(value):
            if isinstance(item, Settings):
                yield f"{key}[{position}]", item


def _note(hint: Any, name: str) -> str | None:
    """What a type says about itself under `name`, or an item of it: of a tuple, list or union."""
    if get_origin(hint) is Annotated:
        for note in hint.__metadata__:
            if isinstance(note, msgspec.Meta) and note.extra and name in note.extra:
                return str(note.extra[name])
        return _note(get_args(hint)[0], name)
    found = (_note(part, name) for part in get_args(hint) if part is not Ellipsis)
    return next((text for text in found if text), None)


def _expected(kind: Any) -> str:
    try:
        msgspec.convert(None, kind)
    except msgspec.ValidationError as error:
        return _in_toml_words(str(error))
    return "optional"


_TOML_WORDS = {
    "`object`": "a table",
    "`array`": "an array",
    "`str`": "a string",
    "`int`": "an integer",
    "`float`": "a number",
    "`bool`": "true or false",
}


def _in_toml_words(text: str) -> str:
    """What msgspec says, in the words of those who write TOML."""
    text = text.partition(", got `")[0].replace(" | null", "")
    for word, toml in _TOML_WORDS.items():
        text = text.replace(word, toml)
    return text[:1].lower() + text[1:]


def toml_type(value: object) -> str:
    """What TOML calls the type of `value`."""
    names = {
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a float",
        list: "an array",
    }
    return names.get(type(value), "a date" if hasattr(value, "isoformat") else "a table")


def quoted(name: str) -> str:
    """`name` as a TOML key."""
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isascii() and bare.isalnum() else json.dumps(name, ensure_ascii=False)
