"""The text around a JobConfig: the YAML file, ``key=value`` overrides, and what is wrong in plain words."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError

__all__ = ["apply_override", "explain", "gather", "read_yaml"]

_UNKNOWN = "no such setting"
_PLAIN = {"extra_forbidden": _UNKNOWN, "unexpected_keyword_argument": _UNKNOWN, "missing": "not given"}
_MISSING = {
    "corpus": "corpus.uri=<folder, file or glob of videos>",
    "output": "output.uri=<folder for the index>",
    "model": "model.name=<checkpoint folder or hub id>",
}
_STANDARD_INPUT = "-"
_EXAMPLE = "write section.key=value, e.g. frames.baseline=16"


class _NoDuplicates(yaml.SafeLoader):
    """Refuses a key given twice in one mapping; plain YAML readers drop the first silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen and key is not None:
                place = key_node.start_mark
                raise yaml.YAMLError(
                    f"{key!r} is given twice, again in line {place.line + 1}; keep one of them"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a configuration file, "-" for standard input; raises UserError where there is none."""
    name = _named(path)
    try:
        raw = yaml.load(_bytes_of(path).decode("utf-8"), Loader=_NoDuplicates)
    except FileNotFoundError:
        raise UserError(f"no configuration file {name!r}; see configs/ for examples") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"cannot read configuration {name!r}: {error}") from None
    if not isinstance(raw, dict):
        kind = "an empty file" if raw is None else type(raw).__name__
        raise UserError(f"configuration {name!r} must be a mapping of sections, got {kind}; see configs/")
    return raw


def _bytes_of(path: str | Path) -> bytes:
    if str(path) != _STANDARD_INPUT:
        return Path(path).read_bytes()
    if sys.stdin is None:  # started with it closed
        raise UserError("the configuration is to come from standard input, which is closed")
    return sys.stdin.buffer.read()


def _named(path: str | Path) -> str:
    return "(standard input)" if str(path) == _STANDARD_INPUT else str(path)


def gather(
    path: str | Path | None,
    overrides: Sequence[str],
    values: Mapping[str, object],
    *,
    profiled: Collection[str],
) -> dict[str, Any]:
    """The settings of a file, of ``key=value`` texts above them, and of ``values`` by dotted key above both.

    profiled: the fields of ``compression`` that a profile sets; a profile among the overrides replaces the
    file's. Raises UserError for a file or an override that cannot be understood.
    """
    raw = read_yaml(path) if path is not None else {}
    below = raw.get("compression")
    if isinstance(below, Mapping) and any(text.startswith("compression.profile=") for text in overrides):
        raw["compression"] = {name: item for name, item in below.items() if name not in profiled}
    for override in overrides:
        apply_override(raw, override)
    for key, value in values.items():
        _set(raw, key, value, described=f"{key}={value!r}")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key in place. The value is YAML where it looks like it, else text, taken as it stands.

    So ``*.mp4``, ``What is this: a dog?`` and ``item #1`` need no quotes. Raises UserError for a malformed
    override, and for one that goes below a value that is not a section.
    """
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"override {override!r} is not understood; {_EXAMPLE}")
    _set(raw, key, _value(override, text), described=f"override {override!r}")


def _set(raw: dict[str, Any], key: str, value: object, *, described: str) -> None:
    *sections, last = key.split(".")
    place = raw
    for number, section in enumerate(sections, start=1):
        below = place.get(section)
        if below is not None and not isinstance(below, Mapping):
            above = ".".join(sections[:number])
            raise UserError(f"{described}: {above} is the value {below!r}, not a section; {_EXAMPLE}")
        place[section] = place = dict(below or {})
    place[last] = value


def _value(override: str, text: str) -> Any:
    structured = text.lstrip().startswith(("[", "{", '"', "'"))
    try:
        value = yaml.load(text, Loader=_NoDuplicates) if text.strip() else ""
    except yaml.YAMLError as error:
        if structured:
            why = " ".join(str(error).split())
            raise UserError(f"override {override!r}: the value is not valid YAML ({why})") from None
        return text.strip()
    # Unquoted prose is prose: YAML would cut it at " #", make a mapping of "a: b" and a date of 2026-01-01.
    return value if structured or value is None or isinstance(value, bool | int | float) else text.strip()


def explain(
    errors: Sequence[Mapping[str, Any]],
    raw: Mapping[str, Any],
    sections: Mapping[str, Sequence[str]],
    *,
    path: str | Path | None,
    given: Collection[str],
) -> str:
    """Validation errors as lines that name the key, the value, the rule and the way out.

    errors: as pydantic lists them (loc, type, msg, input) of ``raw``. sections: the known keys of every
    section, and of sections within sections by their dotted name. given: dotted keys set above the file.
    """
    texts: dict[str, dict[str, list[str]]] = {}
    leaves = list(_leaves(raw))
    for item in errors:
        location = _location(item["loc"], raw)
        where = ".".join(location)
        # The alternatives of one value (text or number) come together.
        places = texts.setdefault(_source(where, leaves, path, given), {})
        places.setdefault(where or "(whole)", []).append(_text(item, location, sections))
    return "\n".join(
        "\n".join([f"{source} is not valid:", *(f"  {key}: {_joined(why)}" for key, why in places.items())])
        for source, places in texts.items()
    )


def _joined(texts: Sequence[str]) -> str:
    return " or ".join(dict.fromkeys(texts))


def _source(where: str, leaves: Sequence[str], path: str | Path | None, given: Collection[str]) -> str:
    """Where a wrong value came from, as far as it can be told."""
    if path is None:
        return "configuration"
    below = [leaf for leaf in leaves if _is_within(leaf, where)] or [where]
    are_given = [any(_is_within(leaf, key) for key in given) for leaf in below]
    if all(are_given):
        return "what the command line says"
    return f"configuration {_named(path)}{', with what the command line says,' if any(are_given) else ''}"


def _is_within(key: str, above: str) -> bool:
    return f"{key}.".startswith(f"{above}.")


def _leaves(place: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, item in place.items():
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _location(parts: Sequence[Any], raw: Any) -> list[str]:
    """Keys and numbers down to the value; what pydantic adds for the alternatives of one is left out."""
    location, place = [], raw
    for part in parts:
        if isinstance(place, Mapping):
            place = place.get(part, {})
        elif isinstance(place, list | tuple) and isinstance(part, int):
            place = place[part]
        else:
            break
        location.append(str(part))
    return location


def _text(item: Mapping[str, Any], location: list[str], sections: Mapping[str, Sequence[str]]) -> str:
    kind = str(item["type"])
    if kind == "missing":
        return f"{_PLAIN[kind]}{_way_out(location)}"
    if kind in _PLAIN:
        return f"{_PLAIN[kind]}; {_nearest(location, sections)}"
    message = str(item["msg"]).removeprefix("Value error, ")
    # Our own errors name the value already.
    return message if kind == "value_error" else f"{message}, got {_short(item.get('input'))}{_quote(item)}"


def _way_out(location: list[str]) -> str:
    return f"; add {_MISSING[location[0]]}" if location[0] in _MISSING else ""


def _quote(item: Mapping[str, Any]) -> str:
    is_scalar = item["type"] == "string_type" and not isinstance(
        item.get("input"), Mapping | list | tuple | None
    )
    return "; put it in quotes to mean text" if is_scalar else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest(location: list[str], sections: Mapping[str, Sequence[str]]) -> str:
    section, last = ".".join(location[:-1]), location[-1]
    known = sections.get(section, ()) if section else [name for name in sections if "." not in name]
    close = difflib.get_close_matches(last, known, n=1, cutoff=0.5)
    homes = [name for name, keys in sections.items() if last in keys]
    if not section and len(homes) == 1:
        return f"did you mean {homes[0]}.{last}?"
    if close:
        return f"did you mean {f'{section}.{close[0]}' if section else close[0]}?"
    return f"{section} has {', '.join(known)}" if section else f"sections are {', '.join(known)}"
