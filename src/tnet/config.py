"""Conversion between plain data (YAML, JSON) and frozen dataclasses; errors name the file, the key and the remedy."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints

import jsonargparse

from tnet.errors import RecipeError, TnetError

T = TypeVar("T")


def parse_dataclass(cls: type[T], data: Mapping[Any, Any], source: str) -> T:
    """Build a dataclass with nested dataclasses from nested mappings; missing fields take their default.

    Raises:
        RecipeError: a key is unknown, or a value has the wrong type; the message starts with ``source``.
        TnetError: the dataclass rejects a value.
    """
    _check_keys(cls, data, source, "")
    parser = _parser(cls)  # type: ignore[arg-type]
    try:
        # Without the parser's defaults, which takes less than half the time: the dataclasses know their own.
        values = parser.instantiate(parser.parse_object(copy.deepcopy(dict(data)), defaults=False))
        given = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}  # type: ignore[arg-type]
        return cls(**given)
    except TnetError as error:
        raise type(error)(f"{source}: {error}") from None
    except (jsonargparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        raise RecipeError(f"{source}: {_one_sentence(str(error))}") from None


@lru_cache(maxsize=32)
def _parser(cls: type) -> jsonargparse.ArgumentParser:
    # Cached, since building a parser takes longer than parsing.
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, None)
    return parser


def _check_keys(cls: type, data: object, source: str, path: str) -> None:
    """Raise RecipeError for non-mappings and unknown keys, at every depth."""
    if not isinstance(data, Mapping):
        raise RecipeError(f"{source}: {path or 'the file'} must hold keys and values, not {type(data).__name__}")
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key, value in data.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(names)}"
            raise RecipeError(f"{source}: unknown key {where!r}; {hint}")
        if dataclasses.is_dataclass(hints[key]):
            _check_keys(hints[key], value, source, where)


def _one_sentence(message: str) -> str:
    """Condense the parser's message: ``model.base_px is abc; give a whole number``."""
    text = " ".join(message.split()).removeprefix("Parser key ")
    key, _, rest = text.partition(": ")
    rest = _describe(rest.replace("typing.", "").replace("<class ", "").replace(">", ""))[:300]
    key = key.strip('"')
    return f"{key}{' ' if rest.startswith('is ') else ': '}{rest}" if rest else key


def _describe(message: str) -> str:
    """Replace the names of Python types; messages of another form are returned as they are."""
    if match := re.fullmatch(r"Expected a Literal\[(.*)\]\. Got value: (.*)", message):
        return f"is {match[2]}; give one of {match[1]}"
    if match := re.fullmatch(r"Expected a '(\w+)'\. Got value: (.*)", message):
        names, value = [match[1]], match[2]
    elif match := re.match(r"Does not validate .* Subtypes: \[([^\]]*)\] Errors: .* Given value: (.*)", message):
        names, value = re.findall(r"\w+", match[1]), match[2]
    else:
        return message
    return f"is {value}; give {' or '.join(_TYPES.get(name, name) for name in names)}"


_TYPES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null",
    "tuple": "a list, such as [1] or [a, b]", "dict": "keys and values",
}  # fmt: skip


def to_plain(value: Any) -> Any:
    """Convert a dataclass to nested dicts and lists for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value
