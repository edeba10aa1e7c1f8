"""What a teacher finds in the cells of an image, against crops and linear networks, and how the locator learns it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import TINY_BAGNET, TINY_RESNET, pictures, tiny_config, tiny_recipe
from torch import Tensor

from tnet.backbones import BackboneConfig
from tnet.baselines.ips import IPSConfig
from tnet.data.augment import AugmentConfig
from tnet.data.sample import Batch
from tnet.errors import CheckpointError, ConfigError
from tnet.geometry import Grid, whole_images
from tnet.models import LocatorConfig, PolicyConfig, PositionConfig, TNet
from tnet.models.io import save_model
from tnet.models.kind import build_model
from tnet.models.tnet import TNetOutput
from tnet.training.guide import Guide, GuideConfig, evidence_in_cells, worth_of_cells
from tnet.training.module import TNetModule
from tnet.training.run import train
from tnet.traversal.policies import FixedCells

THIRDS = Grid(3, 3, 1 / 3)  # cells that neither overlap nor leave gaps
TARGETS = torch.tensor([1, 4])


def plain(**changes: Any) -> TNet:
    """A plain network in evaluation mode, whose answers differ from class to class."""
    torch.manual_seed(5)
    model = TNet(tiny_config(**{"levels": 1, "looks": (), "position": PositionConfig("none"), **changes})).eval()
    torch.nn.init.normal_(model.classifier.weight)
    return model


def images(*sizes_hw: tuple[int, int]) -> Tensor:
    return torch.stack(pictures(*(sizes_hw or ((96, 96), (96, 96)))))


# --- evidence


def test_evidence_is_what_a_cell_adds_to_the_log_odds() -> None:
    """The last map of 3 x 3 positions is averaged and classified linearly, so each position has its own log-odds."""
    teacher = plain(backbone=replace(TINY_RESNET, tap=-1), base_px=96)
    found = evidence_in_cells(teacher, images(), TARGETS, THIRDS)
    pixels = teacher.pixels(teacher.scene(images()), whole_images([(96, 96), (96, 96)]), 96)
    cells = teacher.describe(pixels, torch.tensor([False, False])).cell_map.detach()
    assert cells.shape[2:] == (3, 3)
    weight = teacher.classifier.weight.detach()
    for image, target in enumerate(TARGETS.tolist()):
        logits = teacher(images(), looks=0).logits[image].detach()
        others = logits.exp().index_fill(0, torch.tensor([target]), 0.0)
        odds = weight[target] - (others[:, None] * weight).sum(0) / others.sum()
        expected = torch.einsum("d,dhw->hw", odds, cells[image]).flatten()
        torch.testing.assert_close(found[image], expected, rtol=1e-4, atol=1e-5)
        assert float(expected.std()) > 1e-3


def test_evidence_moves_with_the_image() -> None:
    """A bright spot in one cell is evidence there; flipped, in the flipped cell."""
    teacher = plain(backbone=replace(TINY_RESNET, tap=-1), base_px=96)
    image = torch.full((1, 1, 96, 96), 128, dtype=torch.uint8)
    image[..., 8:24, 8:24] = 255
    target = torch.tensor([2])
    one, other = (evidence_in_cells(teacher, item, target, THIRDS)[0] for item in (image, image.flip(-1)))
    least = (one - one.median()).abs().argmax()
    assert int(least) == 0 and int((other - other.median()).abs().argmax()) == 2


def test_evidence_of_several_labels_is_that_of_those_present() -> None:
    teacher = plain(backbone=replace(TINY_RESNET, tap=-1), base_px=96, multilabel=True)
    labels = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
    found = evidence_in_cells(teacher, images(), labels, THIRDS)
    pixels = teacher.pixels(teacher.scene(images()), whole_images([(96, 96), (96, 96)]), 96)
    cells = teacher.describe(pixels, torch.tensor([False, False])).cell_map.detach()
    weight = teacher.classifier.weight.detach()
    expected = torch.einsum("d,dhw->hw", weight[0] + weight[3], cells[0]).flatten()
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    assert not found[1].any()


# --- the worth of cells


def test_worth_to_a_plain_network_is_its_answer_to_the_crop() -> None:
    teacher, given = plain(), images((96, 96), (96, 96))
    found = worth_of_cells(teacher, given, TARGETS, Grid(3, 3, 0.5), 32)
    starts = [0, 24, 48]  # cells of 48 px
    for image, target in enumerate(TARGETS.tolist()):
        likelihoods = []
        for y0 in starts:
            for x0 in starts:
                crop = given[image : image + 1, :, y0 : y0 + 48, x0 : x0 + 48]
                likelihoods.append(float(teacher(crop, looks=0).logits.detach().log_softmax(1)[0, target]))
        expected = torch.tensor(likelihoods) - sum(likelihoods) / 9
        torch.testing.assert_close(found[image], expected, rtol=1e-4, atol=1e-4)


def test_a_plain_network_sees_cells_at_the_size_of_looks_not_at_its_own() -> None:
    small, large = plain(), plain(base_px=64)
    large.load_state_dict(small.state_dict())
    worth = [worth_of_cells(model, images(), TARGETS, Grid(3, 3, 0.5), 32) for model in (small, large)]
    torch.testing.assert_close(*worth)


def test_worth_to_a_tnet_is_its_answer_to_the_whole_and_the_cell() -> None:
    torch.manual_seed(5)
    teacher = TNet(tiny_config(locator=LocatorConfig("squeeze", context="collected"))).eval()
    found = worth_of_cells(teacher, images(), TARGETS, teacher.grid, 32)
    likelihoods = []
    for cell in range(9):
        output = teacher(images(), looks=1, policy=FixedCells([cell]))
        likelihoods.append(output.logits.detach().log_softmax(1).gather(1, TARGETS[:, None])[:, 0])
    expected = torch.stack(likelihoods, dim=1)
    torch.testing.assert_close(found, expected - expected.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_images_of_different_sizes_and_another_kind_of_teacher() -> None:
    torch.manual_seed(5)
    teacher = build_model(IPSConfig(backbone=TINY_RESNET, num_classes=5, in_channels=1, patch_px=16)).eval()
    given = pictures((64, 64), (96, 128))
    found = worth_of_cells(teacher, given, TARGETS, Grid(2, 2, 0.5), 32)
    crops = torch.stack([given[0][:, y0 : y0 + 32, x0 : x0 + 32] for y0 in (0, 32) for x0 in (0, 32)])
    likelihood = teacher(crops).logits.detach().log_softmax(1)[:, TARGETS[0]]
    torch.testing.assert_close(found[0], likelihood - likelihood.mean(), rtol=1e-3, atol=1e-5)
    assert found.shape == (2, 4) and float(found[1].std()) > 0


# --- the term of the loss


@pytest.fixture
def folder(tmp_path: Path) -> str:
    save_model(plain(), tmp_path / "teacher")
    return str(tmp_path / "teacher")


class Logged(TNetModule):
    """Keeps what would be logged, at a share of the training."""

    def __init__(self, done: float = 0.0, **changes: Any) -> None:
        recipe = tiny_recipe(**changes)
        super().__init__(replace(recipe, model=replace(recipe.model, num_classes=5)))
        self.found: dict[str, Any] = {}
        self.done = done

    def progress(self, step: int) -> float:
        return self.done

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.found[name] = value

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.found |= dictionary


BATCH = Batch(images(), TARGETS, ["a", "b"])


@pytest.mark.parametrize("by", ["evidence", "cells"])
def test_the_locator_learns_the_softmax_of_the_map(folder: str, by: Any) -> None:
    guide = GuideConfig(teacher=folder, by=by, temperature=0.5, share=(0.8, 0.2))
    module = Logged(done=0.25, train={"guide": guide}).eval()
    loss = module.training_step(BATCH, 0)
    measure = evidence_in_cells if by == "evidence" else worth_of_cells
    options = () if by == "evidence" else (32,)
    p = measure(plain(), images(), TARGETS, module.model.config.grid, *options).div(0.5).softmax(1)  # type: ignore
    q = module.model(images()).location_probs.detach()
    expected = (0.8 + 0.25 * (0.2 - 0.8)) * float((p * (p / q).log()).sum(1).mean())
    assert expected > 1e-4
    assert float(module.found["train/guide"]) == pytest.approx(expected, rel=1e-3)
    module.zero_grad()
    loss.backward()
    with_guide = {name: item.grad for name, item in module.model.named_parameters() if item.grad is not None}
    without = Logged(train={}).eval()
    without.load_state_dict(module.state_dict())
    without.training_step(BATCH, 0).backward()
    for name, parameter in without.model.named_parameters():
        same = parameter.grad is None or torch.allclose(with_guide[name], parameter.grad, rtol=1e-4, atol=1e-7)
        assert same or name.startswith("locator."), name
    assert module.guide is not None and all(item.grad is None for item in module.guide.teacher.parameters())
    assert not any("guide" in name for name in module.state_dict())


def test_the_guide_ends_with_its_share(folder: str) -> None:
    module = Logged(done=1.0, train={"guide": GuideConfig(teacher=folder)})
    module.training_step(BATCH, 0)
    assert "train/guide" not in module.found


def test_looks_are_random_at_first_and_the_locator_learns(folder: str) -> None:
    """The most probable cells are not preferred, and yet its scores are there to learn from."""
    changes: dict[str, Any] = {"train": {"random_looks_epochs": 1, "guide": GuideConfig(teacher=folder)}}
    module = Logged(**changes, objective={"reinforce_weight": 0.0}, model={"policy": PolicyConfig(train="topk")})
    chosen: list[Tensor] = []
    module.model.register_forward_hook(lambda model, inputs, output: chosen.append(output.regions.cell))
    many = images()[:1].expand(120, -1, -1, -1)
    module.training_step(Batch(many, TARGETS[:1].expand(120), ["a"] * 120), 0).backward()
    counts = chosen[0][chosen[0] >= 0].bincount(minlength=9)
    # 240 cells of 9, two different ones per image: 26.7 each, with a standard deviation below 5
    assert len(counts) == 9 and int(counts.sum()) == 240 and int(counts.min()) > 8 and int(counts.max()) < 48
    learned = [name for name, item in module.model.named_parameters() if item.grad is not None and item.grad.any()]
    assert any(name.startswith("locator.") for name in learned)


def test_a_model_teaches_itself_by_its_own_evidence() -> None:
    module = Logged(train={"guide": GuideConfig(teacher="self")}, model={"dropout": 0.9}).eval()
    model = module.model
    assert isinstance(model, TNet)
    torch.nn.init.normal_(model.classifier.weight)
    module.training_step(BATCH, 0).backward()
    p = evidence_in_cells(model, images(), TARGETS, model.grid).softmax(1)
    q = model(images()).location_probs.detach()
    expected = float((p * (p / q).log()).sum(1).mean())
    assert expected > 1e-4
    assert float(module.found["train/guide"]) == pytest.approx(expected, rel=1e-3)
    # In training the evidence is that of evaluation, without dropout, and leaves the mode as it is.
    module.train()
    assert module.guide is not None
    asked: list[bool] = []
    model.backbone.register_forward_pre_hook(lambda backbone, inputs: asked.append(backbone.training))
    module.training_step(BATCH, 0)
    assert asked == [True, True, False] and model.training


def test_whole_images_first_and_then_looks(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"train": {"no_looks_epochs": 1, "epochs": 3, "guide": GuideConfig(teacher=folder)}}
    weights = []
    for epoch, done in ((0, 0.0), (1, 1 / 3), (2, 2 / 3)):
        torch.manual_seed(0)
        module = Logged(**changes, done=done).eval()
        monkeypatch.setattr(Logged, "current_epoch", epoch)
        outputs: list[TNetOutput] = []
        module.model.register_forward_hook(lambda model, inputs, output, found=outputs: found.append(output))
        module.training_step(BATCH, 0).backward()
        assert len(outputs[0].regions) == (2 if epoch == 0 else 6)
        learned = [name for name, item in module.model.named_parameters() if item.grad is not None]
        assert any(name.startswith("locator.") for name in learned) == (epoch > 0)
        weights.append(module.found.get("train/guide"))
    assert weights[0] is None
    assert float(weights[1]) == pytest.approx(2 * float(weights[2])), "it fades from the first looks on"


@pytest.mark.parametrize(("no_looks_epochs", "epoch", "batch", "starts"), [
    (2, 2, 0, True), (2, 1, 0, False), (2, 2, 1, False), (2, 3, 0, False), (0, 0, 0, False),
])  # fmt: skip
def test_separate_weights_for_looks_start_from_those_of_whole_images(
    no_looks_epochs: int, epoch: int, batch: int, starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    separate = {"look_weights": "separate", "batch_norm": "shared"}
    module = Logged(model=separate, train={"no_looks_epochs": no_looks_epochs, "epochs": 4})
    model, whole = module.model, dict(module.model.backbone.named_parameters())
    assert isinstance(model, TNet) and model.look_backbone is not None
    for parameter in whole.values():
        torch.nn.init.normal_(parameter)
    monkeypatch.setattr(Logged, "current_epoch", epoch)
    module.on_train_batch_start(BATCH, batch)
    looks = dict(model.look_backbone.named_parameters())
    assert [torch.equal(looks[name], value) for name, value in whole.items()] == [starts] * len(whole)
    assert all(looks[name] is not value and looks[name].requires_grad for name, value in whole.items())


def test_a_run_without_looks_at_first_is_resumed(tmp_path: Path) -> None:
    changes = {"no_looks_epochs": 1, "epochs": 2, "guide": GuideConfig(teacher="self"), "recalibrate_batches": 1}
    train(tiny_recipe(train=changes), tmp_path, progress=False)
    longer = train(tiny_recipe(train={**changes, "epochs": 3}), tmp_path, resume=True, progress=False)
    guided = [row.get("train/guide") for row in longer.metrics]
    assert guided[0] is None and None not in guided[1:] and len(guided) == 3


# --- what cannot be


def recipe_with(guide: dict[str, Any], **changes: Any) -> Any:
    return tiny_recipe(train={"guide": GuideConfig(**{"teacher": "runs/plain", **guide})}, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"levels": 1, "looks": ()}}, r"no locator to teach \(model.looks is \[\]\)"),
        ({"model": {"policy": PolicyConfig(train="random")}}, "model.policy.train is random"),
    ],
)
def test_a_guide_needs_a_locator(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.guide\.teacher is runs/plain.*{message}"):
        recipe_with({}, **changes)


@pytest.mark.parametrize(
    "augment", [{"crop_area": (0.5, 1.0)}, {"rotation": 5.0}, {"translation": 0.1}, {"rand_augment": 1}]
)
def test_stored_maps_follow_flips_and_quarter_turns_only(augment: dict[str, Any]) -> None:
    turned = AugmentConfig(horizontal_flip=True, quarter_turns=True, brightness=0.2)
    for config in (turned, replace(turned, **augment)):
        data = {"augment": config}
        recipe_with({}, data=data)
        if config is turned:
            recipe_with({"maps": "maps.safetensors"}, data=data)
            continue
        with pytest.raises(ConfigError, match=rf"maps is maps.safetensors, but data\.augment\.{next(iter(augment))}"):
            recipe_with({"maps": "maps.safetensors"}, data=data)
    with pytest.raises(ConfigError, match=r"data\.augment\.quarter_turns"):
        recipe_with({"maps": "m"}, data={"augment": turned}, model={"grid": Grid(3, 4, 0.5)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"share": (1.0, -0.1)}, r"share is \[1.0, -0.1\]"),
        ({"share": (float("inf"), 0.0)}, "share"),
        ({"maps": "maps.safetensors"}, "maps is maps.safetensors, but train.guide.teacher is null"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.guide\.{message}"):
        GuideConfig(**values)


@pytest.mark.parametrize("changes", [{"by": "cells"}, {"maps": "maps.safetensors"}])
def test_a_model_that_teaches_itself_changes(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"train\.guide\.teacher is self, which changes"):
        recipe_with({"teacher": "self", **changes})


@pytest.mark.parametrize("epochs", [2, 3])
def test_some_epoch_has_looks(epochs: int) -> None:
    with pytest.raises(ConfigError, match=rf"no_looks_epochs is {epochs} and train\.epochs 2, which leaves no epoch"):
        tiny_recipe(train={"no_looks_epochs": epochs, "epochs": 2})


@pytest.mark.parametrize("name", ["no_looks_epochs", "random_looks_epochs"])
def test_first_epochs_need_looks(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 1, but the model is not a TNet with looks"):
        tiny_recipe(train={name: 1}, model={"levels": 1, "looks": ()})


def test_teachers_that_do_not_fit(tmp_path: Path) -> None:
    def guide(by: Any, **changes: Any) -> Guide:
        return Guide(GuideConfig(teacher=str(tmp_path / "model"), by=by), TNet(tiny_config(**changes)))

    with pytest.raises(CheckpointError):
        guide("cells")
    save_model(plain(num_classes=7), tmp_path / "model")
    with pytest.raises(ConfigError, match=r"train\.guide\.teacher .* has 7 classes .* 5 classes"):
        guide("cells")
    save_model(plain(backbone=TINY_BAGNET, base_px=96), tmp_path / "model", overwrite=True)
    with pytest.raises(ConfigError, match="16 px"):
        guide("cells", look_px=16)
    save_model(TNet(tiny_config(grid=Grid(2, 2, 0.5))), tmp_path / "model", overwrite=True)
    with pytest.raises(ConfigError, match="the same grid"):
        guide("cells")
    ips = IPSConfig(backbone=TINY_RESNET, num_classes=5, in_channels=1, patch_px=16)
    save_model(build_model(ips), tmp_path / "model", overwrite=True)
    assert guide("cells").maps is None
    with pytest.raises(ConfigError, match="no evidence map"):
        guide("evidence")


@pytest.mark.parametrize("settings", [{"frozen_overview": True}, {"frozen_stages": 4}])
def test_a_frozen_map_cannot_be_explained(settings: dict[str, Any]) -> None:
    module = Logged(model={"look_weights": "separate"}, train={"guide": GuideConfig(teacher="self"), **settings})
    with pytest.raises(ConfigError, match=r"frozen_overview or train\.frozen_stages freezes the map"):
        module.training_step(BATCH, 0)


def test_a_map_that_the_answer_does_not_come_from() -> None:
    """Intermediate maps of a vision transformer are copies beside the path to its answer."""
    kwargs: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    teacher = plain(backbone=BackboneConfig("vit_tiny_patch16_224", kwargs=kwargs), base_px=64)
    with pytest.raises(ConfigError, match="vit_tiny_patch16_224 .* does not depend on its map"):
        evidence_in_cells(teacher, images(), TARGETS, THIRDS)
