from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import TINY_BAGNET, three_levels, tiny_config, tiny_recipe
from torch import Tensor, nn

from tnet.data.sample import Batch
from tnet.errors import ConfigError, TrainingError
from tnet.models.io import load_model, save_model
from tnet.models.tnet import TNet
from tnet.training.config import OptimConfig
from tnet.training.module import TNetModule, accuracy_metric, class_metrics
from tnet.training.optimizers import parameter_groups, schedule_factor

TERMS = ("cross_entropy", "cross_entropy_per_feature", "reinforce", "reinforce_per_feature", "teacher")

# --- the learning rate


def test_a_constant_rate_after_warmup() -> None:
    config = OptimConfig(schedule="constant", warmup=0.2)
    factors = [schedule_factor(config, progress) for progress in (0.0, 0.05, 0.1, 0.2, 0.6, 1.0)]
    assert factors == pytest.approx([0.01, 0.25, 0.5, 1, 1, 1])
    assert schedule_factor(OptimConfig(schedule="constant", warmup=0.0), 0.0) == 1


def test_one_drop() -> None:
    config = OptimConfig(schedule="step", warmup=0.0, drop_at=0.8, drop_factor=0.1)
    assert [schedule_factor(config, progress) for progress in (0.0, 0.79, 0.81, 1.0)] == [1, 1, 0.1, 0.1]
    assert schedule_factor(OptimConfig(schedule="step", warmup=0.1), 0.05) == pytest.approx(0.5)


def test_a_cosine_falls_from_one_to_zero_after_warmup() -> None:
    config = OptimConfig(schedule="cosine", warmup=0.2)
    assert [schedule_factor(config, x) for x in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1, 0.5, 0], abs=1e-12)
    falling = [schedule_factor(config, 0.2 + 0.008 * i) for i in range(101)]
    assert falling == sorted(falling, reverse=True)
    assert schedule_factor(config, 1.5) == pytest.approx(0, abs=1e-12), "beyond the end it does not rise again"


# --- what is optimised


@pytest.mark.parametrize("config", [tiny_config(), three_levels(), tiny_config(backbone=TINY_BAGNET)])
def test_every_parameter_is_optimised_once(config: Any) -> None:
    model = TNet(config)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    groups = parameter_groups(model, OptimConfig())
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert id(frozen) not in found


def test_the_backbone_has_its_rate_and_biases_and_norms_do_not_decay() -> None:
    model = TNet(tiny_config())
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    small = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm)
    }
    assert backbone and small & backbone and small - backbone
    groups = parameter_groups(model, OptimConfig(lr=0.5, backbone_lr=0.125, weight_decay=0.25))
    assert len(groups) == 4
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.125 if id(parameter) in backbone else 0.5)
            assert group["weight_decay"] == (0 if id(parameter) in small else 0.25)
    assert {group["lr"] for group in parameter_groups(model, OptimConfig(lr=0.5))} == {0.5}
    assert {group["lr"] for group in parameter_groups(model, OptimConfig(lr=0.5, backbone_lr=0.0))} == {0.5, 0.0}
    assert {group["weight_decay"] for group in parameter_groups(model, OptimConfig("adam", weight_decay=1.0))} == {0}


# --- measuring


def test_accuracy_of_one_label_counts_images_not_classes() -> None:
    metric = accuracy_metric(3, False)
    metric.update(torch.eye(3)[[0, 0, 0, 1]], torch.tensor([0, 0, 0, 2]))
    assert float(metric.compute()) == 0.75


def test_accuracy_of_several_labels_wants_all_of_them() -> None:
    metric = accuracy_metric(3, True)
    metric.update(torch.tensor([[0.9, 0.1, 0.6], [0.9, 0.6, 0.1]]), torch.tensor([[1, 0, 1], [1, 0, 0]]))
    assert float(metric.compute()) == 0.5


@pytest.mark.parametrize(
    ("policies", "levels", "monitor"),
    [
        (("random", "topk"), 2, "val/accuracy"),
        (("random", "centre"), 2, "val/accuracy_random"),
        ((), 2, "val/accuracy_0_looks"),
        (("topk",), 1, "val/accuracy_0_looks"),
    ],
)
def test_the_best_model_is_chosen_by_what_is_measured(policies: Any, levels: int, monitor: str) -> None:
    looks = (2,) if levels > 1 else ()
    module = TNetModule(tiny_recipe(train={"eval_policies": policies}, model={"levels": levels, "looks": looks}))
    assert module.monitor == monitor
    assert set(module.accuracy) == {"0", *(policies if levels > 1 else ())}


def test_a_given_model_is_gone_on_from() -> None:
    model = TNet(tiny_config())
    assert TNetModule(tiny_recipe(), model).model is model


# --- progress


class _Trainer:
    def __init__(self, steps: float) -> None:
        self.estimated_stepping_batches = steps


@pytest.mark.parametrize(
    ("steps", "elapsed", "progress"),
    [(10, 0.0, 0.4), (10, 0.7, 0.7), (10, 0.1, 0.4), (2, 0.0, 1.0), (math.inf, 0.3, 0.3)],
)
def test_progress_is_that_of_whatever_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, steps: float, elapsed: float, progress: float
) -> None:
    module = TNetModule(tiny_recipe())
    monkeypatch.setattr(TNetModule, "trainer", _Trainer(steps))
    module.elapsed_share = elapsed
    assert module.progress(4) == progress


# --- one step, without a trainer


class Logged(TNetModule):
    """Keeps what would be logged."""

    def __init__(self, **changes: Any) -> None:
        recipe = tiny_recipe(**changes)
        super().__init__(replace(recipe, model=replace(recipe.model, num_classes=5)))
        self.found: dict[str, Any] = {}

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.found[name] = value

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.found |= dictionary


def batch(images: int = 3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 1, 96, 96), generator=generator, dtype=torch.uint8)
    return Batch(pixels, torch.arange(images) % 5, [str(i) for i in range(images)])


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ({}, {"accuracy_0_looks", "accuracy", "accuracy_random"}),
        (
            {"train": {"eval_policies": ("random", "centre")}},
            {"accuracy_0_looks", "accuracy_random", "accuracy_centre"},
        ),
        ({"model": {"levels": 1, "looks": ()}}, {"accuracy_0_looks"}),
    ],
)
def test_the_best_epoch_is_chosen_by_something_that_is_measured(changes: dict[str, Any], measured: set[str]) -> None:
    module = Logged(**changes).eval()
    module.validation_step(batch(), 0)
    assert module.found.keys() == {f"val/{name}" for name in measured} and module.monitor in module.found


def test_validation_measures_each_policy_with_the_same_random_looks_every_time() -> None:
    module = Logged().eval()
    images, targets, *_ = batch(5, 7)
    with torch.no_grad():
        torch.manual_seed(1)
        module.validation_step(batch(5, 7), 3)
        torch.manual_seed(3)  # the number of the batch
        outputs = [module.model(images, looks=0), module.model(images), module.model(images, policy="random")]
    expected = [float((output.logits.argmax(dim=1) == targets).sum()) / 5 for output in outputs]
    assert [float(metric.compute()) for metric in module.accuracy.values()] == pytest.approx(expected)  # type: ignore[operator]


def test_validation_leaves_training_its_random_numbers() -> None:
    module = Logged().eval()
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    module.validation_step(batch(), 0)
    assert torch.equal(torch.rand(3), expected)


def test_a_step_logs_every_term() -> None:
    module = Logged(objective={"entropy_weight": 0.1, "l2_weight": 1e-4})
    loss = module.training_step(batch(), 0)
    terms = {"cross_entropy", "cross_entropy_per_feature", "reinforce", "reinforce_per_feature", "entropy", "l2"}
    others = {"loss", "accuracy", "region_accuracy", "baseline", "location_entropy"}
    assert module.found.keys() == {f"train/{name}" for name in terms | others} | {"loss"}
    assert float(sum(module.found[f"train/{name}"] for name in terms)) == pytest.approx(float(loss.detach()))
    assert loss.requires_grad and not any(isinstance(v, Tensor) and v.requires_grad for v in module.found.values())
    assert 0 < float(module.found["train/location_entropy"]) <= math.log(9) + 1e-6


def test_a_step_draws_the_same_whatever_came_before() -> None:
    module = Logged()
    losses = []
    for drawn, seeded in ((0, True), (5, True), (7, False)):
        torch.rand(drawn)
        if seeded:
            module.on_train_batch_start(batch(), 0)
        module.objective.baseline.fill_(0.5)
        losses.append(float(module.training_step(batch(), 0).detach()))
    assert losses[0] == losses[1] != losses[2]  # dropout and sampled cells: random unless seeded


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_step_and_term(value: float) -> None:
    module = Logged()
    with torch.no_grad():
        module.model.classifier.bias[0] = value
    with pytest.raises(TrainingError, match=r"nan at step 0 \(in cross_entropy"):
        module.training_step(batch(), 0)


# --- mixed pictures

WHOLE: dict[str, Any] = {"model": {"levels": 1, "looks": (), "dropout": 0.0}, "train": {"mixup_alpha": 0.4}}


def test_a_mixed_step_is_cross_entropy_to_mixed_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Logged(**WHOLE).eval()
    share = 0.3
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(share))
    images, targets, *_ = batch(4)
    assert isinstance(images, Tensor)
    loss = module.training_step(batch(4), 0)
    mixed = (share * images.float() + (1 - share) * images.roll(1, 0).float()).round().byte()
    logits = module.model(mixed).logits.detach()
    soft = share * F.one_hot(targets, 5) + (1 - share) * F.one_hot(targets.roll(1), 5)
    assert float(loss.detach()) == pytest.approx(float(F.cross_entropy(logits, soft.float())), rel=1e-5)
    right = share * (logits.argmax(1) == targets) + (1 - share) * (logits.argmax(1) == targets.roll(1))
    assert float(module.found["train/accuracy"]) == pytest.approx(float(right.mean()))


def test_shares_of_a_mixture_are_drawn_anew_each_step_and_by_the_step() -> None:
    module = Logged(**WHOLE)
    losses = []
    for seeded in (True, True, False):
        if seeded:
            module.on_train_batch_start(batch(), 0)
        losses.append(float(module.training_step(batch(), 0).detach()))
    assert losses[0] == losses[1] != losses[2]


def test_pictures_of_different_sizes_cannot_be_mixed() -> None:
    images = [torch.zeros(1, 96, 96, dtype=torch.uint8), torch.zeros(1, 96, 100, dtype=torch.uint8)]
    with pytest.raises(ConfigError, match=r"data\.augment\.resize_px"):
        Logged(**WHOLE).training_step(Batch(images, torch.tensor([0, 1]), ["a", "b"]), 0)


# --- a teacher


@pytest.fixture
def teacher(tmp_path: Any) -> str:
    torch.manual_seed(5)
    save_model(TNet(tiny_config(levels=1, looks=(), dropout=0.5, base_px=64)), tmp_path / "teacher")
    return str(tmp_path / "teacher")


def test_a_teacher_adds_the_divergence_from_its_answers(teacher: str) -> None:
    module = Logged(train={"teacher": teacher, "teacher_weight": 0.3, "teacher_temperature": 2.0}).eval()
    loss = module.training_step(batch(4), 0)
    images = batch(4).images
    p = load_model(teacher)(images).logits.detach().div(2).softmax(1).double()
    q = module.model(images).logits.detach().div(2).softmax(1).double()
    expected = 0.3 * 4 * float((p * (p / q).log()).sum(1).mean())
    assert expected > 1e-3
    assert float(module.found["train/teacher"]) == pytest.approx(expected, rel=1e-4)
    terms = [value for name, value in module.found.items() if name.removeprefix("train/") in TERMS]
    assert float(loss.detach()) == pytest.approx(float(sum(terms)), rel=1e-5)


def test_a_teacher_of_several_labels_diverges_label_by_label(tmp_path: Any) -> None:
    torch.manual_seed(5)
    save_model(TNet(tiny_config(levels=1, looks=(), multilabel=True)), tmp_path / "teacher")
    module = Logged(
        model={"multilabel": True}, train={"teacher": str(tmp_path / "teacher"), "teacher_temperature": 1.0}
    ).eval()
    images, _, names, _ = batch(4)
    module.training_step(Batch(images, torch.eye(5)[:4], names), 0)
    p = load_model(tmp_path / "teacher")(images).logits.detach().sigmoid().double()
    q = module.model(images).logits.detach().sigmoid().double()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()  # as the cross entropy of labels
    assert float(module.found["train/teacher"]) == pytest.approx(float(expected), rel=1e-4)


def test_a_teacher_is_neither_trained_nor_saved(teacher: str) -> None:
    module = Logged(train={"teacher": teacher})
    plain = Logged()
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert len(list(module.parameters())) == len(list(plain.parameters()))
    module.train()
    module.training_step(batch(4), 0).backward()
    assert not module.teacher[0].training and all(item.grad is None for item in module.teacher[0].parameters())


def test_a_teacher_of_other_classes_is_refused(tmp_path: Any) -> None:
    save_model(TNet(tiny_config(num_classes=7)), tmp_path / "teacher")
    with pytest.raises(ConfigError, match=r"teacher.* 7 classes .* 5 classes"):
        Logged(train={"teacher": str(tmp_path / "teacher")})


# --- by class


def test_metrics_by_class_equal_hand_counts() -> None:
    metrics = class_metrics(tiny_config(num_classes=2))
    probs, targets = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]]), torch.tensor([0, 0, 0, 1])
    metrics["auc"].update(probs[:, 1], targets)
    for name in ("balanced_accuracy", "recall"):
        metrics[name].update(probs, targets)
    assert float(metrics["auc"].compute()) == pytest.approx(1 / 3)  # 0.3 is above 0.1 of 0.1, 0.4 and 0.8
    assert metrics["recall"].compute().tolist() == pytest.approx([2 / 3, 0])
    assert float(metrics["balanced_accuracy"].compute()) == pytest.approx(1 / 3)
    assert set(class_metrics(tiny_config(num_classes=21))) == {"balanced_accuracy"}
    assert class_metrics(tiny_config(multilabel=True)) == {}
