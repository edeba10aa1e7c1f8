"""A recipe: everything a training run is, as frozen data read from YAML."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from tnet.baselines.attention_sampling import AttentionSamplingObjective, AttentionSamplingObjectiveConfig
from tnet.baselines.dram import DRAMObjective, DRAMObjectiveConfig
from tnet.baselines.ips import IPSObjective, IPSObjectiveConfig
from tnet.baselines.saccader import SaccaderObjective, SaccaderObjectiveConfig
from tnet.config import parse_dataclass, to_plain
from tnet.data.config import DataConfig
from tnet.errors import ConfigError, RecipeError
from tnet.files import write_text
from tnet.losses import ModelObjective
from tnet.models.base import ModelConfig
from tnet.models.config import TNetConfig
from tnet.models.kinds import DEFAULT_KIND, KIND_NAMES, config_class, kind_of
from tnet.objectives import Objective, ObjectiveConfig

_MAX_RECIPE_BYTES = 2**20
_MAX_BASES = 8

Keep = Literal["best", "last"]
"""Which epoch's model a run keeps."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser.

    Attributes:
        name: ``adamw``, ``adam``, or ``keras_adam``: Adam as Keras computes it (published), with ``eps: 1.0e-7``.
        lr: learning rate of the new layers, and of the backbone unless it has its own.
        backbone_lr: learning rate of the backbone; ``null`` for the same.
        weight_decay: of ``adamw``, on weights of two and more dimensions.
        eps: of Adam.
        schedule: ``constant``, ``step`` (published: one drop) or ``cosine`` to zero.
        drop_at: share of the training after which ``step`` drops.
        drop_factor: what ``step`` multiplies by.
        warmup: share of the training over which the rate rises linearly from zero.
        clip_norm: largest gradient norm; ``null`` for no limit.
    """

    name: Literal["adamw", "adam", "keras_adam"] = "adamw"
    lr: float = 1e-3
    backbone_lr: float | None = None
    weight_decay: float = 1e-2
    eps: float = 1e-8
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    drop_at: float = 0.8
    drop_factor: float = 0.1
    warmup: float = 0.03
    clip_norm: float | None = 5.0

    def __post_init__(self) -> None:
        if not self.lr > 0 or (self.backbone_lr is not None and self.backbone_lr < 0):
            raise ConfigError(f"optim.lr {self.lr} and backbone_lr {self.backbone_lr} must be positive numbers")
        if not 0 <= self.warmup < 1 or not 0 < self.drop_at <= 1:
            raise ConfigError(
                f"optim.warmup {self.warmup} and drop_at {self.drop_at} are shares of the training, 0 to 1"
            )
        if not self.eps > 0 or not self.weight_decay >= 0 or not self.drop_factor >= 0:
            raise ConfigError(
                f"optim.eps {self.eps}, weight_decay {self.weight_decay} and drop_factor {self.drop_factor} must "
                "not be negative, nor eps 0"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"optim.clip_norm is {self.clip_norm}; give a number above 0, or null for no limit")


@dataclass(frozen=True)
class TrainConfig:
    """The run.

    Attributes:
        epochs: passes; validation and checkpoints come after each.
        batch_size: images a step and device.
        images_per_epoch: length of a pass; ``null`` for all training images.
        max_minutes: stop then; the schedule follows the time if that is what ends the run. ``null`` for no limit.
        workers: processes that load images; 0 loads them in the main process.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        devices: processes or GPUs to train on.
        eval_policies: policies that validation measures at the recipe's looks: ``topk``, ``sample``, ``random``,
            ``centre``, and a Saccader's others. The best model is that of ``topk``, or else of the first; with none,
            that of 0 looks.
        recalibrate_batches: before each validation, measure the statistics of batch norm anew over this many training
            batches; 0 keeps the running averages (published). Running averages lag behind weights that change fast.
        keep: which epoch's model is kept in ``model/``: the ``best`` in validation, or the ``last`` (published). Where
            results are reported on the pictures that are validated on, the best of many epochs would flatter them.
        overlays: validation images for which the regions are drawn at the end.
        start_from: folder of a run or saved model whose weights to start from, where names and shapes are the same;
            what is not there starts at random. So a stage goes on from the one before. ``null`` for none.
        ema_decay: keep an exponential moving average of all weights and running statistics, of which each step keeps
            this share (0.999, say; less in the first steps: ``(1 + n) / (10 + n)`` after ``n``). It is what is
            validated, chosen as the best, and kept in ``model/``; training goes on from the weights themselves.
            ``null`` for none.
        teacher: folder of a run or saved model of the same classes, of any kind, whose probabilities the model learns
            beside the labels (distillation, Hinton et al. 2015): the plain network at full resolution, say. It sees
            the same pictures with the same random changes. ``null`` for none.
        teacher_weight: of the divergence from the teacher's probabilities, beside the objective.
        teacher_temperature: both models' logits are divided by this; the term is multiplied by its square.
        mixup_alpha: mix each picture with another one of its batch, and their losses likewise, by a share drawn from
            the Beta distribution with this parameter twice (0.2, say); 0 for none. Only for models that see the whole
            picture and no more, on pictures of one size and one label: a region of a mixture has no single right
            class, which REINFORCE rewards.
    """

    epochs: int = 20
    batch_size: int = 32
    images_per_epoch: int | None = None
    max_minutes: float | None = None
    workers: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    eval_policies: tuple[str, ...] = ("topk", "random")
    recalibrate_batches: int = 12
    keep: Keep = "best"
    overlays: int = 4
    start_from: str | None = None
    ema_decay: float | None = None
    teacher: str | None = None
    teacher_weight: float = 1.0
    teacher_temperature: float = 2.0
    mixup_alpha: float = 0.0

    def __post_init__(self) -> None:
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay is {self.ema_decay}; give a number between 0 and 1, or null for none")
        if not 0 <= self.mixup_alpha < math.inf:
            raise ConfigError(f"train.mixup_alpha is {self.mixup_alpha}; give a number, 0 (none) or more")
        for name in ("teacher_weight", "teacher_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; give a number above 0")
        if self.teacher is not None and self.mixup_alpha:
            raise ConfigError("train.teacher and train.mixup_alpha do not go together; set mixup_alpha to 0")
        for name in ("epochs", "batch_size", "devices"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; give at least 1")
        for name in ("workers", "overlays", "recalibrate_batches"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; give 0 or more")
        if self.images_per_epoch is not None and self.images_per_epoch < 1:
            raise ConfigError(f"train.images_per_epoch is {self.images_per_epoch}; give at least 1, or null for all")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ConfigError(f"train.max_minutes is {self.max_minutes}; give a positive number, or null for no limit")


_OBJECTIVES: dict[str, tuple[type[Any], type[Any]]] = {
    "tnet": (ObjectiveConfig, Objective),
    "saccader": (SaccaderObjectiveConfig, SaccaderObjective),
    "dram": (DRAMObjectiveConfig, DRAMObjective),
    "ips": (IPSObjectiveConfig, IPSObjective),
    "attention_sampling": (AttentionSamplingObjectiveConfig, AttentionSamplingObjective),
}
AnyObjectiveConfig = (
    ObjectiveConfig
    | SaccaderObjectiveConfig
    | DRAMObjectiveConfig
    | IPSObjectiveConfig
    | AttentionSamplingObjectiveConfig
)
"""What is minimised, for any kind of model."""


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        title: one line on what it trains.
        seed: of weights, order, augmentation, dropout and sampled locations.
        model: the network; the number and names of classes come from the data. In YAML its key ``type`` names the kind
            (:data:`tnet.models.kinds.KIND_NAMES`; ``tnet`` if left out), on which the other keys depend.
        objective: what is minimised; its keys depend on the kind of model.
        optim: the optimiser.
        data: where images come from.
        train: the run.
    """

    title: str = ""
    seed: int = 0
    model: ModelConfig = field(default_factory=TNetConfig)
    objective: AnyObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; give a number from 0 to {2**32 - 1}")
        kind = kind_of(self.model)
        if type(self.objective) is not _OBJECTIVES[kind][0]:
            raise ConfigError(
                f"objective is a {type(self.objective).__name__} but a model of type {kind} is trained by a "
                f"{_OBJECTIVES[kind][0].__name__}; give that"
            )
        if self.train.mixup_alpha:
            self._check_mixup()
        # A plain network, made of a TNet's recipe by looks of [], has no locator: its terms are left out as others are.
        if getattr(self.objective, "worth_weight", 0) and max(self.model.default_looks, default=2) < 2:
            raise ConfigError(
                f"objective.worth_weight is set, but model.looks {list(self.model.default_looks)} never has two "
                "regions to compare; look at 2 or more of a level, or set worth_weight to 0"
            )

    def _check_mixup(self) -> None:
        """Mixup is for classification of whole pictures by one label."""
        if self.model.default_looks:
            problem = (
                "the model looks closer, and a region of a mixture has no single right class; set model.looks to []"
            )
        elif self.model.multilabel:
            problem = "pictures have several labels; give them one each"
        elif getattr(self.objective, "contrastive_weight", 0):
            problem = "objective.contrastive_weight compares pictures by a single class; set it to 0"
        else:
            return
        raise ConfigError(f"train.mixup_alpha is {self.train.mixup_alpha}, but {problem}, or mixup_alpha to 0")


def build_objective(config: AnyObjectiveConfig) -> ModelObjective:
    """Build the objective that a configuration describes."""
    objective: ModelObjective = next(build for known, build in _OBJECTIVES.values() if type(config) is known)(config)
    return objective


class _RepeatedKeyError(yaml.MarkedYAMLError):
    """A key that a mapping has twice, which YAML forbids and PyYAML lets pass."""


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-4 as a number, as everybody but YAML 1.1 expects, and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _RepeatedKeyError(problem=key.value, problem_mark=key.start_mark)
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


class _Dumper(yaml.SafeDumper):
    """YAML that puts quotes around a text, such as a class's name, that the loader would read as a number."""


_FLOAT = re.compile(
    r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$|^[-+]?\d[\d_]*\.[\d_]*$|^[-+]?\.\d[\d_]*([eE][-+]?\d+)?$"
)
for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    A recipe can go on from another one: ``base: other.yaml``, relative to its own folder. What it says itself is laid
    over that, key by key at every depth; lists and single values are replaced.

    Args:
        path: a YAML file.
        overrides: ``key.in.recipe=value`` each, applied over the file; the value is read as YAML.

    Raises:
        RecipeError: unreadable file, YAML that is not, an unknown key, or a wrong value; with file and key. Or a base
            that is none, or goes round.
        ConfigError: a value that cannot be, or values that contradict each other.
    """
    path = Path(path)
    return _parse(apply_overrides(_read(path, ()), overrides), str(path))


def _read(path: Path, above: tuple[Path, ...]) -> dict[Any, Any]:
    """The keys and values of a recipe laid over those of its base; ``above`` are the recipes that go on from it."""
    if len(above) > _MAX_BASES:
        chain = " -> ".join(str(item) for item in (*above[:2], "..."))
        raise RecipeError(f"{above[0]}: more than {_MAX_BASES} bases ({chain}); check whether a base leads back to it")
    data = _mapping(read_text(path, "recipe"), str(path))
    if "base" not in data:
        return data
    base = data.pop("base")
    if not isinstance(base, str) or not base:
        raise RecipeError(f"{path}: base is {base!r}; give the name of a recipe (YAML) beside this one")
    return _laid_over(_read(path.parent / base, (*above, path)), data)


def _laid_over(below: dict[Any, Any], above: dict[Any, Any]) -> dict[Any, Any]:
    """Nested mappings as one; what is above counts."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def read_text(path: Path, kind: str) -> str:
    """Read a file that a person writes.

    Args:
        path: of the file.
        kind: what it is, for messages: ``recipe`` or ``suite``.

    Raises:
        RecipeError: it cannot be read, or is too large to be one.
    """
    try:
        if path.stat().st_size > _MAX_RECIPE_BYTES:
            raise RecipeError(f"{path} is larger than {_MAX_RECIPE_BYTES} bytes, which no {kind} is; give a YAML file")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RecipeError(f"{kind} {path} cannot be read ({reason}); give the path of a YAML file") from None


def parse_recipe(text: str, overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """Read a recipe from YAML text, which has no base; see :func:`load_recipe`."""
    return _parse(apply_overrides(_mapping(text, source), overrides), source)


def _mapping(text: str, source: str) -> dict[Any, Any]:
    """The keys and values of YAML text."""
    data = read_yaml(text, source)
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: a recipe holds keys and values, not {type(data).__name__}")
    return data


def _parse(data: dict[Any, Any], source: str) -> Recipe:
    """A recipe whose model and objective are of the kind that ``model.type`` names."""
    kind = DEFAULT_KIND
    if isinstance(data.get("model"), dict) and "type" in data["model"]:
        model = dict(data["model"])
        kind = model.pop("type")
        data = {**data, "model": model}
    if not isinstance(kind, str) or kind not in KIND_NAMES:
        raise RecipeError(f"{source}: model.type is {kind!r}; give one of {', '.join(KIND_NAMES)}")
    typed = _recipe_class(kind)
    parsed = parse_dataclass(typed, data, source)
    return Recipe(**{item.name: getattr(parsed, item.name) for item in fields(Recipe)})


@lru_cache
def _recipe_class(kind: str) -> type[Recipe]:
    """Recipes of one kind of model, with the types that parsing checks values by."""
    model, objective = config_class(kind), _OBJECTIVES[kind][0]
    changed = [
        ("model", model, field(default_factory=model)),
        ("objective", objective, field(default_factory=objective)),
    ]
    return cast("type[Recipe]", make_dataclass("Recipe", changed, bases=(Recipe,), frozen=True))


def apply_overrides(data: dict[Any, Any], overrides: Sequence[str]) -> dict[Any, Any]:
    """Set ``key.in.data=value`` in nested mappings; the value is read as YAML.

    Args:
        data: changed in place, and returned.
        overrides: one setting each.

    Raises:
        RecipeError: an override that is not ``key=value``, or goes into a value.
    """
    for override in overrides:
        _apply(data, override)
    return data


def read_yaml(text: str, source: str) -> Any:
    """YAML as recipes are written: ``1e-4`` is a number.

    Raises:
        RecipeError: it is not YAML, or has a key twice; with the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if isinstance(error, _RepeatedKeyError):
            raise RecipeError(f"{source}{where}: {problem} is given twice; keep one of them") from None
        raise RecipeError(f"{source}{where}: not YAML ({problem}); check colons and indentation") from None
    except ValueError as error:  # a date or number that only looks like one, such as 2024-13-45
        raise RecipeError(f"{source}: not YAML ({error}); put quotes around text") from None
    except RecursionError:
        raise RecipeError(f"{source}: nested too deeply for a recipe; check the brackets") from None


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` in nested mappings."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r} is not key=value; write for example train.epochs=5")
    *parents, last = key.strip().split(".")
    for parent in parents:
        inside = data.setdefault(parent, {})
        if not isinstance(inside, dict):
            raise RecipeError(f"override {override!r}: {parent} holds a value, not keys")
        data = inside
    data[last] = read_yaml(value, f"override {override!r}")


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe with every value spelled out."""
    plain = to_plain(recipe)
    plain["model"] = {"type": kind_of(recipe.model), **plain["model"]}
    text = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    write_text(path, text)


def with_classes(recipe: Recipe, classes: Sequence[str], multilabel: bool) -> Recipe:
    """The recipe with the data's classes in its model."""
    mean, std = recipe.model.normalization
    from_data = {"num_classes": len(classes), "class_names": tuple(classes), "multilabel": multilabel}
    return replace(recipe, model=replace(recipe.model, mean=mean, std=std, **cast("dict[str, Any]", from_data)))
