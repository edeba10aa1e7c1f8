"""Conversion between plain data (YAML, JSON) and frozen dataclasses; errors name the file, the key and the remedy."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, get_args, get_type_hints

import jsonargparse

from tnet.errors import ConfigError, RecipeError, TnetError

T = TypeVar("T")
_MAX_NUMBER = 2**63  # of any value, whatever the key
_MAX_DEPTH = 32
_MAX_CHARACTERS = 4096  # of a text
_MAX_ITEMS = 100_000  # of a list, which may be the names of classes
_MAX_NUMBERS = 1024  # in a list of sizes


def parse_dataclass(cls: type[T], data: Mapping[Any, Any], source: str, *, max_characters: int = _MAX_CHARACTERS) -> T:
    """Build a dataclass with nested dataclasses from nested mappings; missing fields take their default.

    A text may have ``max_characters``.

    Raises:
        RecipeError: a key is unknown, or a value has the wrong type; the message starts with ``source``.
        TnetError: the dataclass rejects a value.
    """
    _check_keys(cls, data, source, "")
    _check_values(data, source, "", max_characters)
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
            close = difflib.get_close_matches(str(key)[:80], names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(names)}"
            raise RecipeError(f"{source}: unknown key {where[:80]!r}; {hint}")
        if dataclasses.is_dataclass(hints[key]):
            _check_keys(hints[key], value, source, where)
        elif value is None and hints[key] is not Any and type(None) not in get_args(hints[key]):
            raise RecipeError(f"{source}: {where} is null; give a value, or leave the key out")


def _check_values(value: object, source: str, path: str, max_characters: int, depth: int = 0) -> None:
    """Raise RecipeError for absurd numbers and depths, which libraries do not expect."""
    if depth > _MAX_DEPTH:
        raise RecipeError(f"{source}: {path[:80]} is nested too deeply; give at most {_MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        if len(value) > _MAX_NUMBERS:
            raise RecipeError(f"{source}: {path} has {len(value):,} keys; give at most {_MAX_NUMBERS:,}")
        for key, item in value.items():
            _check_values(item, source, f"{path}.{key}" if path else str(key), max_characters, depth + 1)
    elif isinstance(value, list | tuple):
        if len(value) > _MAX_ITEMS:
            raise RecipeError(f"{source}: {path} has {len(value):,} values; give at most {_MAX_ITEMS:,}")
        for item in value:
            _check_values(item, source, path, max_characters, depth + 1)
    elif isinstance(value, int | float) and not -_MAX_NUMBER <= value <= _MAX_NUMBER:
        raise RecipeError(f"{source}: {path} is {str(value)[:40]}; give a finite number of at most 2^63")
    elif isinstance(value, str) and len(value) > max_characters:
        raise RecipeError(f"{source}: {path} has {len(value):,} characters; give at most {max_characters:,}")


def check_most(config: Any, section: str, limits: Mapping[str, float]) -> None:
    """Raise ConfigError unless numbers, alone or in a tuple, lie within ``-limit`` to ``limit``, by field name."""
    for name, most in limits.items():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, int | float) and not -most <= number <= most for number in numbers):
            limit = f"{most:,}" if isinstance(most, int) else f"{most:g}"
            raise ConfigError(f"{section}{name} is {shown(value)}; give at most {limit}")
        if len(numbers) > _MAX_NUMBERS and not isinstance(numbers[0], str):
            raise ConfigError(f"{section}{name} has {len(numbers):,} values; give at most {_MAX_NUMBERS:,}")


def check_least(config: Any, section: str, limits: Mapping[str, float]) -> None:
    """Raise ConfigError for a number below its limit, by field name; ``None`` passes."""
    for name, least in limits.items():
        if (value := getattr(config, name)) is not None and value < least:
            raise ConfigError(f"{section}{name} is {value}; give at least {least}")


def shown(value: object) -> str:
    """Return a value as a message shows it: lists in brackets, long values cut."""
    text = str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 40 else f"{text[:40]}..."


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
