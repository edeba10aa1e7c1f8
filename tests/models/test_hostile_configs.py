"""Numbers that cannot be, in every place of the ``config.json`` of every kind of model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import EVERY_KIND

from tnet.errors import CheckpointError
from tnet.models.io import load_model, read_config, save_model
from tnet.models.kind import build_model

ABSURD = [10**9, 10**18, math.nan, math.inf, 1e308]
SMALL = [-1, 0]


def places(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of all numbers in the data, of those of a list the first."""
    if isinstance(data, dict | list):
        pairs = data.items() if isinstance(data, dict) else list(enumerate(data))[:1]
        for key, value in pairs:
            yield from places(value, (*path, key))
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield path


def changed(folder: Path, path: tuple[str | int, ...], value: float) -> str:
    """Write the configuration with a value at a place, and return the name of its key."""
    data = inside = json.loads((folder / "original.json").read_text())
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(data))
    return next(key for key in reversed(path) if isinstance(key, str))


def answer_of(folder: Path, allowed: str) -> str:
    """The message of the refusal to load a model, or ``allowed``."""
    try:
        load_model(folder)
    except CheckpointError as error:
        return str(error)
    return allowed


@pytest.fixture
def saved(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = save_model(build_model(EVERY_KIND[request.param]), tmp_path / "model")
    return (folder / "config.json").rename(folder / "original.json").parent


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("saved", EVERY_KIND, indirect=True)
def test_absurd_numbers_are_refused_by_key(saved: Path) -> None:
    found = list(places(json.loads((saved / "original.json").read_text())))
    assert len(found) >= 12
    for path in found:
        for value in ABSURD:
            key = changed(saved, path, value)
            with pytest.raises(CheckpointError, match=f"config.json.*{key}.*give") as refusal:
                read_config(saved)  # before a model is built
            assert len(str(refusal.value)) < 400 and "\n" not in str(refusal.value), (path, value)
        for value in SMALL:  # which some keys allow
            key = changed(saved, path, value)
            reasons = (key, "correct backbone.kwargs", "weights of another model")
            answer = answer_of(saved, allowed=key)
            assert any(reason in answer for reason in reasons) and "\n" not in answer, (path, value)
