"""Saving and loading: same answers, atomic writing, untrusted and damaged files."""

from __future__ import annotations

import json
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tests.helpers import TINY_RESNET, three_levels, tiny_config

from tnet.errors import CheckpointError, ClassesWarning, OutputError
from tnet.models.config import LocatorConfig, TNetConfig
from tnet.models.io import default_card, fill_from, load_model, read_config, save_model
from tnet.models.tnet import TNet
from tnet.weights import read_tensors


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(TNet(tiny_config()), tmp_path / "run" / "model")


def edit(folder: Path, **changes: Any) -> None:
    """Edit the saved configuration."""
    path = folder / "config.json"
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            data[key].update(value)
        else:
            data[key] = value
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(batch_norm="per_level", class_names=("1", "null", "a b", "é", "1e3")),
        three_levels(aggregation="weighted", multilabel=True),
        three_levels(aggregation="canvas", locator=LocatorConfig(context="collected")),
    ],
)
def test_loaded_model_gives_the_same_answers(config: TNetConfig, tmp_path: Path) -> None:
    model = TNet(config).train()
    images = torch.rand(3, 1, 96, 96)
    model(images)  # changes the running statistics
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert not loaded.training and loaded.config == config
    expected, actual = model.eval()(images), loaded(images)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.regions.at_level(1).box_l0_yxyx, expected.regions.at_level(1).box_l0_yxyx)


def test_saved_files(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert load_file(saved / "model.safetensors").keys() == TNet(tiny_config()).state_dict().keys()
    assert json.loads((saved / "config.json").read_text())["model_type"] == "tnet"


def test_load_from_a_run_folder(saved: Path) -> None:
    assert load_model(saved.parent).config == tiny_config()


def test_saving_again_replaces_the_models_files_and_no_others(saved: Path) -> None:
    (saved / "mine").write_text("x")
    with pytest.raises(OutputError, match="not empty.*overwrite"):
        save_model(TNet(three_levels()), saved)
    assert load_model(saved).config == tiny_config()
    save_model(TNet(three_levels()), saved, card="a card\n", overwrite=True)
    assert load_model(saved).config == three_levels()
    assert (saved / "README.md").read_text() == "a card\n" and (saved / "mine").read_text() == "x"
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_failed_save_keeps_the_old_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (saved / "model.safetensors").read_bytes()
    monkeypatch.setattr("tnet.models.io.default_card", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_model(TNet(three_levels()), saved, overwrite=True)
    assert (saved / "model.safetensors").read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


class KilledError(BaseException):
    """Nothing that anybody catches."""


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_process_killed_at_any_time_leaves_a_model(moved: int, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, left = os.replace, [moved]

    def kill(*paths: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KilledError
        replace(*paths)

    model = load_model(saved)
    model.classifier.bias.data += 1
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(os, "replace", kill)
        save_model(model, saved, overwrite=True)
    assert torch.equal(load_model(saved).classifier.bias, model.classifier.bias) == (moved > 0)


def test_weights_are_never_read_with_the_configuration_of_another_model(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def kill(source: Path, target: Path) -> None:
        replace(source, target)
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(os, "replace", kill)
        save_model(TNet(tiny_config(class_names=tuple("edcba"))), saved, overwrite=True)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_model(saved)


@pytest.mark.parametrize("reason", ["I/O error: No space left on device (os error 28)", "something else"])
def test_a_full_disk_is_an_error_about_the_folder(reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.touch()
        raise SafetensorError(f"Error while serializing: {reason}")

    monkeypatch.setattr("tnet.models.io.save_file", full)
    with pytest.raises(
        OutputError, match=r"model cannot be written \((No space left on device\); make room|.*something)"
    ):
        save_model(TNet(tiny_config()), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file cannot be written"):
        save_model(TNet(tiny_config()), tmp_path / "file" / "model")


def test_loading_fetches_no_pretrained_weights(saved: Path) -> None:
    """Even if an untrusted configuration asks for them; the network guard would fail this test."""
    edit(saved, backbone={"pretrained": True, "weights": "/etc/hostname"})
    assert load_model(saved).config.backbone == TINY_RESNET


def test_saved_config_is_not_pretrained(tmp_path: Path) -> None:
    model = TNet(tiny_config())
    model.config = replace(model.config, backbone=replace(TINY_RESNET, pretrained=True))
    assert not read_config(save_model(model, tmp_path / "model")).backbone.pretrained


# --- errors


def test_missing_files(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(saved)


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_truncated_weights(saved: Path, left: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_model(saved)


def test_weights_of_another_model(saved: Path) -> None:
    path = saved / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"classifier.weight": torch.zeros(7, 16)}, path)
    with pytest.raises(CheckpointError, match=r"'classifier.weight'.*\[7, 16\].*\[5, 16\]"):
        load_model(saved)
    save_file({name: tensor for name, tensor in tensors.items() if name != "classifier.bias"}, path)
    with pytest.raises(CheckpointError, match=r"'classifier.bias' \(1 missing, 0 unknown"):
        load_model(saved)
    save_file(tensors | {"more": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"'more' \(0 missing, 1 unknown"):
        load_model(saved)
    edit(saved, aggregation="weighted")
    with pytest.raises(CheckpointError, match="'aggregation"):
        load_model(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("\xff", "is damaged"),
        ("[]", "does not describe a tnet model"),
        ('{"model_type": "bert"}', "does not describe a tnet model"),
        ('{"grid": {"rows": 3}}', "does not describe a tnet model"),
    ],
)
def test_invalid_config_file(saved: Path, text: str, message: str) -> None:
    (saved / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=message):
        load_model(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_pxx": 3}, "unknown key 'base_pxx'"),
        ({"base_px": "many"}, "base_px"),
        ({"looks": [99]}, "99"),
        ({"grid": {"cell_extent": 3}}, "cell_extent is 3"),
    ],
)
def test_edited_config(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=f"config.json: .*{message}"):
        load_model(saved)


_DEEP: list[Any] = []
for _ in range(500):
    _DEEP = [_DEEP]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 10**9}, "num_classes is 1000000000; give at most 100,000"),
        ({"base_px": 10**6}, "base_px is 1000000; give at most"),
        ({"grid": {"cols": 10**18}}, "grid.rows x grid.cols is .* at most 64"),
        ({"levels": 10**9}, "levels"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"mean": [float("inf")]}, "mean is inf"),
        ({"base_px": "9" * 5000}, "base_px has 5,000 characters; give at most 4,096"),
        ({"class_names": ["a"] * 100_001}, "class_names has 100,001 values; give at most 100,000"),
        ({"aggregation": None}, "aggregation is null"),
        ({"backbone": {"name": None}}, "backbone.name is null"),
        ({"backbone": {"kwargs": None}}, "backbone.kwargs is null"),
        ({"backbone": {"kwargs": {"channels": _DEEP}}}, "kwargs.* nested too deeply"),
        ({"backbone": {"kwargs": {"channels": [10**9] * 4}}}, "kwargs.channels"),
        # Within every limit, but together far more than the weights.
        ({"backbone": {"kwargs": {"channels": [8192] * 4}}}, "much larger than its weights"),
        ({"num_classes": 100_000, "locator": {"hidden": 8192}}, "much larger than its weights"),
        *(
            pytest.param({"backbone": backbone}, "much larger than its weights", marks=pytest.mark.slow)
            for backbone in (
                {"name": "vit_giant_patch14_dinov2", "kwargs": {}},
                {"kwargs": {"layers": [8192] * 4, "channels": [1] * 4}},
            )
        ),
    ],
)
def test_absurd_config_is_refused_before_anything_is_allocated(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    edit(saved, **{key: value for key, value in changes.items() if key != "backbone"})
    data = json.loads((saved / "config.json").read_text())
    data["backbone"] |= changes.get("backbone", {})
    (saved / "config.json").write_text(json.dumps(data))
    start = time.process_time()
    with pytest.raises(CheckpointError, match=f"config.json.*{message}") as refusal:
        load_model(saved)
    assert time.process_time() - start < 5 and len(str(refusal.value)) < 600


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved: Path, value: float) -> None:
    path = saved / "model.safetensors"
    weight = torch.zeros(5, 16)
    weight[3, 7] = value
    save_file(load_file(path) | {"classifier.weight": weight}, path)
    for load in (load_model, lambda folder: fill_from(TNet(tiny_config()), folder)):
        with pytest.raises(CheckpointError, match=r"model.safetensors: tensor 'classifier.weight' has NaN or infinite"):
            load(saved)


def test_shared_tensors_are_saved(tmp_path: Path) -> None:
    """Modules used in two places have two names for each tensor."""
    model = TNet(tiny_config()).eval()
    model.backbone.model.again = model.backbone.model.layer1
    folder = save_model(model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    name = "backbone.model.{}.0.conv1.weight"
    assert torch.equal(tensors[name.format("again")], tensors[name.format("layer1")])


def test_oversized_config_is_not_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnet.models.io._MAX_CONFIG_BYTES", 10)
    with pytest.raises(CheckpointError, match="larger than 10 bytes"):
        load_model(saved)


class Attack:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_untrusted_files_cannot_run_code(saved: Path, tmp_path: Path) -> None:
    """A pickle named like the weights, a PyTorch file containing one, a configuration with a class path."""
    trace, path = tmp_path / "trace", saved / "model.safetensors"
    path.write_bytes(pickle.dumps(Attack(trace)))
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load_model(saved)
    torch.save({"state_dict": Attack(trace)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="weights.pth"):
        read_tensors(tmp_path / "weights.pth")
    command = {"class_path": "subprocess.Popen", "init_args": {"args": f"touch {trace}", "shell": True}}
    edit(saved, backbone={"kwargs": {"channels": command}})
    with pytest.raises(CheckpointError, match="kwargs"):
        load_model(saved)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Attack(trace)))  # the attack itself works
    assert trace.exists()


def test_class_names_do_not_change_the_form_of_the_card() -> None:
    card = default_card(tiny_config(class_names=("a\n# head", "<img src=x>", "[b](u)", "*c*", "\x1b[31m")))
    assert r"a\\n# head, &lt;img src=x\>, \[b\](u), \*c\*, \\x1b\[31m." in card and "\x1b" not in card
    assert [line for line in card.splitlines() if line.startswith("# ")] == ["# TNet"]


def test_default_card() -> None:
    card = default_card(tiny_config(class_names=("a", "b", "c", "d", "e")))
    assert card.startswith("---\n") and "resnet10t at 32 px" in card and "3 x 3" in card and "a, b, c, d, e" in card
    assert "independent labels" in default_card(tiny_config(multilabel=True))


# --- classifiers of other classes


def save_with_classes(folder: Path, names: tuple[str, ...]) -> TNet:
    model = TNet(tiny_config(num_classes=max(len(names), 3), class_names=names))
    save_model(model, folder)
    return model


def test_rows_of_the_classifier_are_copied_by_the_name_of_the_class(tmp_path: Path) -> None:
    source = save_with_classes(tmp_path / "m", ("cat", "dog", "emu"))
    model = TNet(tiny_config(num_classes=3, class_names=("dog", "fox", "cat")))
    before = model.classifier.weight.detach().clone()
    with pytest.warns(ClassesWarning, match="2 of the 3 classes; .* by name, the others start at random, such as fox"):
        assert fill_from(model, tmp_path / "m") == []
    rows = source.classifier.weight.detach()
    assert torch.equal(model.classifier.weight[0], rows[1]) and torch.equal(model.classifier.weight[2], rows[0])
    assert torch.equal(model.classifier.weight[1], before[1])
    more = TNet(tiny_config(num_classes=4, class_names=("ant", "cat", "dog", "emu")))
    with pytest.warns(ClassesWarning, match="3 of the 4 classes"):
        fill_from(more, tmp_path / "m")
    assert torch.equal(more.classifier.bias[1:], source.classifier.bias)


def test_a_classifier_of_entirely_other_classes_stays_fresh(tmp_path: Path) -> None:
    save_with_classes(tmp_path / "m", ("cat", "dog", "emu"))
    model = TNet(tiny_config(num_classes=3, class_names=("x", "y", "z")))
    before = model.classifier.weight.detach().clone()
    with pytest.warns(ClassesWarning, match="0 of the 3 classes"):
        assert fill_from(model, tmp_path / "m") == ["classifier.weight", "classifier.bias"]
    assert torch.equal(model.classifier.weight, before)


def test_a_classifier_without_names_is_copied_in_order_and_says_so(tmp_path: Path) -> None:
    source = save_with_classes(tmp_path / "m", ())
    model = TNet(tiny_config(num_classes=3, class_names=("x", "y", "z")))
    with pytest.warns(ClassesWarning, match="m has no names of classes"):
        assert fill_from(model, tmp_path / "m") == []
    assert torch.equal(model.classifier.weight, source.classifier.weight)
