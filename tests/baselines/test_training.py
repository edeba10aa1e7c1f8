"""Each baseline from end to end: recipe, training, saving, loading, evaluation, prediction, explanation."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import pictures, tiny_config, tiny_recipe

from tnet.baselines.saccader import SaccaderConfig
from tnet.data.digits import MegapixelDigits
from tnet.errors import CheckpointError, ConfigError, RecipeError
from tnet.evaluation.evaluator import evaluate
from tnet.explain import explain_image
from tnet.explain.batch import explain_samples
from tnet.inference.records import prediction_of
from tnet.models import Model, build_model, fill_from, load_model, save_model
from tnet.models.kind import MODEL_KINDS
from tnet.training.module import TNetModule
from tnet.training.recipe import Recipe, build_objective, load_recipe, parse_recipe, save_recipe, with_classes
from tnet.training.run import train

STEMS = [
    "tnet",
    "bagnet77_lowd",
    "saccader_1",
    "saccader_2",
    "saccader_3",
    "dram",
    "ips",
    "attention_sampling",
]
DIGITS = [f"{stem}_digits" for stem in STEMS]
SLOW_NAMES = [pytest.param(f"{stem}_imagenette", marks=pytest.mark.slow) for stem in STEMS]
# One of each kind of model, and the Saccader's representation network.
MODELS = ["bagnet77_lowd_digits", "saccader_3_digits", "dram_digits", "ips_digits", "attention_sampling_digits"]
SHORT = [
    "train.epochs=1",
    "train.images_per_epoch=4",
    "train.batch_size=2",
    "train.recalibrate_batches=1",
    "train.overlays=1",
    "train.accelerator=cpu",
    "train.start_from=null",
    "data.digits.canvas_px=128",
    "data.digits.digit_px=28",
    "data.digits.noise_px=28",
    "data.digits.noise_patterns=2",
    "data.digits.images_train=4",
    "data.digits.images_val=2",
    "data.digits.images_test=2",
]
SMALL = {
    "bagnet77_lowd": ["model.input_px=57"],
    "saccader": ["model.input_px=57"],
    "dram": ["model.input_px=48", "model.glimpse_px=16"],
    "ips": ["model.patch_px=40", "model.step=4"],
    "attention_sampling": ["model.patch_px=32", "model.low_px=16", "model.looks=3"],
    "tnet": [],
}


def some(*names: str) -> list[Any]:
    """All models, those not named here marked as slow."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in MODELS]


@lru_cache
def recipe_of(repository: Path, name: str, *overrides: str) -> Recipe:
    """A recipe of the repository, with fewer and smaller images; of digits, with a smaller model."""
    small = next(changes for kind, changes in SMALL.items() if name.startswith(kind)) if "digits" in name else []
    return load_recipe(repository / "recipes" / "baselines" / f"{name}.yaml", [*SHORT, *small, *overrides])


def build(repository: Path, name: str) -> Model:
    torch.manual_seed(0)
    return build_model(with_classes(recipe_of(repository, name), [str(i) for i in range(10)], False).model).eval()


def test_each_model_type_has_a_recipe_for_each_task(repository: Path) -> None:
    paths = sorted((repository / "recipes" / "baselines").glob("*.yaml"))
    assert {path.stem for path in paths} == {f"{stem}_{task}" for stem in STEMS for task in ("digits", "imagenette")}
    assert all(any(stem.startswith(kind) for stem in STEMS) for kind in MODEL_KINDS)


@pytest.mark.parametrize("name", [*DIGITS, *SLOW_NAMES])
def test_a_step_changes_only_what_the_stage_trains(repository: Path, name: str) -> None:
    recipe = recipe_of(repository, name)
    module = TNetModule(recipe)
    trained = {name for name, parameter in module.model.named_parameters() if parameter.requires_grad}
    assert trained == set(build_objective(recipe.objective).trained(module.model))
    before = {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}
    side_px = 128 if name in DIGITS else 512
    batch = torch.stack(pictures(*[(side_px, side_px)] * 4, channels=recipe.model.in_channels))
    module.train()
    loss = module.objective(
        module.model(batch, **module.objective.forward_options), torch.tensor([0, 1, 2, 3]), module.model
    )
    assert torch.isclose(loss.total, torch.stack(list(loss.terms.values())).sum())
    loss.total.backward()
    torch.optim.SGD([p for p in module.model.parameters() if p.requires_grad], lr=0.1).step()
    moved = {name for name, p in module.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and moved <= trained


@pytest.mark.parametrize("name", [*some("saccader_3_digits", "ips_digits"), *SLOW_NAMES])
def test_recipes_round_trip(repository: Path, tmp_path: Path, name: str) -> None:
    recipe = recipe_of(repository, name)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.fixture(scope="module")
def representation(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A trained representation network and the folder of its run."""
    folder = tmp_path_factory.mktemp("representation") / "run"
    return train(recipe_of(repository, MODELS[0]), folder, progress=False), folder


@pytest.mark.parametrize("name", some("dram_digits"))
def test_a_trained_model_answers_the_same_after_loading(
    repository: Path, tmp_path: Path, representation: tuple[Any, Path], name: str
) -> None:
    if name == MODELS[0]:
        result, folder = representation
    else:
        folder = tmp_path / "run"
        result = train(recipe_of(repository, name), folder, progress=False)
    model, again = result.model, load_model(folder)
    assert type(again) is type(model) and again.config == result.recipe.model
    assert len(result.metrics) == 1 and any(key.startswith("val/accuracy") for key in result.metrics[0])
    assert len(list((folder / "overlays").glob("*.png"))) == 1
    images = torch.stack(pictures((128, 128), (128, 128)))
    outputs = []
    for net in (model, again):
        torch.manual_seed(0)
        outputs.append(net(images))
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert torch.equal(outputs[0].regions.box_l0_yxyx, outputs[1].regions.box_l0_yxyx)


@pytest.mark.parametrize("name", some("attention_sampling_digits"))
def test_evaluation_of_every_policy_is_repeatable(repository: Path, name: str) -> None:
    model = build(repository, name)
    data = MegapixelDigits(recipe_of(repository, name).data.digits, "test")
    looks = model.config.listed_looks()[-1:]
    policies = [model.config.eval_policy, *(["random"] if model.config.default_looks else [])]
    rows = [evaluate(model, data, looks=looks, policies=policies, progress=False) for _ in range(2)]
    assert len(rows[0]) == sum(1 if not look else len(policies) for look in looks)
    assert all(row.macs > 0 and row.images == 2 for row in rows[0])
    # Random and sampled locations follow from the seed.
    assert [(r.accuracy, r.confidence) for r in rows[0]] == [(r.accuracy, r.confidence) for r in rows[1]]


@pytest.mark.parametrize("name", some("ips_digits"))
def test_figure_and_record_show_the_regions(repository: Path, tmp_path: Path, name: str) -> None:
    model = build(repository, name)
    images = pictures((128, 128), (150, 140))
    torch.manual_seed(0)
    output = model(images)
    looks = sum(model.config.default_looks)
    for image in range(2):
        record = prediction_of(output, image, model.config, "a.png", located=model.is_located(model.config.eval_policy))
        assert [region.number for region in record.regions] == [str(i + 1) for i in range(looks)]
        boxes = output.regions.at_level(1).box_l0_yxyx.reshape(2, looks, 4)[image].tolist() if looks else []
        assert [list(region.box_l0_yxyx) for region in record.regions] == boxes
        assert record.size_hw == tuple(images[image].shape[1:])
    assert explain_image(model, images[0]).axes
    data = MegapixelDigits(recipe_of(repository, name).data.digits, "test")
    assert len(explain_samples(model, data, 1, tmp_path, progress=False)) == 1


def test_records_hold_what_each_model_provides(repository: Path) -> None:
    records = {}
    for name in MODELS[1:]:
        model = build(repository, name)
        torch.manual_seed(0)
        policy = model.config.eval_policy
        records[name] = prediction_of(
            model(pictures((128, 128)), policy=policy), 0, model.config, "", located=model.is_located(policy)
        ).regions[0]
    given = {
        name: (r.location_probability is not None, r.weight is not None, r.label is not None)
        for name, r in records.items()
    }
    assert given == {
        "saccader_3_digits": (True, True, True),
        "dram_digits": (False, False, True),
        "ips_digits": (False, True, False),
        "attention_sampling_digits": (True, False, False),
    }


def test_a_stage_starts_from_the_one_before(repository: Path, tmp_path: Path, representation: tuple[Any, Path]) -> None:
    first, folder = representation
    assert first.not_started == ()
    overrides = [f"train.start_from={folder}", "train.overlays=0"]
    second = train(recipe_of(repository, "saccader_2_digits", *overrides), tmp_path / "2", progress=False)
    assert {name.split(".")[0] for name in second.not_started} == {"attention", "mix", "cell"}
    before, after = first.model.state_dict(), second.model.state_dict()
    # Location pretraining leaves the representation network's weights as they were.
    weights = [name for name, _ in first.model.named_parameters()]
    assert weights and all(torch.equal(before[name], after[name]) for name in weights)


def test_starting_from_another_model_raises(tmp_path: Path) -> None:
    save_model(build_model(tiny_config()), tmp_path / "tnet")
    narrow = SaccaderConfig(planes=(4,), blocks=(1,), strides=(2,), wide_blocks=(1,), input_px=16, looks=0)
    with pytest.raises(CheckpointError, match="none of the weights"):
        fill_from(build_model(narrow), tmp_path / "tnet")
    with pytest.raises(CheckpointError, match="model.safetensors"):
        fill_from(build_model(narrow), tmp_path)


# --- errors


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("model: {type: vgg}", RecipeError, "a.yaml: model.type is 'vgg'"),
        ("model: {type: dram, base_px: 3}", RecipeError, "model.base_px"),
        ("model: {type: dram, looks: many}", RecipeError, "a.yaml: model.looks is "),
        ("model: {type: dram, looks: 0}", ConfigError, "a.yaml: model.looks is 0"),
        ("model: {type: saccader}\nobjective: {stage: third}", RecipeError, "a.yaml: objective.stage"),
        ("model: {type: ips}\nobjective: {joint_weight_ce: 1}", RecipeError, "objective.joint_weight_ce"),
    ],
)
def test_wrong_values_name_file_and_key(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as info:
        parse_recipe(text, source="a.yaml")
    assert message in str(info.value)


def test_the_default_type_is_tnet() -> None:
    assert parse_recipe("") == parse_recipe("model: {type: tnet}") == Recipe()
    assert parse_recipe("", ["model.type=dram", "model.looks=2"]).model.default_looks == (2,)


def test_an_objective_of_another_model_raises() -> None:
    with pytest.raises(ConfigError, match="model type saccader takes a SaccaderObjectiveConfig"):
        replace(tiny_recipe(), model=SaccaderConfig())


@pytest.mark.parametrize("kind", ["vgg", None, ["tnet"], 3])
def test_a_saved_model_of_an_unknown_type_raises(tmp_path: Path, kind: Any) -> None:
    import json

    save_model(build_model(tiny_config()), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": kind}))
    with pytest.raises(CheckpointError, match="config.json"):
        load_model(tmp_path)


def test_an_unknown_policy_raises_before_training(repository: Path) -> None:
    with pytest.raises(ConfigError, match="sobel_mean"):
        TNetModule(recipe_of(repository, "ips_digits", "train.eval_policies=[sobel_mean]"))
    with pytest.raises(ConfigError, match="ordered_logits"):
        TNetModule(tiny_recipe(train={"eval_policies": ("ordered_logits",)}))
