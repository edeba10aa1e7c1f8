from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pytest
import torch
from tests.helpers import TINY_BAGNET, TINY_RESNET, tiny_config, tiny_recipe
from torch import Tensor, nn

from tnet.backbones.base import batch_norms
from tnet.baselines.ips import IPS, IPSConfig
from tnet.data.loading import Share
from tnet.data.sample import Batch
from tnet.errors import ConfigError
from tnet.models.io import load_model, save_model
from tnet.models.tnet import TNet, TNetOutput
from tnet.training import callbacks
from tnet.training.callbacks import RecalibrateNorms, recalibrate_norms
from tnet.training.data import TNetData
from tnet.training.module import TNetModule
from tnet.training.recipe import with_classes
from tnet.training.run import train


def batches(count: int = 3, size: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randint(0, 256, (size, 1, 96, 96), generator=generator, dtype=torch.uint8),
            torch.zeros(size, dtype=torch.int64),
            ["made"] * size,
        )
        for _ in range(count)
    ]


def tiny_model(batch_norm: Literal["shared", "per_level"]) -> TNet:
    """With statistics that are far from any image's."""
    model = TNet(tiny_config(batch_norm=batch_norm))
    for norm in batch_norms(model):
        for name in ("running_mean", "running_var", "region_mean", "region_var"):
            if hasattr(norm, name):
                getattr(norm, name).fill_(17)
    return model


def first_norm_inputs(model: TNet, given: list[Batch]) -> list[Tensor]:
    """What the first batch norm, which no other statistics influence, is given: at level 0, 1, 0, 1, ..."""
    inputs: list[Tensor] = []
    handle = batch_norms(model)[0].register_forward_hook(lambda _, args, __: inputs.append(args[0].detach().clone()))
    with torch.no_grad():
        for batch in given:
            model(batch.images)
    handle.remove()
    return inputs


def mean_and_var(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Averaged over the inputs, each counted once (variances unbiased, as PyTorch keeps them)."""
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    return means, torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)


def test_shared_statistics_are_the_plain_average_over_all_that_is_seen() -> None:
    # With all cells looked at, what is seen does not depend on the statistics.
    model = TNet(tiny_config(batch_norm="shared", looks=(9,))).eval()
    given = batches()
    mean, var = mean_and_var(first_norm_inputs(model, given))
    recalibrate_norms(model, iter(given))
    norm = batch_norms(model)[0]
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)


def test_each_population_gets_its_own_average() -> None:
    model = TNet(tiny_config(batch_norm="per_level", looks=(9,))).eval()
    given = batches()
    inputs = first_norm_inputs(model, given)
    assert len(inputs) == 6 and inputs[0].shape[0] == 4 and inputs[1].shape[0] == 36
    recalibrate_norms(model, given)
    norm = batch_norms(model)[0]
    for name, seen in (("running", inputs[::2]), ("region", inputs[1::2])):
        mean, var = mean_and_var(seen)
        torch.testing.assert_close(norm.get_buffer(f"{name}_mean"), mean)
        torch.testing.assert_close(norm.get_buffer(f"{name}_var"), var)
    assert not torch.allclose(norm.get_buffer("running_mean"), norm.get_buffer("region_mean"))
    assert int(norm.get_buffer("num_batches_tracked")) == int(norm.get_buffer("region_batches")) == 3


@pytest.mark.parametrize("batch_norm", ["shared", "per_level"])
def test_what_was_there_before_does_not_matter_and_twice_is_once(batch_norm: Literal["shared", "per_level"]) -> None:
    model = TNet(tiny_config(batch_norm=batch_norm, looks=(9,)))
    far = TNet(tiny_config(batch_norm=batch_norm, looks=(9,)))
    far.load_state_dict(model.state_dict())
    for norm in batch_norms(far):
        norm.get_buffer("running_mean").fill_(17)
    given = batches(1)
    recalibrate_norms(model, given)
    recalibrate_norms(far, given)
    recalibrate_norms(far, given)
    others = far.state_dict()
    assert all(torch.equal(tensor, others[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", ["shared", "per_level"])
def test_only_the_statistics_change(batch_norm: Literal["shared", "per_level"], training: bool) -> None:
    model = tiny_model(batch_norm).train(training)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    momenta = [norm.momentum for norm in batch_norms(model)]
    recalibrate_norms(model, batches(2))
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [norm.momentum for norm in batch_norms(model)] == momenta and None not in momenta
    assert all(parameter.grad is None for parameter in model.parameters())
    for norm in batch_norms(model):
        assert not (norm.get_buffer("running_mean") == 17).any()
        if batch_norm == "per_level":
            assert not (norm.get_buffer("region_mean") == 17).any()


def test_an_error_in_between_leaves_modes_and_momentum() -> None:
    model = tiny_model("shared").eval()

    def failing() -> object:
        yield batches(1)[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recalibrate_norms(model, failing())  # type: ignore[arg-type]
    assert not any(module.training for module in model.modules())
    assert all(norm.momentum is not None for norm in batch_norms(model))


def test_a_model_without_batch_norm_is_left_alone() -> None:
    model = TNet(tiny_config())
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    assert not batch_norms(model)

    def none_wanted() -> object:
        raise AssertionError("images were asked for")
        yield

    recalibrate_norms(model, none_wanted())  # type: ignore[arg-type]


class _Trainer(pl.Trainer):
    """What is asked of a trainer, and no more."""

    current_epoch = 2
    datamodule: TNetData | None = None

    def __init__(self, datamodule: TNetData) -> None:
        self.datamodule = datamodule


def test_the_callback_draws_no_random_numbers_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(model={"backbone": TINY_RESNET})
    data = TNetData(recipe)
    module = TNetModule(with_classes(recipe, data.train_data.classes, data.train_data.multilabel))
    trainer = _Trainer(data)
    seen: list[int] = []
    original = TNet.forward

    def forward(self: TNet, images: Tensor) -> TNetOutput:
        seen.append(len(images))
        return original(self, images)

    monkeypatch.setattr(TNet, "forward", forward)
    state = torch.get_rng_state()
    RecalibrateNorms(2).on_validation_start(trainer, module)
    assert torch.equal(torch.get_rng_state(), state)
    assert seen == [8, 8]
    first = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    torch.manual_seed(99)
    RecalibrateNorms(2).on_validation_start(trainer, module)
    assert all(torch.equal(tensor, first[name]) for name, tensor in module.model.state_dict().items())
    seen.clear()
    RecalibrateNorms(1000).on_validation_start(trainer, module)
    assert seen == [8] * 5, "no image counts twice"


def test_norms_that_no_batch_goes_through_keep_their_statistics() -> None:
    """An IPS that reuses what selection computed runs its backbone in evaluation mode only."""
    config = IPSConfig(backbone=TINY_RESNET, in_channels=1, patch_px=32, looks=2, heads=2, hidden=8, backbone_stages=2)
    for reuse in (True, False):
        torch.manual_seed(0)
        model = IPS(replace(config, reuse_embeddings=reuse)).eval()
        used = batch_norms(model.backbone)[0]
        used.running_mean.fill_(17)  # type: ignore[union-attr]
        recalibrate_norms(model, batches())
        assert bool((used.running_mean == 17).all()) is reuse


def test_processes_share_the_batches_of_a_recalibration(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(model={"backbone": TINY_RESNET})
    data = TNetData(recipe)
    module = TNetModule(with_classes(recipe, data.train_data.classes, data.train_data.multilabel))
    trainer = _Trainer(data)

    def measured(batches: int, share: Share) -> Tensor:
        monkeypatch.setattr(TNetData, "share", share)
        RecalibrateNorms(batches).on_validation_start(trainer, module)
        mean = batch_norms(module.model)[0].running_mean
        assert isinstance(mean, Tensor)
        return mean.clone()

    alone = measured(4, Share())
    parts = [measured(2, Share(rank, 2)) for rank in range(2)]
    assert not torch.equal(*parts)
    torch.testing.assert_close((parts[0] + parts[1]) / 2, alone)


def test_frozen_stages_are_recalibrated_once_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("per_level")
    save_model(model, tmp_path / "start")
    kept: list[int] = []
    original = callbacks.recalibrate_norms

    def recalibrate(model: TNet, batches: Iterable[Batch], frozen: Collection[nn.Module]) -> None:
        kept.append(len(frozen))
        original(model, batches, frozen)
        if len(kept) == 1:
            statistics.update(of_norms(model))

    def of_norms(model: TNet) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.named_buffers() if name.endswith(("_mean", "_var"))}

    statistics: dict[str, Tensor] = {}
    monkeypatch.setattr(callbacks, "recalibrate_norms", recalibrate)
    changes = {"epochs": 2, "recalibrate_batches": 1, "frozen_stages": 2, "start_from": str(tmp_path / "start")}
    recipe = tiny_recipe(model={"backbone": TINY_RESNET}, train=changes)
    trained = train(recipe, tmp_path / "run", progress=False).model
    assert kept[0] == 0 and kept[1] == kept[2] > 0
    before = dict(model.named_parameters())
    same = {name for name, value in trained.named_parameters() if name in before and torch.equal(value, before[name])}
    changed = {name for name, _ in trained.named_parameters()} - same
    first = ("backbone.model.conv1", "backbone.model.bn1", "backbone.model.layer1")
    assert not any(name.startswith(first) for name in changed)
    assert any(name.startswith("backbone.model.layer2") for name in changed)
    for name, value in of_norms(trained).items():
        assert torch.equal(value, statistics[name]) == name.startswith(first), name
        assert not (value == 17).any()


@pytest.mark.parametrize(
    ("changes", "fused"),
    [({}, True), ({"batch_norm": "per_level"}, False), ({"look_weights": "separate"}, True), ({"ema": 0.9}, False)],
)
def test_frozen_stages_are_fused_while_a_model_is_trained(
    changes: dict[str, Any], fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"batch_norm": "shared", **changes}
    settings = {"epochs": 1, "frozen_stages": 2, "recalibrate_batches": 1, "ema_decay": changes.pop("ema", None)}
    recipe = tiny_recipe(model={"backbone": TINY_RESNET, **changes}, train=settings)
    seen: list[int] = []
    step = TNetModule.training_step

    def count(module: TNetModule, batch: Batch, index: int) -> Tensor:
        seen.append(sum("forward" in vars(part) for part in module.model.modules()))
        return step(module, batch, index)

    monkeypatch.setattr(TNetModule, "training_step", count)
    models = [train(recipe, tmp_path / "run", progress=False).model]
    assert min(seen) == max(seen) and (seen[0] > 0) == fused
    assert all("forward" not in vars(part) for part in models[0].modules())
    monkeypatch.setattr(callbacks.FuseFrozen, "on_train_start", lambda *_: None)
    models.append(train(recipe, tmp_path / "slower", progress=False).model)
    assert seen[-1] == 0
    for (name, one), other in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("stages", [0, 2])
def test_a_frozen_overview_stays_as_it_is_while_looks_are_learned(
    stages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"backbone": TINY_RESNET, "look_weights": "separate", "batch_norm": "shared"}
    save_model(TNet(replace(tiny_config(), **model)), tmp_path / "start")
    settings = {"epochs": 1, "frozen_overview": True, "frozen_stages": stages, "recalibrate_batches": 1}
    recipe = tiny_recipe(model=model, train={**settings, "start_from": str(tmp_path / "start")})
    before = {name: value.clone() for name, value in load_model(tmp_path / "start").state_dict().items()}
    # Statistics of whole images are measured once before the training; afterwards they stay.
    after_first: dict[str, Tensor] = {}
    original = callbacks.recalibrate_norms

    def recalibrate(model: TNet, batches: Iterable[Batch], frozen: Collection[nn.Module]) -> None:
        original(model, batches, frozen)
        if not after_first:
            after_first.update({name: value.clone() for name, value in model.state_dict().items()})

    monkeypatch.setattr(callbacks, "recalibrate_norms", recalibrate)
    trained = train(recipe, tmp_path / "run", progress=False).model.state_dict()
    parts = {name: before[name] for name in before if name.startswith("backbone.") and name.endswith("weight")}
    assert parts and all(torch.equal(value, trained[name]) for name, value in parts.items())
    changed = {name for name, value in trained.items() if not torch.equal(value, after_first[name])}
    assert not any(name.startswith("backbone.") for name in changed)
    first = {name for name in changed if name.startswith("look_backbone.model.conv1")}
    assert bool(first) == (stages == 0)
    assert any(name.startswith("look_backbone.model.layer4") for name in changed)
    assert any(name.startswith("locator.") for name in changed) and "classifier.weight" in changed


@pytest.mark.parametrize("name", ["frozen_stages", "frozen_overview"])
def test_frozen_stages_need_a_backbone_of_timm(name: str) -> None:
    recipe = tiny_recipe(model={"backbone": TINY_BAGNET, "look_weights": "separate"}, train={name: 1})
    with pytest.raises(ConfigError, match=rf"{name} is 1.*timm"):
        TNetModule(recipe)


@pytest.mark.parametrize(
    ("model", "settings", "problem"),
    [
        ({}, {}, "no separate weights for looks"),
        ({"look_weights": "separate"}, {"no_looks_epochs": 1}, "no_looks_epochs is 1, which trains the overview"),
    ],
)
def test_a_frozen_overview_needs_looks_to_train(model: dict[str, Any], settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"frozen_overview is true, but .*{problem}"):
        tiny_recipe(model=model, train={"frozen_overview": True, **settings})
