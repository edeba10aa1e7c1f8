from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tnet.errors import ConfigError, RecipeError
from tnet.evaluation.comparison.suite import load_suite


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text("title: a\n")
    return tmp_path


def write(folder: Path, content: object) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


ROW = {"name": "A", "recipe": "a.yaml"}


def test_everything_can_be_said(folder: Path) -> None:
    (folder / "saved").mkdir()
    path = write(folder, {
        "title": "Mine", "seeds": [1, 2], "split": "test", "data": {"kind": "digits", "digits": {"canvas_px": 256}},
        "overrides": ["train.epochs=3"], "policies": ["learned", "random"],
        "costs": {"batch_sizes": [2], "image_size_hw": [64, 96], "devices": ["cpu"]},
        "rows": [
            {**ROW, "looks": [0, 3, [2, 1]], "overrides": ["seed=4"], "measure": False},
            {**ROW, "name": "B", "after": "A", "policies": ["topk"]},
            {"name": "C", "model": "saved"},
            {"name": "D", "registered": "tnet_resnet18.own"},
        ],
    })  # fmt: skip
    suite = load_suite(path, ["costs.repeats=9", "bootstrap=500"])
    assert (suite.title, suite.seeds, suite.split, suite.bootstrap) == ("Mine", (1, 2), "test", 500)
    assert suite.data is not None and suite.data.digits.canvas_px == 256
    assert (suite.costs.repeats, suite.costs.batch_sizes, suite.costs.image_size_hw) == (9, (2,), (64, 96))
    a, b, c, d = suite.rows
    assert a.looks == (0, 3, (2, 1)) and a.recipe == str(folder.resolve() / "a.yaml") and not a.measure
    assert (b.after, c.model, d.registered) == ("A", str(folder.resolve() / "saved"), "tnet_resnet18.own")
    assert suite.policies_of(a) == ("learned", "random") and suite.policies_of(b) == ("topk",)


@pytest.mark.parametrize(("content", "message"), [
    ([1], "list; a suite must be a mapping"),
    ({"title": "x"}, "rows is"),
    ({"rows": []}, "rows is"),
    ({"rows": [3]}, "row 1 is a int"),
    ({"rows": [ROW], "seed": 3}, "unknown key 'seed'; did you mean 'seeds'"),
    ({"rows": [ROW], "seeds": []}, "seeds is .*; give at least one"),
    ({"rows": [ROW], "seeds": [1, 1]}, "each once"),
    ({"rows": [ROW], "data": {"knd": "digits"}}, "data: unknown key 'knd'; did you mean 'kind'"),
    ({"rows": [ROW], "costs": {"repeats": 0}}, "costs.repeats is 0; give at least 1"),
    ({"rows": [ROW], "costs": {"batch_sizes": ["x"]}}, "costs.batch_sizes"),
    ({"rows": [{**ROW, "recipy": 1}]}, r"row 1 \(A\): unknown key 'recipy'; did you mean 'recipe'"),
    ({"rows": [{**ROW, "looks": ["some"]}]}, r"row 1 \(A\): looks"),
    ({"rows": [{"recipe": "a.yaml"}]}, "row 1: name is empty"),
    ({"rows": [{"name": "A"}]}, "none of recipe, model, registered given"),
    ({"rows": [{**ROW, "registered": "x"}]}, "recipe and registered given; "),
    ({"rows": [{"name": "A", "recipe": "b.yaml"}]}, r"row 1 \(A\): recipe .*b.yaml does not exist"),
    ({"rows": [{"name": "A", "model": "a.yaml"}]}, r"row 1 \(A\): model .*a.yaml does not exist"),
    ({"rows": [{"name": "A", "registered": "x", "overrides": ["a=1"]}]}, "overrides"),
    ({"rows": [{"name": "A", "registered": "x", "measure": False}]}, "measure is false"),
    ({"rows": [ROW, ROW]}, "two rows have the name 'A'"),
    ({"rows": [{**ROW, "after": "B"}, {**ROW, "name": "B"}]}, "row 'A': after is 'B', "),
    ({"rows": [{"name": "A", "registered": "x"}, {**ROW, "name": "B", "after": "A"}]}, "after is 'A'"),
])  # fmt: skip
def test_what_is_wrong_is_said_with_row_and_key(folder: Path, content: Any, message: str) -> None:
    path = write(folder, content)
    with pytest.raises((RecipeError, ConfigError), match=message) as caught:
        load_suite(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_suite(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.yaml cannot be read \(No such file"):
        load_suite(folder / "none.yaml")
    (folder / "b.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        load_suite(folder / "b.yaml")
    (folder / "c.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="invalid YAML"):
        load_suite(folder / "c.yaml")
    (folder / "d.yaml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(RecipeError, match="larger than"):
        load_suite(folder / "d.yaml")
