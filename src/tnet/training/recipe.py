"""Recipes: everything that defines a training run, as frozen dataclasses read from YAML."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml

from tnet.config import parse_dataclass, to_plain
from tnet.data.config import DataConfig
from tnet.errors import ConfigError, RecipeError
from tnet.files import write_text
from tnet.losses import ModelObjective
from tnet.models.base import ModelConfig
from tnet.models.config import TNetConfig
from tnet.models.kind import DEFAULT_KIND, MODEL_KINDS, kind_of
from tnet.objectives import ObjectiveConfig
from tnet.remote import check_local
from tnet.training.bundled import find_recipe
from tnet.training.config import FIRST_EPOCHS, OptimConfig, TrainConfig

_MAX_RECIPE_BYTES = 2**20
_MAX_VALUES = 2**17
_MAX_DIGITS = 400
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        title: one line about the run.
        seed: seed of weights, order, augmentation, dropout and sampled locations.
        model: the model; the number and names of classes come from the data. In YAML its key ``type`` names the kind
            (:data:`tnet.models.kind.MODEL_KINDS`; ``tnet`` by default), on which the other keys depend.
        objective: the objective; its keys depend on the kind of model.
        optim: optimizer and schedule.
        data: the dataset.
        train: length, hardware and outputs.
    """

    title: str = ""
    seed: int = 0
    model: ModelConfig = field(default_factory=TNetConfig)
    objective: Any = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; give a number from 0 to {2**32 - 1}")
        kind = kind_of(self.model)
        wanted = MODEL_KINDS[kind].objective_config
        if type(self.objective) is not wanted:
            name = type(self.objective).__name__
            raise ConfigError(f"objective is a {name} but model type {kind} takes a {wanted.__name__}; give that")
        if self.train.mixup_alpha:
            self._check_mixup()
        self.train.guide.check(self.model, self.data.augment)
        has_looks = isinstance(self.model, TNetConfig) and bool(self.model.looks)
        for name in FIRST_EPOCHS:
            if not has_looks and (epochs := getattr(self.train, name)):
                raise ConfigError(f"train.{name} is {epochs}, but the model is not a TNet with looks; set it to 0")
        self._check_frozen_overview()
        # A plain network (looks: []) has no locator: the term is ignored there, as others are.
        if getattr(self.objective, "worth_weight", 0) and max(self.model.default_looks, default=2) < 2:
            looks, remedy = list(self.model.default_looks), "use 2 or more looks at some level, or set it to 0"
            raise ConfigError(f"objective.worth_weight compares regions, but model.looks is {looks}; {remedy}")
        has_value = isinstance(self.model, TNetConfig) and self.model.locator.value
        if has_value != bool(getattr(self.objective, "gain_weight", 0)):
            raise ConfigError("model.locator.value is trained by objective.gain_weight; set both of them, or neither")

    def _check_frozen_overview(self) -> None:
        if not self.train.frozen_overview:
            return
        if not (isinstance(self.model, TNetConfig) and self.model.levels > 1 and self.model.look_weights == "separate"):
            problem, remedy = "the model has no separate weights for looks", "set model.look_weights to separate"
        elif epochs := self.train.no_looks_epochs:
            problem, remedy = f"train.no_looks_epochs is {epochs}, which trains the overview alone", "set that to 0"
        else:
            return
        raise ConfigError(f"train.frozen_overview is true, but {problem}; {remedy}, or frozen_overview to false")

    def _check_mixup(self) -> None:
        if self.model.default_looks:
            problem, remedy = "a region of a mixture has no single class", "set model.looks to []"
        elif self.model.multilabel:
            problem, remedy = "images have several labels", "give them one each"
        elif getattr(self.objective, "contrastive_weight", 0):
            problem, remedy = "objective.contrastive_weight needs a single class per image", "set it to 0"
        else:
            return
        alpha = self.train.mixup_alpha
        raise ConfigError(f"train.mixup_alpha is {alpha}, but {problem}; {remedy}, or mixup_alpha to 0")


def build_objective(config: object) -> ModelObjective:
    """Build the objective that a configuration describes."""
    return MODEL_KINDS[kind_of(config)].objective(config)


class _RepeatedKeyError(yaml.MarkedYAMLError):
    """A repeated key, which YAML forbids and PyYAML accepts."""


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-4 as a number, unlike YAML 1.1, and refuses repeated keys and aliases that multiply."""

    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.composed += 1
        if self.composed > _MAX_VALUES:
            problem = f"more than {_MAX_VALUES:,} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=parent.start_mark if parent else None)
        return super().compose_node(parent, index)

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            self._count(node, {})
        return node

    def _count(self, node: yaml.Node, counts: dict[int, float]) -> float:
        """Return the number of values after aliases and merge keys are expanded, each node counted once."""
        if id(node) not in counts:
            counts[id(node)] = math.inf  # of a node inside itself
            pairs = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,))]
            counts[id(node)] = 1 + sum(self._count(part, counts) for part in parts)
        if counts[id(node)] > _MAX_VALUES:
            problem = f"aliases make more than {_MAX_VALUES:,} values of it, or repeat it inside itself"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if isinstance(node, yaml.ScalarNode) and len(node.value) > _MAX_DIGITS and node.tag in _NUMBERS:
            problem = f"a number of {len(node.value):,} characters, over the limit of {_MAX_DIGITS}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return counts[id(node)]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise _RepeatedKeyError(problem=key.value, problem_mark=key.start_mark)
            seen.add(key.value)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


class _Dumper(yaml.SafeDumper):
    """YAML that quotes a string, such as the name of a class, that the loader would read as a number."""


_FLOAT = re.compile(
    r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$|^[-+]?\d[\d_]*\.[\d_]*$|^[-+]?\.\d[\d_]*([eE][-+]?\d+)?$"
)
for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file, or a bundled one by its name.

    A recipe can build on another one, ``base: other.yaml`` (relative to its folder), which must not have a base itself.
    Its values override the base's, key by key at every depth; lists are replaced.

    Args:
        path: a YAML file, or the name of a bundled recipe such as ``published/imagenet_tnet``.
        overrides: settings ``key.in.recipe=value``; values are read as YAML.

    Raises:
        RecipeError: the file cannot be read, or has invalid YAML, an unknown key, a wrong type or an invalid base.
        ConfigError: a value is out of range, or values contradict each other.
    """
    path = find_recipe(path)
    return _parse(apply_overrides(read_recipe(path), overrides), str(path))


def read_recipe(path: Path) -> dict[Any, Any]:
    """Return the unchecked keys and values of a recipe, merged over its base's."""
    data = _mapping(read_text(path, "recipe"), str(path))
    if "base" not in data:
        return data
    base = data.pop("base")
    if not isinstance(base, str) or not base:
        raise RecipeError(f"{path}: base is {base!r}; give the file name of another recipe, relative to this one")
    below = _mapping(read_text(path.parent / base, "recipe"), str(path.parent / base))
    if "base" in below:
        raise RecipeError(f"{path}: base {base} has a base itself ({below['base']!r}); use a recipe without one")
    return _merge(below, data)


def _merge(below: dict[Any, Any], above: dict[Any, Any]) -> dict[Any, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def read_text(path: Path, what: str) -> str:
    """Read a YAML file written by a person; ``what`` (``recipe`` or ``suite``) is for error messages."""
    check_local(path, RecipeError)
    try:
        if path.exists() and not path.is_file():  # reading a pipe would block, a device might never end
            raise OSError(0, os.strerror(errno.EISDIR) if path.is_dir() else "not a regular file")
        with path.open("rb") as file:
            data = file.read(_MAX_RECIPE_BYTES + 1)
        if len(data) > _MAX_RECIPE_BYTES:
            raise OSError(0, f"larger than {_MAX_RECIPE_BYTES} bytes")
        return data.decode("utf-8").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        if not str(path).isprintable():
            reason = "its name has control characters"
        remedy = "give a YAML file, or a name that `tnet recipes` lists"
        raise RecipeError(f"{what} {_printable(path)} cannot be read ({reason}); {remedy}") from None


def _printable(path: Path) -> str:
    return str(path) if str(path).isprintable() else repr(str(path))


def parse_recipe(text: str, overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """Read a recipe from YAML text, which cannot have a base; see :func:`load_recipe`."""
    return _parse(apply_overrides(_mapping(text, source), overrides), source)


def _mapping(text: str, source: str) -> dict[Any, Any]:
    data = read_yaml(text, source)
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: a recipe must hold keys and values, not {type(data).__name__}")
    return data


def _parse(data: dict[Any, Any], source: str) -> Recipe:
    """Build a recipe whose model and objective have the type that ``model.type`` names."""
    kind = DEFAULT_KIND
    if isinstance(model := data.get("model"), dict):
        kind = model.get("type", DEFAULT_KIND)
        data = {**data, "model": {key: value for key, value in model.items() if key != "type"}}
    if not isinstance(kind, str) or kind not in MODEL_KINDS:
        raise RecipeError(f"{source}: model.type is {kind!r}; give one of {', '.join(MODEL_KINDS)}")
    parsed = parse_dataclass(_recipe_class(kind), data, source)
    return Recipe(**{item.name: getattr(parsed, item.name) for item in fields(Recipe)})


@lru_cache
def _recipe_class(kind: str) -> type[Recipe]:
    """Return a recipe class with the types of one kind of model, by which values are checked."""
    types = {"model": MODEL_KINDS[kind].config, "objective": MODEL_KINDS[kind].objective_config}
    changed = [(name, cls, field(default_factory=cls)) for name, cls in types.items()]
    return cast("type[Recipe]", make_dataclass("Recipe", changed, bases=(Recipe,), frozen=True))


def apply_overrides(data: dict[Any, Any], overrides: Sequence[str]) -> dict[Any, Any]:
    """Apply ``key.in.data=value`` settings with YAML values to nested mappings, in place; return the mapping."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"override {override!r} is not key=value; write for example train.epochs=5")
        *parents, last = key.strip().split(".")
        inside = data
        for parent in parents:
            inside = inside.setdefault(parent, {})
            if not isinstance(inside, dict):
                raise RecipeError(f"override {override!r}: {parent} holds a value, not keys; check the key")
        inside[last] = read_yaml(value, f"override {override!r}")
    return data


def read_yaml(text: str, source: str) -> Any:
    """Read YAML as recipes are written: ``1e-4`` is a number, and repeated keys are errors."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if isinstance(error, _RepeatedKeyError):
            raise RecipeError(f"{source}{where}: {problem} is given twice; keep one of them") from None
        raise RecipeError(f"{source}{where}: invalid YAML ({problem}); check colons and indentation") from None
    except ValueError as error:  # text like a date or number, such as 2024-13-45
        raise RecipeError(f"{source}: invalid YAML ({error}); put quotes around text") from None
    except RecursionError:
        raise RecipeError(f"{source}: nested too deeply for a recipe; check the brackets") from None


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe with every value spelled out."""
    plain = to_plain(recipe)
    plain["model"] = {"type": kind_of(recipe.model), **plain["model"]}
    write_text(path, dump_yaml(plain))


def dump_yaml(data: dict[Any, Any]) -> str:
    """Return YAML that :func:`read_yaml` reads back the same."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def with_classes(recipe: Recipe, classes: Sequence[str], multilabel: bool) -> Recipe:
    """Return the recipe with the dataset's classes, and its model's normalization spelled out."""
    mean, std = recipe.model.normalization
    from_data: dict[str, Any] = {"num_classes": len(classes), "class_names": tuple(classes), "multilabel": multilabel}
    return replace(recipe, model=replace(recipe.model, **from_data, mean=mean, std=std))
