"""A suite: which systems to compare, and how, read from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tnet.config import check_least, parse_dataclass
from tnet.data.config import DataConfig
from tnet.errors import ConfigError, RecipeError
from tnet.evaluation.evaluator import LEARNED
from tnet.evaluation.resources import CostsConfig
from tnet.training.recipe import apply_overrides, read_text, read_yaml


@dataclass(frozen=True)
class RowConfig:
    """One system.

    Exactly one of ``recipe``, ``model`` and ``registered`` must be given.

    Attributes:
        name: unique name, shown in tables.
        recipe: recipe to train, relative to the suite's folder.
        overrides: ``key.in.recipe=value`` overrides, applied after those of the suite.
        model: folder of a saved model or of a run, relative to the suite's folder.
        registered: name of a registered model; it is untrained, so only its cost is measured.
        after: name of an earlier row with a recipe; training starts from its model of the same seed.
        looks: numbers of looks, each a number or one number per level, as ``[2, 1]``; empty for the model's own.
        policies: policies to measure for each number of looks: ``learned``, the controls ``random`` and ``centre``, or
            another policy of the model; empty for the suite's.
        measure: ``false`` to only train it, as a starting point for other rows.
    """

    name: str = ""
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    model: str | None = None
    registered: str | None = None
    after: str | None = None
    looks: tuple[int | tuple[int, ...], ...] = ()
    policies: tuple[str, ...] = ()
    measure: bool = True

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ConfigError("name is empty; give the row one")
        given = [key for key in ("recipe", "model", "registered") if getattr(self, key) is not None]
        if len(given) != 1:
            problem = f"{' and '.join(given) or 'none of recipe, model, registered'} given"
            raise ConfigError(f"{problem}; give exactly one of them")
        for key in ("after", "overrides"):
            if getattr(self, key) and self.recipe is None:
                raise ConfigError(f"{key} applies to rows with a recipe only; remove it")
        if not self.measure and self.recipe is None:
            raise ConfigError("measure is false but there is no recipe to train; remove the row")


@dataclass(frozen=True)
class Suite:
    """A comparison.

    Attributes:
        title: title of the page.
        seeds: each row with a recipe is trained once per seed.
        data: images of all rows; ``null`` for the data sections of the recipes.
        split: split to evaluate on.
        overrides: ``key.in.recipe=value`` overrides of all recipes.
        policies: policies of rows that do not name their own.
        batch_size: evaluation batch size.
        workers: processes that read images in evaluation.
        bootstrap: number of bootstrap resamples.
        costs: how time and memory are measured.
        rows: the systems.
    """

    title: str = "Comparison"
    seeds: tuple[int, ...] = (0,)
    data: DataConfig | None = None
    split: Literal["val", "test"] = "val"
    overrides: tuple[str, ...] = ()
    policies: tuple[str, ...] = (LEARNED,)
    batch_size: int = 16
    workers: int = 0
    bootstrap: int = 2000
    costs: CostsConfig = field(default_factory=CostsConfig)
    rows: tuple[RowConfig, ...] = ()

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds is {list(self.seeds)}; give at least one, each once and 0 or more")
        if not self.policies:
            raise ConfigError(f"policies is empty; give at least one, such as {LEARNED}")
        check_least(self, "", {"batch_size": 1, "workers": 0, "bootstrap": 100})

    def policies_of(self, row: RowConfig) -> tuple[str, ...]:
        """Return the policies to measure a row with; time and memory are measured for the first."""
        return row.policies or self.policies


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite from a YAML file, apply ``key.in.suite=value`` overrides, and make its paths absolute.

    Raises:
        RecipeError: the file is unreadable or not YAML, a key is unknown, or a value has the wrong type.
        ConfigError: a value is invalid, or rows contradict each other.
    """
    path = Path(path)
    data = read_yaml(read_text(path, "suite"), str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path} is a {type(data).__name__}; a suite must be a mapping of keys to values")
    data = apply_overrides(data, overrides)
    rows, images = data.pop("rows", None), data.pop("data", None)
    if not isinstance(rows, list) or not rows:
        raise RecipeError(f"{path}: rows is {rows!r:.50}; give a list of rows, each with a name and a recipe")
    parsed = tuple(_row(row, index, path) for index, row in enumerate(rows, start=1))
    _check_rows(parsed, str(path))
    suite = parse_dataclass(Suite, data, str(path))
    config = None if images is None else parse_dataclass(DataConfig, images, f"{path}: data")
    return replace(suite, rows=parsed, data=config)


def _row(row: Any, index: int, path: Path) -> RowConfig:
    source = f"{path}: row {index}"
    if not isinstance(row, dict):
        raise RecipeError(f"{source} is a {type(row).__name__}; a row must be a mapping of keys to values")
    source += f" ({row['name']})" if row.get("name") else ""
    config = parse_dataclass(RowConfig, row, source)
    paths: dict[str, Any] = {}
    for key, exists in (("recipe", Path.is_file), ("model", Path.is_dir)):
        if (value := getattr(config, key)) is not None:
            place = path.resolve().parent / value
            if not exists(place):
                raise RecipeError(f"{source}: {key} {place} does not exist; give a path relative to the suite's folder")
            paths[key] = str(place)
    return replace(config, **paths)


def _check_rows(rows: Sequence[RowConfig], source: str) -> None:
    earlier: dict[str, RowConfig] = {}
    for row in rows:
        if row.name in earlier:
            raise ConfigError(f"{source}: two rows have the name {row.name!r}; rename one")
        if row.after is not None and (row.after not in earlier or earlier[row.after].recipe is None):
            problem = f"{source}: row {row.name!r}: after is {row.after!r}, which is not an earlier row with a recipe"
            raise ConfigError(f"{problem}; give the name of one{': ' + ', '.join(earlier) if earlier else ''}")
        earlier[row.name] = row
