"""From plain data (YAML, JSON) to frozen dataclasses and back, with errors that name file, key and remedy."""

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
    """Build a dataclass, and those inside it, from nested mappings.

    Args:
        cls: a dataclass.
        data: its values; what is left out takes its default.
        source: where the data came from, for error messages.

    Raises:
        RecipeError: an unknown key, or a value of the wrong type.
        TnetError: a value that the dataclass itself refuses.
    """
    _check_keys(cls, data, source, "")
    parser = _parser(cls)  # type: ignore[arg-type]
    try:
        values = parser.instantiate(parser.parse_object(copy.deepcopy(dict(data))))
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})  # type: ignore[arg-type]
    except TnetError as error:
        raise type(error)(f"{source}: {error}") from None
    except (jsonargparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        raise RecipeError(f"{source}: {_one_sentence(str(error))}") from None


@lru_cache(maxsize=32)
def _parser(cls: type) -> jsonargparse.ArgumentParser:
    """Building a parser takes longer than parsing."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, None)
    return parser


def _check_keys(cls: type, data: object, source: str, path: str) -> None:
    """Refuse what is not a mapping and keys that are not fields, at every depth."""
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
    """The parser's message on one line: ``model.base_px: expected an int, got 'abc'``."""
    text = " ".join(message.split()).removeprefix("Parser key ")
    key, _, rest = text.partition(": ")
    rest = rest.replace("typing.", "").replace("<class ", "").replace(">", "")
    rest, key = _in_words(rest)[:300], key.strip('"')
    return f"{key}{' ' if rest.startswith('is ') else ': '}{rest}" if rest else key


def _in_words(message: str) -> str:
    """What a value must be, without the names of Python's types; a message of another form as it is."""
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
    """A dataclass as nested dicts and lists, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value
