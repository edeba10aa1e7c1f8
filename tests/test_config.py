"""Parsing of plain data into dataclasses: conversions, errors, and that nothing in the data is run."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tnet.config import parse_dataclass, to_plain
from tnet.errors import ConfigError, RecipeError, TnetError
from tnet.geometry import Grid
from tnet.models.config import LocatorConfig, PolicyConfig, PositionConfig, TNetConfig
from tnet.models.kind import MODEL_KINDS
from tnet.training.recipe import _recipe_class, load_recipe


@dataclass(frozen=True)
class Inner:
    side: int = 3
    share: float | None = 0.5
    kind: Literal["round", "square"] = "round"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ConfigError(f"side is {self.side}; give at least 1")


@dataclass(frozen=True)
class Outer:
    title: str = ""
    numbers: tuple[int, ...] = (1,)
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


def test_missing_values_take_their_default() -> None:
    assert parse_dataclass(Outer, {}, "x.yaml") == Outer()
    assert parse_dataclass(Outer, {"inner": {"side": 5}}, "x.yaml") == Outer(inner=Inner(side=5))


def test_values_are_converted_to_the_types_of_fields() -> None:
    parsed = parse_dataclass(Outer, {"title": "3 cats", "numbers": [4, 5], "inner": {"share": 1}}, "x.yaml")
    assert parsed == Outer("3 cats", (4, 5), (), Inner(share=1.0))
    assert isinstance(parsed.numbers, tuple) and isinstance(parsed.inner.share, float)
    assert parse_dataclass(Outer, {"inner": {"share": None}}, "x.yaml").inner.share is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"titel": "a"}, "x.yaml: unknown key 'titel'; did you mean 'title'?"),
        ({"inner": {"sides": 2}}, "x.yaml: unknown key 'inner.sides'; did you mean 'side'?"),
        ({"inner": {"qqq": 2}}, "x.yaml: unknown key 'inner.qqq'; the keys here are side, share, kind"),
        ({1: 2}, "x.yaml: unknown key '1'; the keys here are title, numbers, names, inner"),
        ({"inner": 3}, "x.yaml: inner must hold keys and values, not int"),
        ({"inner": None}, "x.yaml: inner must hold keys and values, not NoneType"),
        ({"inner": {"class_path": "os.system"}}, "x.yaml: unknown key 'inner.class_path'"),
    ],
)
def test_unknown_keys(data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_dataclass(Outer, data, "x.yaml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("data", "key", "value"),
    [
        ({"inner": {"side": "abc"}}, "inner.side", "abc"),
        ({"inner": {"side": 1.5}}, "inner.side", "1.5"),
        ({"inner": {"kind": "oval"}}, "inner.kind", "oval"),
        ({"title": 7}, "title", "7"),
        ({"numbers": 7}, "numbers", "7"),
        ({"numbers": ["x"]}, "numbers", "x"),
        ({"names": [["x"]]}, "names", "x"),
    ],
)
def test_wrong_type_names_key_and_value_on_one_line(data: dict[str, Any], key: str, value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_dataclass(Outer, data, "x.yaml")
    message = str(caught.value)
    assert message.startswith(f"x.yaml: {key}") and value in message and "\n" not in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.looks=2", "model.looks is 2; give a list, such as [1] or [a, b]"),
        ("train.epochs=three", "train.epochs is three; give a whole number"),
        ("train.max_minutes=soon", "train.max_minutes is soon; give a number or null"),
        ("data.augment.horizontal_flip=maybe", "data.augment.horizontal_flip is maybe; give true or false"),
        ("train.precision=16", "train.precision is 16; give one of '32-true', 'bf16-mixed', '16-mixed'"),
    ],
)
def test_expected_types_are_described(override: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("title: x\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "recipe.yaml", [override])
    assert str(caught.value).endswith(message)


def test_error_of_the_dataclass_names_the_file() -> None:
    with pytest.raises(ConfigError, match="^x.yaml: side is 0"):
        parse_dataclass(Outer, {"inner": {"side": 0}}, "x.yaml")


@pytest.mark.parametrize(
    "names", [("0", "1"), ("null", "true", "~", ""), ("1e3", "0x1", "1_0"), ("[a]", "{b: c}", "x: y")]
)
def test_strings_stay_strings(names: tuple[str, ...]) -> None:
    """Class names come from folder names and must not turn into numbers or lists."""
    config = TNetConfig(num_classes=len(names), class_names=names)
    assert parse_dataclass(TNetConfig, json.loads(json.dumps(to_plain(config))), "config.json") == config


@pytest.mark.parametrize("tap", ["auto", "2", 2, "-1", -2, "blocks.3"])
def test_tap_keeps_its_type(tap: str | int) -> None:
    parsed = parse_dataclass(TNetConfig, {"backbone": {"tap": tap}}, "config.json").backbone.tap
    assert parsed == tap and type(parsed) is type(tap)


@pytest.mark.parametrize(
    "value",
    ["on", "12", "1e3", "null", 12, 0, 1, 1.0, True, None, [16, "a", "1", True, 2.5], [[1, 2], [3]], {"a": "1"}],
)
def test_backbone_arguments_are_unchanged(value: Any) -> None:
    data = {"backbone": {"kwargs": {"argument": value}}}
    parsed = parse_dataclass(TNetConfig, data, "config.json").backbone.kwargs["argument"]
    assert json.dumps(parsed) == json.dumps(value)
    assert json.dumps(data) == json.dumps({"backbone": {"kwargs": {"argument": value}}})  # the input is not changed


# --- configurations are untrusted: they are downloaded with weights


def attacks(trace: Path) -> list[Any]:
    run = {"class_path": "subprocess.Popen", "init_args": {"args": f"touch {trace}", "shell": True}}
    return [run, [run], {"deep": run}, {"class_path": "pathlib.Path"}, "subprocess.Popen"]


@pytest.mark.parametrize("number", range(5))
def test_configuration_cannot_run_code(number: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    attack = attacks(trace)[number]
    for kwargs in ({"argument": attack}, attack):
        for data in ({"backbone": {"kwargs": kwargs}}, {"backbone": kwargs}, {"grid": kwargs}):
            try:
                config = parse_dataclass(TNetConfig, data, "config.json")
            except RecipeError:
                continue
            assert isinstance(config.backbone.kwargs, dict)
            assert json.dumps(config.backbone.kwargs) == json.dumps(kwargs)  # data, not an object made from it
    assert not trace.exists()


def leaves(annotation: Any, seen: set[Any]) -> set[Any]:
    """All types that occur in values of this annotation."""
    if annotation in seen:
        return set()
    seen.add(annotation)
    if is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return set().union(*(leaves(hints[each.name], seen) for each in fields(annotation)))
    if typing.get_origin(annotation) is Literal:
        return {str}
    if arguments := typing.get_args(annotation):
        return set().union(*(leaves(argument, seen) for argument in arguments))
    return {annotation}


@pytest.mark.parametrize("cls", [TNetConfig, *map(_recipe_class, MODEL_KINDS)])
def test_fields_hold_plain_values_only(cls: type) -> None:
    """A field of type Any, or of a class, would let a file name code that the parser imports and calls."""
    assert leaves(cls, set()) <= {str, int, float, bool, types.NoneType, ...}


# --- invalid model configurations


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"levels": 0, "looks": ()}, "model.levels is 0"),
        ({"looks": (3, 3)}, "model.looks [3, 3]"),
        ({"levels": 3, "looks": (3,)}, "model.looks [3]"),
        ({"looks": (26,)}, "26 locations in a grid of 5 x 5"),
        ({"looks": (0,)}, "asks for 0 locations"),
        ({"num_classes": 0}, "model.num_classes is 0"),
        ({"in_channels": 0, "mean": (0.5,)}, "model.in_channels is 0"),
        ({"base_px": -1}, "model.base_px is -1"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
        ({"mean": (0.1, 0.2)}, "model.mean has 2 values for 3 channels"),
        ({"std": (0.5, 0.5, 0.0)}, "model.std is"),
        ({"class_names": ("a",)}, "model.class_names has 1"),
    ],
)
def test_invalid_model_config(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TNetConfig(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (PositionConfig, {"divisor": 0}, "model.position.divisor is 0"),
        (LocatorConfig, {"initial_scale": 0.0}, "model.locator.initial_scale is 0.0"),
        (LocatorConfig, {"hidden": -1}, "model.locator.hidden is -1"),
        (LocatorConfig, {"position_start": -1}, "model.locator.position_start is -1"),
        (LocatorConfig, {"position_step": 0}, "model.locator.position_step is 0"),
        (PolicyConfig, {"temperature": 0.0}, "model.policy.temperature is 0.0"),
        (PolicyConfig, {"max_overlap": 1.5}, "model.policy.max_overlap is 1.5"),
    ],
)
def test_invalid_part_config(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**values)


def test_to_plain() -> None:
    plain = to_plain(TNetConfig(grid=Grid(2, 3, 0.5), class_names=tuple("abcdefghij")))
    assert plain["grid"] == {"rows": 2, "cols": 3, "cell_extent": 0.5}
    assert plain["class_names"] == list("abcdefghij")
    assert json.loads(json.dumps(plain)) == plain
    assert to_plain({1: (2, Inner)}) == {"1": [2, Inner]}


HUGE = [10**6, 10**9, 10**18]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize(
    "key",
    [
        "model.base_px", "model.num_classes", "model.in_channels", "model.levels", "model.grid.cols", "model.grid.rows",
        "model.locator.hidden", "model.locator.position_step", "model.backbone.kwargs.depth",
    ],
)  # fmt: skip
def test_absurd_sizes_of_a_model_are_refused_with_key_and_limit(key: str, value: int) -> None:
    data: dict[str, Any] = {}
    *parents, last = key.removeprefix("model.").split(".")
    inside = data
    for parent in parents:
        inside = inside.setdefault(parent, {})
    inside[last] = value
    with pytest.raises(TnetError, match=rf"config\.json: .*{last}.*{value}.*at most") as caught:
        parse_dataclass(TNetConfig, data, "config.json")
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", sorted(MODEL_KINDS))
def test_every_number_of_every_kind_of_model_has_a_limit(kind: str) -> None:
    config = MODEL_KINDS[kind].config
    hints = typing.get_type_hints(config)
    checked = 0
    for item in fields(config):
        number = hints[item.name]
        value: Any = {int: 10**9, tuple[int, ...]: [10**9] * 4, float: 1e300}.get(number)
        if value is None:
            continue
        checked += 1
        with pytest.raises(TnetError, match=item.name):
            parse_dataclass(config, {item.name: value}, "config.json")
    assert checked >= 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"levels": 5, "looks": [25] * 4}, r"model.looks is .*406,900 regions per image; .* at most 16,384"),
        ({"levels": 16, "looks": [1] * 15, "grid": {"cell_extent": 0.01}}, r"2\^107 px per side"),
        ({"grid": {"rows": 1000, "cols": 1000}}, r"grid.rows x grid.cols is 1000 x 1000; give at most 64 each"),
        ({"base_px": 8192, "in_channels": 1024}, r"in_channels is 1024 at 8192 px"),
        ({"dropout": float("nan")}, r"dropout is nan; give a finite number"),
        ({"num_classes": 10**4000}, r"num_classes is 1000000.*; give a finite number"),
        ({"backbone": {"kwargs": {"widths": [[8, 10**9]]}}}, r"model.backbone.kwargs.widths has 1000000000; .* 8,192"),
    ],
)
def test_combinations_that_would_exhaust_memory_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(TnetError, match=message):
        parse_dataclass(TNetConfig, data, "config.json")


def test_deep_nesting_is_refused() -> None:
    value: Any = 1
    for _ in range(500):
        value = [value]
    with pytest.raises(RecipeError, match="model: names is nested too deeply"):
        parse_dataclass(Outer, {"names": value}, "model")
    assert TNetConfig(grid=Grid(64, 64)).grid.cells == 4096  # the limit itself


@pytest.mark.parametrize(
    "override",
    [
        *(
            "optim.lr=1e308",
            "optim.lr=.inf",
            "optim.lr=.nan",
            "optim.lr=-.inf",
            "optim.eps=1e9",
            "optim.clip_norm=1e300",
        ),
        *("optim.backbone_lr=1e99", "optim.weight_decay=1e30", "optim.drop_factor=.nan", "train.epochs=1000000000"),
        *("train.batch_size=1000000000", "train.workers=100000", "train.devices=1000000", "train.max_gmacs=1e30"),
        "train.max_minutes=1e30",
        *("train.images_per_epoch=1000000000000", "train.overlays=1000000000", "train.teacher_weight=1e300"),
        *("train.mixup_alpha=1e300", "train.recalibrate_batches=1000000000", "train.ema_decay=.nan"),
        *("objective.l2_weight=1e300", "objective.reinforce_weight=1e99", "objective.per_feature_levels=1000000000"),
        *("data.overview_px=1000000000", "data.max_side_px=100000000000", "data.digits.images_train=1000000000000"),
        *("data.digits.noise_patterns=1000000000", "data.augment.crop_tries=1000000000", "data.augment.rotation=1e300"),
        *(
            "model.policy.temperature=1e300",
            "model.locator.initial_scale=1e300",
            "data.val_fraction=1e300",
            "seed=1e300",
        ),
    ],
)
def test_absurd_numbers_of_a_recipe_are_refused_with_their_key(override: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("title: x\n")
    key = override.partition("=")[0].rpartition(".")[2]
    with pytest.raises(TnetError, match=rf"recipe\.yaml: .*{key}") as caught:
        load_recipe(tmp_path / "recipe.yaml", [override])
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
