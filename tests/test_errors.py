"""Error messages have one form: a sentence in lower case, without a full stop, that ends with a limit or remedy."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tnet
from tnet import errors

SRC = Path(tnet.__file__).parent
ERRORS = {name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, errors.TnetError)}

PACKAGES = sorted({path.relative_to(SRC).parts[0].removesuffix(".py") for path in SRC.rglob("*.py")})


def sentence_of(node: ast.expr) -> str | None:
    """The text of a message with {} for each placeholder; None if it is not written where the error is raised."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = sentence_of(node.left), sentence_of(node.right)
        return None if left is None and right is None else f"{left or '{}'}{right or '{}'}"
    return None


def messages(package: str) -> Iterator[tuple[str, str]]:
    """Place and text of each message in a package or module."""
    root = SRC / package
    for path in sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                sentence = sentence_of(node.args[0]) if name in ERRORS else None
                if sentence is not None:
                    yield f"{path.relative_to(SRC)}:{node.lineno}", sentence


def fault_of(sentence: str) -> str | None:
    """What is wrong with a message."""
    first = sentence.split(maxsplit=1)[0]
    if first[0].isupper() and first[1:].islower():
        return "starts with a capital"
    if sentence.endswith((".", "!")) or re.search(r"\. [A-Z]", sentence):
        return "is not one sentence without a full stop"
    if ";" not in sentence and " must " not in sentence and not sentence.endswith("{}"):
        return "has no remedy after a semicolon"
    return None


@pytest.mark.parametrize("package", PACKAGES)
def test_messages_have_one_form(package: str) -> None:
    faults = [f"{place} {fault}: {sentence}" for place, sentence in messages(package) if (fault := fault_of(sentence))]
    assert not faults, "\n".join(faults)


def test_errors_are_importable_from_tnet() -> None:
    for name in ERRORS:
        assert getattr(tnet, name) is getattr(errors, name)


@pytest.mark.parametrize(
    ("sentence", "is_good"),
    [
        ("max_side_px is {}; give at least 1", True),
        ("{} is damaged; copy it again", True),
        ("IPS needs 1 level; remove levels", True),
        ("Cannot read; try again", False),
        ("{} is damaged; copy it again.", False),
        ("{} is damaged", False),
    ],
)
def test_the_check_itself(sentence: str, is_good: bool) -> None:
    assert (fault_of(sentence) is None) == is_good
