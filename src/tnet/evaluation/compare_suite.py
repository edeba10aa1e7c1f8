"""A suite: the systems that are compared, and how, as frozen data read from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tnet.config import parse_dataclass
from tnet.data.config import DataConfig
from tnet.errors import ConfigError, RecipeError
from tnet.training.recipe import apply_overrides, read_text, read_yaml

LEARNED = "learned"
"""The policy by which a model looks of its own accord, as its configuration says for evaluation."""


@dataclass(frozen=True)
class CostsConfig:
    """How time and memory are measured, on made images of one size.

    Attributes:
        devices: to measure on; those that this machine does not have are left out, and said to be.
        batch_sizes: images a batch, for time; empty measures no time.
        repeats: passes that are timed.
        warmup: passes before them.
        memory_batch_size: images a batch, for memory; 0 measures no memory.
        image_size_hw: height and width, pixels; ``null`` for those of the first image that is evaluated on.
        controls: measure time and memory of every policy, not of a row's first alone.
    """

    devices: tuple[str, ...] = ("cpu", "cuda")
    batch_sizes: tuple[int, ...] = (1, 16)
    repeats: int = 5
    warmup: int = 2
    memory_batch_size: int = 1
    image_size_hw: tuple[int, int] | None = None
    controls: bool = False

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("warmup", 1), ("memory_batch_size", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"costs.{name} is {getattr(self, name)}; give at least {least}")
        if any(size < 1 for size in self.batch_sizes):
            raise ConfigError(f"costs.batch_sizes is {list(self.batch_sizes)}; give numbers of at least 1")
        if self.image_size_hw is not None and min(self.image_size_hw) < 1:
            raise ConfigError(f"costs.image_size_hw is {list(self.image_size_hw)}; give height and width in pixels")


@dataclass(frozen=True)
class RowConfig:
    """One system.

    Just one of ``recipe``, ``model`` and ``registered`` says where it comes from.

    Attributes:
        name: in tables; no two rows have the same.
        recipe: file to train it by, relative to the suite's folder.
        overrides: ``key.in.recipe=value`` each, over the recipe and over the suite's own overrides.
        model: folder of a saved model or of a run, relative to the suite's folder.
        registered: name of a registered model: untrained, so only what it costs is measured.
        after: name of an earlier row with a recipe, from whose trained model (of the same seed) this one goes on.
        looks: numbers of looks, each a number or one number a level, as ``[2, 1]``; empty for the model's own.
        policies: how locations are chosen, for each number of looks: ``learned``, the controls ``random`` and
            ``centre``, or another that the model knows; empty for the suite's.
        measure: ``false`` only trains it, for others to go on from.
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
            raise ConfigError(
                f"{' and '.join(given) or 'none of recipe, model, registered'} given; give just one of recipe, model "
                "and registered"
            )
        for key in ("after", "overrides"):
            if getattr(self, key) and self.recipe is None:
                raise ConfigError(f"{key} is for rows that are trained by a recipe; remove it")
        if not self.measure and self.recipe is None:
            raise ConfigError("measure is false, which leaves nothing to do without a recipe; remove the row")


@dataclass(frozen=True)
class Suite:
    """A comparison.

    Attributes:
        title: of the tables.
        seeds: each row with a recipe is trained once with each.
        data: images of all rows, instead of those that recipes name; ``null`` keeps these.
        split: images to evaluate on.
        overrides: ``key.in.recipe=value`` each, over all recipes.
        policies: of rows that name none.
        batch_size: images a batch in evaluation.
        workers: processes that read images in evaluation.
        bootstrap: resamples behind the intervals.
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
        for name, least in (("batch_size", 1), ("workers", 0), ("bootstrap", 100)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least {least}")

    def policies_of(self, row: RowConfig) -> tuple[str, ...]:
        """The policies that a row is measured with, the first one being its own."""
        return row.policies or self.policies


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite.

    Args:
        path: a YAML file; recipes and models in it are found relative to its folder.
        overrides: ``key.in.suite=value`` each, applied over the file; the value is read as YAML.

    Returns:
        The suite, with absolute paths of recipes and models.

    Raises:
        RecipeError: unreadable file, YAML that is not, an unknown key or a wrong value; with file, row and key.
        ConfigError: a value that cannot be, or rows that contradict each other.
    """
    path = Path(path)
    data = read_yaml(read_text(path, "suite"), str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a suite holds keys and values, not {type(data).__name__}")
    data = apply_overrides(data, overrides)
    rows, images = data.pop("rows", None), data.pop("data", None)
    if not isinstance(rows, list) or not rows:
        raise RecipeError(f"{path}: rows must be a list of at least one row, each with a name and a recipe")
    parsed = tuple(_row(row, index, path) for index, row in enumerate(rows, start=1))
    _check_rows(parsed, str(path))
    suite = parse_dataclass(Suite, data, str(path))
    config = None if images is None else parse_dataclass(DataConfig, images, f"{path}: data")
    return replace(suite, rows=parsed, data=config)


def _row(row: Any, index: int, path: Path) -> RowConfig:
    """One row, its paths made absolute."""
    name = row.get("name") if isinstance(row, dict) else None
    source = f"{path}: row {index}" + (f" ({name})" if name else "")
    if not isinstance(row, dict):
        raise RecipeError(f"{source} must hold keys and values, not {type(row).__name__}")
    config = parse_dataclass(RowConfig, row, source)
    folder = path.resolve().parent
    found = {key: str(folder / value) for key in ("recipe", "model") if (value := getattr(config, key)) is not None}
    for key, place in found.items():
        if not (Path(place).is_file() if key == "recipe" else Path(place).is_dir()):
            raise RecipeError(f"{source}: {key} {place} does not exist; give a path relative to the suite's folder")
    return replace(config, **found)  # type: ignore[arg-type]


def _check_rows(rows: Sequence[RowConfig], source: str) -> None:
    """Names are unique, and rows that go on from others come after them."""
    earlier: dict[str, RowConfig] = {}
    for row in rows:
        if row.name in earlier:
            raise ConfigError(f"{source}: two rows have the name {row.name!r}; rename one")
        if row.after is not None and (row.after not in earlier or earlier[row.after].recipe is None):
            raise ConfigError(
                f"{source}: row {row.name!r}: after is {row.after!r}, which is no earlier row with a recipe; give the "
                f"name of one{': ' + ', '.join(earlier) if earlier else ''}"
            )
        earlier[row.name] = row
