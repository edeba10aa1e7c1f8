"""What ``tnet export`` writes: the whole model, its parts, their metadata; and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.export.conftest import small, tnet
from tests.export.forms import build, forms, noise
from tests.golden import TINY, Golden
from torch import Tensor
from typer.testing import Result

from tnet.baselines.saccader import Saccader, SaccaderConfig
from tnet.errors import ConfigError, ExportError
from tnet.export import export_model, runtime, write
from tnet.export.runtime import open_session
from tnet.export.unrolled import FixedLooks
from tnet.models import LocatorConfig, PolicyConfig, TNet, TNetConfig
from tnet.models.io import load_model
from tnet.models.registry import create_model, list_models, model_config


def assert_equals(model: TNet, outputs: dict[str, Tensor], images: Tensor, looks: tuple[int, ...]) -> None:
    with torch.no_grad():
        expected = model(images, looks)
    assert torch.equal(outputs["boxes"], expected.regions.box_l0_yxyx[expected.rows])
    assert float((outputs["logits"] - expected.logits).abs().max()) <= 1e-4 * float(expected.logits.abs().max())


# --- the whole model


def test_whole_model(whole: tuple[Path, Result], saved: Path) -> None:
    folder, result = whole
    assert result.exit_code == 0 and result.stderr == ""
    assert f"{folder}: export.json, model.onnx, for images of 90 x 70 px (height x width), 1 looks" in result.stdout
    model = load_model(saved)
    assert isinstance(model, TNet)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    for count in (1, 5):
        images = noise(3, (90, 70), count)
        results = session.run(["logits", "boxes"], {"image": images.numpy()})
        assert_equals(model, dict(zip(("logits", "boxes"), map(torch.from_numpy, results), strict=True)), images, (1,))


def test_metadata_is_in_the_file_and_beside_it(whole: tuple[Path, Result]) -> None:
    beside = json.loads((whole[0] / "export.json").read_text())
    stored = onnx.load(str(whole[0] / "model.onnx"))
    inside = {item.key.removeprefix("tnet."): json.loads(item.value) for item in stored.metadata_props}
    assert {key: beside[key] for key in inside} == inside
    assert inside["classes"] == ["ant", "bee", "cat", "dog", "elk"] and inside["image_size_hw"] == [90, 70]
    assert inside["preprocessing"]["mean"] == [0.5] and inside["preprocessing"]["channel_order"] == "RGB"
    assert {"levels": 2, "base_px": 32, "rows": 3, "cols": 3, "cell_extent": 0.5}.items() <= inside["geometry"].items()
    assert inside["opset"] == 20 == stored.opset_import[0].version
    assert 0 <= beside["difference"] <= beside["tolerance"] == 1e-4


def test_an_export_is_not_replaced_unless_asked(whole: tuple[Path, Result], saved: Path) -> None:
    result = tnet("export", saved, whole[0], "--size", "90x70", "--looks", 1)
    assert result.exit_code == 1 and "exists and is not empty; choose another folder" in result.stderr


# Converting takes seconds for a tiny network, and minutes for a large one: by default one golden form is converted, and
# all forms are compared before conversion (test_unrolled.py). TNET_EXPORTS=tiny converts all forms with tiny backbones,
# TNET_EXPORTS=full every registered model at full size.
EXPORTS = os.environ.get("TNET_EXPORTS", "")
FORMS = forms()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.skipif(EXPORTS != "tiny", reason="minutes together; set TNET_EXPORTS=tiny")
def test_registered_forms(name: str, tmp_path: Path) -> None:
    model = build(FORMS[name])
    exported = export_model(model, tmp_path / "out", size_hw=(131, 150))
    images = noise(3, (131, 150))
    outputs = open_session(exported.folder / "model.onnx", "onnx")(image=images)
    assert_equals(model, outputs, images, model.config.looks)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in list_models() if isinstance(model_config(name), TNetConfig)])
@pytest.mark.skipif(EXPORTS != "full", reason="minutes each; set TNET_EXPORTS=full")
def test_registered_models_at_full_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported = export_model(create_model(name), tmp_path / "out")
    assert exported.difference <= 1e-4


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TINY if EXPORTS else TINY[:1])
def test_published_models_with_the_reference_weights(name: str, tmp_path: Path) -> None:
    golden = Golden(name)
    model, images = golden.model(), golden.images("eval")
    raw = ((images / 2 + 0.5) * 255).round().to(torch.uint8)
    exported = export_model(model, tmp_path / "out", size_hw=(images.shape[2], images.shape[3]))
    outputs = open_session(exported.folder / "model.onnx", "onnx")(image=raw)
    assert_equals(model, outputs, raw, golden.looks)


@pytest.mark.slow
def test_openvino(tmp_path: Path) -> None:
    model = small(aggregation="canvas")
    exported = export_model(model, tmp_path / "out", "openvino", size_hw=(90, 70))
    assert exported.files == ("export.json", "model.bin", "model.xml")
    session = open_session(exported.folder / "model.xml", "openvino")
    for count in (3, 1, 2, 4, 5, 6, 3):  # it is compiled for some of them
        images = noise(3, (90, 70), count)
        assert_equals(model, session(image=images), images, (2,))
    with pytest.raises(RuntimeError, match="(?i)shape"):
        session(image=noise(3, (90, 71), 4))


TINY_SACCADER = SaccaderConfig(
    num_classes=5, input_px=64, looks=3, planes=(4, 4), blocks=(1, 1), strides=(2, 2), wide_blocks=(1, 1), expansion=1,
    attention_dims=(4,), mixed_dim=8,
)  # fmt: skip


@pytest.mark.slow
def test_saccader_and_torch_export(tmp_path: Path) -> None:
    model = Saccader(TINY_SACCADER).eval()
    exported = export_model(model, tmp_path / "out", "torch-export", size_hw=(90, 70))
    images, more = noise(3, (90, 70), 4), {"export.json": ""}
    outputs = torch.export.load(exported.folder / "model.pt2", extra_files=more).module()(image=images)
    assert json.loads(more["export.json"])["looks"] == [3]
    with torch.no_grad():
        expected = model(images)
    windows = expected.regions.at_level(1).box_l0_yxyx.reshape(4, 3, 4)
    assert torch.equal(outputs["boxes"][:, 1:], windows) and outputs["boxes"][:, 0].tolist() == [[0, 0, 90, 70]] * 4
    torch.testing.assert_close(outputs["logits"], expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["region_logits"][:, 1:], expected.feature_logits, rtol=1e-4, atol=1e-5)
    assert outputs["weights"].tolist() == [[0, *[pytest.approx(1 / 3)] * 3]] * 4


# --- verification


CHANGES: list[tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = [
    (lambda out: {**out, "logits": out["logits"] * 1.001}, r"differ from the model's by 1.0e-03 .* more than 1e-04"),
    (lambda out: {**out, "logits": out["logits"] * torch.nan}, "differ from the model's by nan"),
    (lambda out: {**out, "boxes": out["boxes"] + 1}, "looked elsewhere than the model in 9 of 9 regions"),
]


@pytest.mark.parametrize(("change", "text"), CHANGES)
def test_verification(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], text: str) -> None:
    model = small()
    unrolled, images = FixedLooks(model, (2,), (90, 70)).eval(), write.example_images(3, (90, 70))
    with torch.no_grad():
        assert write.compare(model, lambda image: unrolled(image), images, (2,)) < 1e-5
        with pytest.raises(ExportError, match=text):
            write.compare(model, lambda image: change(unrolled(image)), images, (2,))


@pytest.mark.slow
def test_an_export_that_differs_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = write.save_program

    def wrong(*arguments: Any) -> runtime.Run:
        run = save(*arguments)
        return lambda **given: CHANGES[0][0](run(**given))

    monkeypatch.setattr(write, "save_program", wrong)
    with pytest.raises(ExportError, match=CHANGES[0][1]):
        export_model(small(), tmp_path / "out", "torch-export", size_hw=(90, 70))
    assert not list(tmp_path.iterdir())


# --- refused


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--opset", 11], "opset 11 is too old; give 18 to 23"),
        (["--opset", 99], "opset 99 is too new; give 18 to 23"),
        (["--looks", 10], "looks 10 asks for 10 locations in a grid of 3 x 3"),
        (["--size", "1x1"], "images of 1 x 1 px (height x width) have too few"),
        (["--parts", "--looks", 0], "looks is 0, so that there is nothing to locate"),
        (["--parts", "--format", "openvino"], "parts are ONNX files, not openvino"),
    ],
)
def test_options_that_are_refused(arguments: list[object], text: str, saved: Path, tmp_path: Path) -> None:
    result = tnet("export", saved, tmp_path / "out", *arguments)
    assert result.exit_code == 1 and text in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_folder_of_the_model_is_refused(saved: Path) -> None:
    result = tnet("export", saved, saved, "--overwrite")
    assert result.exit_code == 1 and "is the folder of the model; choose another place" in result.stderr


@pytest.mark.parametrize(
    ("changes", "parts", "text"),
    [
        ({"levels": 1, "looks": ()}, True, "levels is 1.* nothing to locate; export the whole without --parts"),
        (
            {"policy": PolicyConfig(eval="sample")},
            False,
            "cannot be unrolled; export see, locate and answer with --parts",
        ),
        ({"locator": LocatorConfig(context="collected")}, True, "only the whole image alone can be exported"),
    ],
)
def test_models_that_are_refused(changes: dict[str, Any], parts: bool, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        export_model(small(**changes), tmp_path / "out", parts=parts)
    assert not list(tmp_path.iterdir())


def test_baselines_are_refused(tmp_path: Path) -> None:
    model = create_model("attention_sampling.digits")
    with pytest.raises(
        ConfigError, match="is Attention sampling, which cannot be exported with its looks unrolled; TNets"
    ):
        export_model(model, tmp_path / "out")
    with pytest.raises(ConfigError, match="is Saccader, which cannot be exported in steps"):
        export_model(Saccader(TINY_SACCADER), tmp_path / "out", parts=True)
    with pytest.raises(ConfigError, match="policy is 'sample'.*only the representation network can be exported"):
        export_model(Saccader(replace(TINY_SACCADER, policy="sample")), tmp_path / "out", "torch-export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "missing", "text"),
    [
        ("onnx", "onnxscript", r"onnxscript is needed but is not installed; run: pip install 'tnet\[onnx\]'"),
        ("openvino", "openvino", r"openvino is needed but is not installed; run: pip install 'tnet\[openvino\]'"),
    ],
)
def test_missing_libraries(form: Any, missing: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ConfigError, match=text):
        export_model(small(), tmp_path / "out", form)
    assert not list(tmp_path.iterdir())


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(np.arange(100, dtype=np.uint8).tobytes())
    with pytest.raises(ExportError, match="model.onnx cannot be loaded .*; export the model again"):
        open_session(tmp_path / "model.onnx", "onnx")
    with pytest.raises(ExportError, match="missing.onnx does not exist"):
        open_session(tmp_path / "missing.onnx", "onnx")
