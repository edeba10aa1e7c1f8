"""From variables of a TensorFlow checkpoint to a model: the same outputs, and checkpoints that do not fit."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.fakes import make_fake
from tests.golden import Golden
from typer.testing import CliRunner

from tnet.backbones.base import BackboneConfig
from tnet.cli.import_tf import with_class_names
from tnet.cli.main import app
from tnet.data.fmow import CATEGORIES
from tnet.data.nabirds import NABIRDS
from tnet.errors import CheckpointError, ConfigError
from tnet.interop.import_tf import CLASS_INDICES, read_tf_checkpoint, save_imported
from tnet.interop.tf_names import tensorflow_shape, tensors_of, variable_names
from tnet.models.config import TNetConfig
from tnet.models.io import load_model
from tnet.models.registry import create_model, model_config
from tnet.models.tnet import TNet

NARROW = {"width": 0.25}


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def write_variables(path: Path, entries: Mapping[str, NDArray[Any]]) -> Path:
    """Save variables as :data:`tnet.interop.CONVERT` does."""
    np.savez(path, **entries)  # type: ignore[arg-type]
    return path


def keys(weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Variables under the keys that the reference implementation's training saves, with the optimiser beside them."""
    entries: dict[str, NDArray[Any]] = {"iter/.ATTRIBUTES/VARIABLE_VALUE": np.array(1234, np.int64)}
    entries |= {
        f"{key}/.ATTRIBUTES/VARIABLE_VALUE": np.array(1, np.int64) for key in ("save_counter", "optimizer/decay")
    }
    for name, value in weights.items():
        key = name.replace("/", ".S")
        entries[f"{key}/.ATTRIBUTES/VARIABLE_VALUE"] = value
        if name.endswith("kernel"):
            entries[f"{key}/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE"] = np.zeros_like(value)
    return entries


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("tiny_fmow_tnet_448_l2")


@pytest.fixture(scope="module")
def weights(golden: Golden) -> dict[str, NDArray[Any]]:
    return golden.weights()


@pytest.fixture(scope="module")
def checkpoint(weights: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_variables(tmp_path_factory.mktemp("ckpt") / "ckpt-1234.npz", keys(weights))


def narrow(name: str, **changes: Any) -> TNetConfig:
    config = model_config(name)
    return replace(config, backbone=replace(config.backbone, kwargs={**config.backbone.kwargs, **NARROW}), **changes)


CONFIG = narrow("tnet_efficientnet_b0.fmow_448")


def test_the_model_answers_as_the_reference(golden: Golden, checkpoint: Path, tmp_path: Path) -> None:
    imported = read_tf_checkpoint(checkpoint, CONFIG)
    assert (imported.family, imported.step, imported.baseline) == ("reference", 1234, 0.5)
    assert imported.variables == len(golden.meta["variables"]) - 1 and imported.left_out > 3
    folder = save_imported(imported, tmp_path / "model", "tnet_efficientnet_b0.fmow_448")
    with torch.no_grad():
        logits = load_model(folder)(golden.images("eval"), golden.looks).logits.numpy()
    expected = golden.eval["logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    card = (folder / "README.md").read_text()
    assert CLASS_INDICES["fmow"] in card and "--preprocess reference_448" in card and "step 1,234" in card


@pytest.mark.parametrize(
    "name",
    ["tiny_imagenet_tnet_3", slow("tiny_imagenet_bagnet77"), slow("tiny_fmow_b0_224"), slow("tiny_cub_tnet_b0_5")],
)
def test_every_form_finds_its_variables(name: str, tmp_path: Path) -> None:
    golden = Golden(name)
    weights = golden.weights()
    write_variables(tmp_path / "ckpt-7.npz", keys(weights))
    overrides = {key: value for key, value in golden.overrides().items() if key != "dropout"}
    imported = read_tf_checkpoint(tmp_path / "ckpt-7.npz", replace(model_config(golden.model_name), **overrides))
    state, expected = imported.model.state_dict(), golden.model().state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


FULL_SIZE = [
    ("cub_tnet_b0_5", "tnet_efficientnet_b0.cub"),
    ("imagenet_tnet_3", "tnet_bagnet77.imagenet"),
    ("fmow_b0_224", "efficientnet_b0.fmow"),
    ("fmow_tnet_448_l2", "tnet_efficientnet_b0.fmow_448"),
]
LARGER = [("imagenet_bagnet77", "bagnet77.imagenet"), ("cub_b0_448", "efficientnet_b0.cub")]
LARGER += [(f"cub_b{size}_448", f"efficientnet_b{size}.cub") for size in range(1, 5)]
LARGER += [(f"cub_tnet_b{size}_5", f"tnet_efficientnet_b{size}.cub") for size in range(1, 5)]


@pytest.mark.parametrize(("listed", "name"), [*FULL_SIZE, *(slow(*pair) for pair in LARGER)])
def test_the_authors_names_and_shapes(listed: str, name: str) -> None:
    """Those of the full-size models, as the reference implementation's own checkpoints have them."""
    path = Path(__file__).parents[1] / "data" / "golden" / "variables.json.gz"
    expected = {key: tuple(shape) for key, shape in json.loads(gzip.decompress(path.read_bytes()))[listed].items()}
    with torch.device("meta"):
        model = TNet(model_config(name))
    tensors = tensors_of(model)
    found = {v: tensorflow_shape(v, tensors[key].shape) for key, v in variable_names(model, "reference").items()}
    assert found == expected


# --- checkpoints that do not fit


def refused(path: Path, config: TNetConfig = CONFIG) -> str:
    with pytest.raises(CheckpointError) as error:
        read_tf_checkpoint(path, config)
    return str(error.value)


def test_a_missing_variable(weights: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    lacking = {name: value for name, value in weights.items() if name != "feature_posBurn/linear/bias"}
    write_variables(tmp_path / "ckpt-1.npz", keys(lacking))
    message = refused(tmp_path / "ckpt-1.npz")
    assert "'feature_posBurn/linear/bias' of shape [320]" in message
    assert "1 missing, 0 unknown, 0 of another shape" in message and str(tmp_path / "ckpt-1") in message


def test_an_extra_variable(weights: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    write_variables(tmp_path / "ckpt-1.npz", keys({**weights, "extra/kernel": np.zeros((2, 3), np.float32)}))
    assert "'extra/kernel' of shape [2, 3]" in refused(tmp_path / "ckpt-1.npz")


def test_another_number_of_classes(checkpoint: Path) -> None:
    message = refused(checkpoint, narrow("tnet_efficientnet_b0.fmow_448", num_classes=10))
    assert (
        "'feature_extraction/logits_layer/linear/kernel' of shape [320, 62], but the model expects [320, 10]" in message
    )
    assert message.endswith("add num_classes=62")


def test_another_width(checkpoint: Path) -> None:
    message = refused(checkpoint, model_config("tnet_efficientnet_b0.fmow_448"))
    assert re.search(r"of shape \[320, .*but the model expects \[1280, .*--model", message)


def test_weights_that_are_not_floating_point(weights: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    name = "feature_posBurn/linear/bias"
    for value in (np.ones_like(weights[name], np.int32), weights[name].astype(object)):
        write_variables(tmp_path / "ckpt-1.npz", keys({**weights, name: value}))
        assert name in refused(tmp_path / "ckpt-1.npz")


def test_a_step_that_is_not_a_number(weights: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    write_variables(tmp_path / "ckpt-1.npz", {**keys(weights), "iter/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(3)})
    assert "iter/" in refused(tmp_path / "ckpt-1.npz")


def test_weights_that_are_not_finite(weights: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    name = "feature_posBurn/linear/bias"
    write_variables(tmp_path / "ckpt-1.npz", keys({**weights, name: np.full_like(weights[name], np.nan)}))
    assert f"'{name}'" in refused(tmp_path / "ckpt-1.npz")


def test_a_backbone_without_checkpoints(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="resnet18"):
        read_tf_checkpoint(checkpoint, model_config("tnet_resnet18.own"))


# --- Google's EfficientNets

# Of the first blocks, as Google's models name them: which layer of timm's fills which variable.
GOOGLE = {
    "stem/conv2d/kernel": "conv_stem.weight",
    "stem/tpu_batch_normalization/moving_variance": "bn1.running_var",
    "blocks_0/depthwise_conv2d/depthwise_kernel": "blocks.0.0.conv_dw.weight",
    "blocks_0/tpu_batch_normalization/gamma": "blocks.0.0.bn1.weight",
    "blocks_0/se/conv2d/bias": "blocks.0.0.se.conv_reduce.bias",
    "blocks_0/se/conv2d_1/kernel": "blocks.0.0.se.conv_expand.weight",
    "blocks_0/conv2d/kernel": "blocks.0.0.conv_pw.weight",
    "blocks_0/tpu_batch_normalization_1/beta": "blocks.0.0.bn2.bias",
    "blocks_2/conv2d/kernel": "blocks.1.1.conv_pw.weight",
    "blocks_2/tpu_batch_normalization/beta": "blocks.1.1.bn1.bias",
    "blocks_2/depthwise_conv2d/depthwise_kernel": "blocks.1.1.conv_dw.weight",
    "blocks_2/tpu_batch_normalization_1/gamma": "blocks.1.1.bn2.weight",
    "blocks_2/conv2d_1/kernel": "blocks.1.1.conv_pwl.weight",
    "blocks_2/tpu_batch_normalization_2/moving_mean": "blocks.1.1.bn3.running_mean",
    "blocks_15/conv2d_1/kernel": "blocks.6.0.conv_pwl.weight",
    "head/conv2d/kernel": "conv_head.weight",
    "head/tpu_batch_normalization/gamma": "bn2.weight",
}


def google_checkpoint(path: Path, config: TNetConfig, averages: bool) -> TNet:
    """Write a classifier of random numbers under Google's names; the moving averages hold what counts."""
    model = TNet(config).eval()
    generator = np.random.default_rng(0)
    entries: dict[str, NDArray[Any]] = {"global_step": np.array(77, np.int64)}
    state = model.state_dict()
    for name, variable in variable_names(model, "google").items():
        shape = tensorflow_shape(variable, state[name].shape)
        value = (generator.uniform(0.5, 1, shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
        other = value + 1 if averages else value
        entries |= {variable: other, f"{variable}/RMSProp": value, f"{variable}/RMSProp_1": value}
        if averages:
            entries[f"{variable}/ExponentialMovingAverage"] = value
        layout = (3, 2, 0, 1) if value.ndim == 4 else tuple(reversed(range(value.ndim)))
        layout = (2, 3, 0, 1) if variable.endswith("depthwise_kernel") else layout
        state[name] = torch.from_numpy(value.transpose(layout).copy())
    model.load_state_dict(state)
    write_variables(path, entries)
    return model


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TNet]:
    path = tmp_path_factory.mktemp("google") / "model.npz"
    return path, google_checkpoint(path, narrow("efficientnet_b0.imagenet"), averages=True)


@pytest.mark.slow
def test_google_without_moving_averages(tmp_path: Path) -> None:
    config = narrow("efficientnet_b0.imagenet")
    model = google_checkpoint(tmp_path / "model.npz", config, averages=False)
    state = read_tf_checkpoint(tmp_path / "model.npz", config).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_googles_efficientnet(google: tuple[Path, TNet], tmp_path: Path) -> None:
    config = narrow("efficientnet_b0.imagenet")
    path, model = google
    names = {variable: name for name, variable in variable_names(model, "google").items()}
    for variable, name in GOOGLE.items():
        assert names[f"efficientnet-b0/{variable}"] == f"backbone.model.{name}"
    assert names["efficientnet-b0/head/dense/kernel"] == "classifier.weight"
    imported = read_tf_checkpoint(path, config)
    assert (imported.family, imported.step, imported.baseline) == ("google", 77, None)
    state = imported.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    # Another model starts from what was saved.
    folder = save_imported(imported, tmp_path / "model", "efficientnet_b0.imagenet")
    assert "Google's EfficientNet" in (folder / "README.md").read_text()
    backbone = replace(narrow("tnet_efficientnet_b0.cub").backbone, weights=str(folder / "model.safetensors"))
    bird = create_model("tnet_efficientnet_b0.cub", backbone=backbone).state_dict()
    assert torch.equal(bird["backbone.model.conv_head.weight"], state["backbone.model.conv_head.weight"])


def test_googles_efficientnet_is_not_a_tnet(google: tuple[Path, TNet]) -> None:
    with pytest.raises(ConfigError, match="--model efficientnet_b0.imagenet"):
        read_tf_checkpoint(google[0], narrow("tnet_efficientnet_b0.cub"))


# --- the command


def run_cli(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    arguments = ["import-tf", str(checkpoint), str(out), "backbone.kwargs.width=0.25"]
    code, text = run_cli(*arguments, "--model", "tnet_efficientnet_b0.fmow_448")
    assert code == 0 and "327 variables used" in text and (out / "model.safetensors").is_file()
    assert load_model(out).config.class_names == CATEGORIES and "--data" not in text
    code, text = run_cli(*arguments, "--model", "tnet_efficientnet_b0.fmow_448")
    assert code == 1 and "--overwrite" in text
    code, text = run_cli(*arguments, "num_classes=9", "--overwrite", "--model", "tnet_efficientnet_b0.fmow_448")
    assert code == 1 and "add num_classes=62" in text and (out / "model.safetensors").is_file()
    code, text = run_cli("import-tf", str(checkpoint), str(tmp_path / "other"))
    assert code == 1 and "--model" in text and not (tmp_path / "other").exists()


def test_class_names_from_the_dataset(checkpoint: Path, tmp_path: Path) -> None:
    root = make_fake("nabirds", tmp_path / "birds", classes=3, images_per_class=2, side_px=32)
    (root / "images.txt").write_text("\n".join(reversed((root / "images.txt").read_text().splitlines())))
    config = replace(model_config("efficientnet_b0.nabirds"), num_classes=3)
    names = with_class_names(config, "nabirds", root).class_names
    assert list(names) == NABIRDS.author_classes(root) and with_class_names(config, "nabirds", None) == config
    arguments = ["import-tf", str(checkpoint), str(tmp_path / "model"), "--model", "efficientnet_b0.nabirds"]
    code, text = run_cli(*arguments, "--data", str(root))
    assert code == 1 and "555" in text and not (tmp_path / "model").exists()
    code, text = run_cli("import-tf", str(checkpoint), str(tmp_path), "--model", "ips.digits", "--data", str(root))
    assert code == 1


def test_missing_class_names_are_reported(google: tuple[Path, TNet], tmp_path: Path) -> None:
    code, text = run_cli("import-tf", str(google[0]), str(tmp_path / "out"), "backbone.kwargs.width=0.25",
                         "--model", "efficientnet_b0.imagenet")  # fmt: skip
    assert code == 0 and "ImageNet's 1,000 classes" in " ".join(text.split()) and "--data" in text


def test_a_narrow_backbone_has_no_pretrained_weights() -> None:
    backbone = BackboneConfig("tf_efficientnet_b0", kwargs=dict(NARROW), pretrained=True)
    with pytest.raises(ConfigError, match=r"width is 0.25, but pretrained weights fit width 1"):
        create_model("tnet_efficientnet_b0.cub", backbone=backbone)
